"""``lock_on_contention="wait"``, as the executor sees it.

The executor does not wait: it ends the attempt with :class:`Parked`, which tells the worker's main process what is
wanted, and frees its slot. The main process keeps the unacknowledged message, stands in the store's line for it, and
gives it to the pool again once its turn has come (``worker.parking``). The executor then asks under the name that
stands in line, and gets what the main process was offered, or even granted, in that name.

Where that cannot be, the task is retried instead, and takes its place in the line along: the number of its ticket
travels in a header, and stands where it stood.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NoReturn

from celery_distlock.errors import LockContended, describe
from celery_distlock.held import give_back
from celery_distlock.lease import Claim, Completed, Contended, Lease, Ticket
from celery_distlock.options import LockOptions
from celery_distlock.stores.base import LockStore, Queueing
from celery_distlock.task.contention import give_up_if_late, retry_later
from celery_distlock.task.parked import WAITING, Parked, Wish
from celery_distlock.task.redelivery import ignores_result, is_redelivered
from celery_distlock.task.run import TICKET_HEADER, Run

__all__ = ["ask_with_ticket", "draws", "is_called", "may_wait", "ticket_of", "wait_parked"]

log = logging.getLogger(__name__)


def may_wait(options: LockOptions) -> bool:
    """Return whether the policy can turn out to be ``"wait"``."""
    return options.on_contention == "wait" or callable(options.on_contention)


def ask_with_ticket(store: LockStore, claim: Claim, number: int) -> Lease | Contended | Completed:
    """Ask for the key with a place in its line; do not stay there.

    Raises:
        StoreUnavailable: there was no answer. Whatever the store may have granted is being given back.
    """
    assert isinstance(store, Queueing)
    try:
        answer = store.enqueue(claim, ticket=number)
        if isinstance(answer, Ticket):
            store.withdraw([claim])
    except BaseException:
        give_back(store, Lease.unknown(claim.key, claim.owner, claim.ttl))
        raise
    return Contended(claim.key, tuple(store.holders(claim.key)), number) if isinstance(answer, Ticket) else answer


def draws(task: Any, request: Any, options: LockOptions) -> bool:
    """Return whether a refusal is to be worth a place in the line: the task may come to wait, and has none so far."""
    if not may_wait(options) or not task.acks_late or not _token(request):
        return False
    return ticket_of(request, task._lock_store) is None


def wait_parked(task: Any, request: Any, options: LockOptions, run: Run, claim: Claim, answer: Contended) -> NoReturn:
    """Have the main process wait for the key, or publish the task again.

    Arguments:
        claim: what was refused.
        answer: the refusal.

    Raises:
        Parked: the main process waits.
        Retry: the task was published again.
        LockTimeout: ``lock_timeout`` has passed since the first attempt.
    """
    error = LockContended(answer.key, answer.holder)
    never = _never(task, request, claim)
    if never:
        task._lock_warn_once(f"lock_on_contention='wait' is not possible here, the task is retried instead: {never}")
        retry_later(task, options, run, answer.key, error, answer.holder)
    since = give_up_if_late(request, options, answer.key, error, answer.holder)
    number = ticket_of(request, task._lock_store) or answer.number
    if _has_room(request):
        _store_state(task, request, answer)
        raise Parked(f"waits for lock {claim.key!r}", Wish(claim, number, since, answer.holder))
    log.info(
        "Task %s[%s] cannot be parked here, or not for longer; published again %s ticket%s of lock %r, held by %s",
        task.name,
        run.id,
        "without a" if number is None else "with",
        "" if number is None else f" {number}",
        claim.key,
        describe(answer.holder),
    )
    retry_later(task, options, run, answer.key, error, answer.holder, number)


def _has_room(request: Any) -> bool:
    """Return whether the main process would park this request."""
    token = _token(request)
    return len(token) > 3 and bool(token[3])


def ticket_of(request: Any, store: LockStore) -> int | None:
    """Return the number of the place in line that this delivery, or an earlier one, had, if the store has a line."""
    token = _token(request)
    number = token[4] if len(token) > 4 else None
    if number is None and request.headers:
        number = request.headers.get(TICKET_HEADER)
    return number if isinstance(number, int) and isinstance(store, Queueing) else None


def is_called(request: Any) -> bool:
    """Return whether this delivery has waited until its turn came: a place is kept under its owner's name."""
    token = _token(request)
    return len(token) > 5 and bool(token[5])


def _token(request: Any) -> Sequence[Any]:
    return (request.properties or {}).get("distlock") or ()


def _never(task: Any, request: Any, claim: Claim) -> str | None:
    if not task.acks_late:
        return "acks_late is not set, so the broker would not keep the message"
    if not (request.properties or {}).get("distlock"):
        return "no supervising worker runs it"
    if not isinstance(task._lock_store, Queueing):
        return "the store has no queue"
    if claim.limit > 1 and is_redelivered(request):
        # With places left, the store would grant the copy of a running message one of its own.
        return "with lock_limit > 1, a message that was delivered again could run beside its first delivery"
    return None


def _store_state(task: Any, request: Any, answer: Contended) -> None:
    """Say in the task's result that it waits, and for whom. RETRY and STARTED would be untrue."""
    if ignores_result(task, request):
        return
    told = answer.holder or {}
    holder = {name: told.get(name) for name in ("task", "id", "host")}
    try:
        task.backend.store_result(request.id, {"key": answer.key, "holder": holder}, WAITING, request=request)
    except Exception as error:
        # What is waited for is more important than how it looks meanwhile.
        log.warning("Task %s[%s]: its state %s could not be stored: %r", task.name, request.id, WAITING, error)
