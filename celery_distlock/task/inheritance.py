"""``lock_hold_on_retry``: a task that keeps its lock over its own retries.

::

    attempt ─ RETRY ─▶ lease passes to the heir ─ next attempt ─▶ lease passes to that
                            │
                            └─ nobody comes: it runs out, the retry's delay and a ttl later

The heir is an owner that nobody is, named by the task's id: whichever worker runs the next attempt knows it. In between
nobody else can be granted the key, and those who are refused see the task as its holder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from celery_distlock.errors import LockConfigError
from celery_distlock.held import ask, give_back
from celery_distlock.lease import Claim, Completed, Completion, Contended, Lease
from celery_distlock.stores.base import LockStore, PassingOn
from celery_distlock.task.grant import record_of
from celery_distlock.task.moments import seconds_until
from celery_distlock.task.run import Run

__all__ = ["bequeath", "inheriting"]


def inheriting(task: Any, run: Run) -> Callable[[LockStore, Claim], Lease | Contended | Completed]:
    """Return how this run asks a store for its key: first for what the attempt before it has left.

    Raises (what is returned):
        LockConfigError: the store cannot do that.
        StoreUnavailable: there was no answer; whatever was granted is given back.
    """

    def inherit(store: LockStore, claim: Claim) -> Lease | Contended | Completed:
        passing = _passing(task, store)
        if run.retries or run.attempt:
            try:
                left = passing.pass_on(Lease.unknown(claim.key, _heir_of(run), claim.ttl), claim)
            except BaseException:
                give_back(store, Lease.unknown(claim.key, claim.owner, claim.ttl))
                raise
            if left is not None:
                return left
        return ask(store, claim)

    return inherit


def bequeath(
    task: Any, store: LockStore, lease: Lease, ttl: float, run: Run, error: Any, completion: Completion | None
) -> bool:
    """Leave a lease to the next attempt; False if it is not there any more.

    Arguments:
        ttl: seconds beyond the delay of the retry for which it is kept.
        error: the ``Retry`` in which the attempt ended.

    Raises:
        StoreUnavailable: there was no answer.
    """
    heir = Claim(lease.key, _heir_of(run), _delay_of(error) + ttl, lease.limit, record_of(task, run))
    return _passing(task, store).pass_on(lease, heir, completion, unattended=True) is not None


def _passing(task: Any, store: LockStore) -> PassingOn:
    if not isinstance(store, PassingOn):
        raise LockConfigError(
            f"task {task.name}: lock_hold_on_retry needs a store that can pass a lease on, which {store.name} cannot"
        )
    return store


def _heir_of(run: Run) -> str:
    # As long as an owner is.
    return hashlib.sha256(f"heir of {run.id}".encode()).hexdigest()[:32]


def _delay_of(error: Any) -> float:
    when = getattr(error, "when", None)
    left = float(when) if isinstance(when, (int, float)) else seconds_until(when)
    return max(0.0, left or 0.0)
