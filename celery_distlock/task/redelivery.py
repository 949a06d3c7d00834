"""Messages that the broker delivers more than once, as the executor sees them.

A *copy* carries the id, retries, attempt and depth of the run that holds the key, and the broker's word that it was
delivered before: users publish one id twice on purpose, and those are no copies. A run that has *completed* left a
record with its release, if its message is acknowledged late; whoever finds it does not run again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

from celery import states
from celery.exceptions import Ignore

from celery_distlock.errors import describe
from celery_distlock.held import ask
from celery_distlock.lease import Claim, Completed, Completion, Contended, Holder, Lease
from celery_distlock.stores.base import LockStore
from celery_distlock.task.parked import Parked
from celery_distlock.task.run import Run

__all__ = [
    "check_result",
    "completion_of",
    "has_copy",
    "ignores_result",
    "is_redelivered",
    "leaves_record",
    "settle_copy",
]

log = logging.getLogger(__name__)

#: How often a copy looks whether the original is done where nobody can park it, in seconds.
_COPY_PAUSE = 0.5


def is_redelivered(request: Any) -> bool:
    """Return whether the broker says that this message was delivered before."""
    return bool(request.delivery_info and request.delivery_info.get("redelivered"))


def has_copy(run: Run, holders: Iterable[Holder]) -> bool:
    """Return whether one of the holders is this very run."""
    return any(run.is_copy_of(holder) for holder in holders)


def settle_copy(
    task: Any, request: Any, store: LockStore, claim: Claim, run: Run, answer: Contended
) -> Lease | Contended | Completed:
    """Deal with a message that was delivered again while its first copy runs.

    Raises:
        Ignore: it is of no use any more, and is acknowledged.
        Parked: it must not be acknowledged before the original has ended.
    """
    if not task.acks_late:
        log.info("Task %s[%s]: delivered again while it runs; this copy is dropped", task.name, run.id)
        raise Ignore("a copy of a running task")
    if (request.properties or {}).get("distlock"):
        raise Parked(f"a copy of a running task; lock {claim.key!r} is held by {describe(answer.holder)}")
    # Without our main process nobody can park it, and acknowledging it would delete the original's message.
    got: Lease | Contended | Completed = answer
    while isinstance(got, Contended) and has_copy(run, got.holders):
        time.sleep(_COPY_PAUSE)
        got = ask(store, claim)
    return got


def completion_of(task: Any, key: str, label: str) -> Completion:
    """Return the record that the run of this label leaves, or looks for."""
    return Completion(key, label, task._lock_completion_ttl)


def leaves_record(task: Any, request: Any, state: str | None, retval: Any) -> bool:
    """Return whether this ending means that the message must not do its work again."""
    if not task.acks_late or request.is_eager:
        return False
    if state == states.REJECTED or (state == states.FAILURE and not _acks_on_failure(task)):
        # It goes back to its queue, or to where dead letters go, and what comes back from there is meant to run. Only
        # the main process rejects it, and reports that: if it dies before it can, the next delivery has to.
        return False
    # None: killed on the way, the work is not known to be done.
    return state is not None


def _acks_on_failure(task: Any) -> bool:
    # Celery before 5.6 has only the older name.
    value = getattr(task, "acks_on_failure", None)
    return bool(task.acks_on_failure_or_timeout if value is None else value)


def check_result(task: Any, request: Any) -> None:
    """Say so if the run that left the completion record did not live to store its result: nobody else will."""
    if ignores_result(task, request):
        return
    try:
        state = task.backend.get_task_meta(request.id)["status"]
    except Exception as error:
        log.debug("Task %s[%s]: its result cannot be looked up: %r", task.name, request.id, error)
        return
    # It can also be WAITING, or RETRY since an earlier attempt.
    if state not in states.READY_STATES:
        log.warning(
            "Task %s[%s]: its worker died after the work was done; the result is %s, and what stood behind it may not "
            "have been published",
            task.name,
            request.id,
            state,
        )


def ignores_result(task: Any, request: Any) -> bool:
    """Return whether this call's result is stored nowhere."""
    # The class of the context has a default of its own, which says nothing of the task.
    return bool(request.__dict__.get("ignore_result", task.ignore_result))
