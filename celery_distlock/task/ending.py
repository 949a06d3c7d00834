"""The end of an attempt: its lock is released, or left to the task's next attempt.

``task_postrun`` fires whenever the executor still runs Python: also for Retry, Ignore, Reject and SIGTERM. By then the
result is stored and the callbacks are published. Who dies before it is released for by the worker's main process.

What each failure does
    * The store gives no answer: the release is owed, by the main process where there is one. The result is not touched.
    * A signal strikes meanwhile: the same, and it goes on its way.
    * The lock is not ours any more: a warning. The work is done.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from celery import signals, states

from celery_distlock import cells
from celery_distlock.errors import StoreUnavailable
from celery_distlock.held import HeldLock, SelfKept, frames
from celery_distlock.keepalive import keeper
from celery_distlock.lease import Completion, Lease
from celery_distlock.signals import lock_released
from celery_distlock.stores.base import LockStore
from celery_distlock.task.grant import at_release
from celery_distlock.task.inheritance import bequeath
from celery_distlock.task.redelivery import completion_of, leaves_record
from celery_distlock.task.run import Run
from celery_distlock.task.unique import UniqueMessage, never_called

__all__ = ["Grant"]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Grant:
    """What the tracer's frame holds until ``task_postrun``; kept on the request's context."""

    store: LockStore
    lease: Lease
    lock: HeldLock
    cell: cells.Cell | None
    kept: SelfKept | None
    run: Run
    min_hold: float
    #: Seconds beyond the delay of a retry for which the lock is kept for it; None: it is released.
    hold_on_retry: float | None


def _on_postrun(sender: Any = None, task: Any = None, state: str | None = None, retval: Any = None, **_: Any) -> None:
    request = task.request_stack.top
    if request is None:
        return
    if not getattr(request, "distlock_frame", False):
        never_called(task, request, state)
        return
    stack = frames()
    stack[:] = [frame for frame in stack if frame.subject is not request]
    grant: Grant | None = getattr(request, "distlock_grant", None)
    message: UniqueMessage | None = getattr(request, "distlock_unique", None)
    running = [] if message is None else message.ends(state)
    complete = grant is not None and leaves_record(task, request, state, retval)
    if grant is not None and grant.hold_on_retry is not None and state == states.RETRY:
        if message is not None:
            message.release(running)
        _pass_on(task, request, grant, grant.hold_on_retry, retval, complete)
    elif grant is not None:
        _release(task, request, grant, state, complete, message, running)
    elif message is not None:
        message.release(running)


# Tracers look at the receivers when they are built, so this is connected at import, and for good.
signals.task_postrun.connect(_on_postrun, weak=False, dispatch_uid="celery_distlock.release")


def _release(
    task: Any,
    request: Any,
    grant: Grant,
    state: str | None,
    complete: bool,
    message: UniqueMessage | None,
    running: list[Lease],
) -> None:
    lock, lease = grant.lock, grant.lease
    lock.released = True
    if grant.min_hold and state in states.READY_STATES:
        # Not between a task's own retries: those are one piece of work.
        lease = grant.lease = at_release(lease, grant.min_hold)
    completion = completion_of(task, lease.key, grant.run.label) if complete else None
    if grant.kept is not None:
        grant.kept.end()
    if grant.cell is not None:
        grant.cell.releasing(complete)
    try:
        # The running key first: whoever is granted the lock next finds it free.
        *_, ours = grant.store.release([*running, lease], [*(None for _ in running), completion])
    except StoreUnavailable as error:
        log.warning("Task %s[%s]: lock %r will be released later: %s", task.name, request.id, lease.key, error)
        _release_later(grant, completion, message)
        return
    except BaseException:
        _release_later(grant, completion, message)
        raise
    if message is not None:
        message.released()
    if grant.cell is not None:
        grant.cell.done()
    if not ours:
        log.warning("Task %s[%s]: lock %r was no longer ours when it was released", task.name, request.id, lease.key)
    if lock_released.receivers:
        lock_released.send(sender=task, task_id=request.id, key=lease.key, owner=lease.owner, fence=lease.fence)


def _pass_on(task: Any, request: Any, grant: Grant, ttl: float, error: Any, complete: bool) -> None:
    """Leave the lock to the task's next attempt; if that cannot be, release it."""
    key = grant.lease.key
    completion = completion_of(task, key, grant.run.label) if complete else None
    grant.lock.released = True
    if grant.kept is not None:
        grant.kept.end()
    if grant.cell is not None:
        grant.cell.releasing(complete)
    try:
        passed = bequeath(task, grant.store, grant.lease, ttl, grant.run, error, completion)
    except StoreUnavailable as silence:
        log.warning("Task %s[%s]: lock %r cannot be kept for the retry: %s", task.name, request.id, key, silence)
        _release_later(grant, completion, None)
        return
    except BaseException:
        _release_later(grant, completion, None)
        raise
    if grant.cell is not None:
        grant.cell.done()
    if not passed:
        log.warning("Task %s[%s]: lock %r was no longer ours when it was to be kept", task.name, request.id, key)


def _release_later(grant: Grant, completion: Completion | None, message: UniqueMessage | None) -> None:
    if message is not None:
        message.release_later()
    if grant.cell is not None:
        # The main process goes on: it outlives this child.
        grant.cell.owed()
    else:
        keeper().give_back(grant.store, grant.lease, completion)
