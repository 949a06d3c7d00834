"""One attempt to run a task under its lock, called by Celery's tracer, in a worker or eagerly.

How it ends is told in ``ending``; of a task that is called as a function, in ``direct``.

::

    __call__ ─ key? ─none──────────────────────────────────────────────▶ body
                │ held by a frame below us ────────────────────────────▶ body (under that frame's lock)
                ▼
             acquire ─ granted ──────────────────────▶ body ─ still ours? ─▶ result ─▶ task_postrun ─▶ release
                │   ├─ completed (redelivered copy) ─▶ Ignore: acknowledged, result untouched
                │   ├─ contended by our predecessor ─▶ wait in place, 1 s at most
                │   ├─ contended by ourselves ───────▶ Parked: the broker delivered one message twice
                │   └─ contended ────────────────────▶ the task's policy; to wait is Parked, too
                └─ no answer ────────────────────────▶ lock_on_store_error

Authority
    The store. The worker's main process reads, from the request's cell, what this executor was granted; it renews
    it and gives it back should this process die. Without a cell (no supervising worker) this process keeps it alive.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from celery import states
from celery.app.task import Context
from celery.exceptions import Ignore, TaskPredicate

from celery_distlock import cells
from celery_distlock.errors import LockContended, StoreUnavailable
from celery_distlock.held import Frame, HeldLock, Trust, ask, disown, frames, give_back, holding
from celery_distlock.lease import Claim, Completed, Contended, Lease, new_owner
from celery_distlock.options import LockOptions
from celery_distlock.signals import lock_acquired
from celery_distlock.stores.base import LockStore
from celery_distlock.task.contention import Contention, decide, retry_later, skip
from celery_distlock.task.ending import Grant
from celery_distlock.task.grant import cannot_rest, confirm, keep_alive, limit_of, record_of, wait_in_place
from celery_distlock.task.inheritance import inheriting
from celery_distlock.task.message import UNIQUE_HEADER
from celery_distlock.task.parked import Parked
from celery_distlock.task.parking import ask_with_ticket, draws, is_called, ticket_of, wait_parked
from celery_distlock.task.redelivery import (
    check_result,
    completion_of,
    has_copy,
    ignores_result,
    is_redelivered,
    settle_copy,
)
from celery_distlock.task.run import ATTEMPT_HEADER, PREDECESSOR_PATIENCE, SINCE_HEADER, TICKET_HEADER, Run
from celery_distlock.task.unique import UniqueMessage, enter
from celery_distlock.waiting import poll_for

__all__ = ["run_traced"]

log = logging.getLogger(__name__)

#: Message headers that count how often a run was refused.
_OF_REFUSALS = frozenset((ATTEMPT_HEADER, SINCE_HEADER, TICKET_HEADER))


@dataclass
class _Skipped:
    """What a task returns that was not run."""

    result: Any


def run_traced(task: Any, request: Any, body: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Run ``body`` under the task's lock, for the tracer.

    Arguments:
        task: the :class:`~celery_distlock.LockedTask`.
        request: its :class:`celery.app.task.Context`.
        body: what to call with the arguments.
    """
    request.distlock_entered = True
    stack = frames()
    if stack and not request.is_eager:
        # Nothing runs below a worker's task: what is left here was left by a signal that struck between two lines.
        stack[:] = [frame for frame in stack if not isinstance(frame.subject, Context)]
    if request.headers and UNIQUE_HEADER in request.headers:
        enter(task, request)
    options: LockOptions = task._lock_checked_options_of(request.headers)
    key = task._lock_key_of(request.headers, args, kwargs)
    if key is None:
        _begin(task, request, options, Run.of(request, request.headers), None)
        _started(task, request)
        return body(*args, **kwargs)
    outer = holding(key, task._lock_store) if stack else None
    if outer is not None:
        request.distlock_frame = True
        stack.append(Frame(request, outer, owns=False))
        return body(*args, **kwargs)
    run = Run.of(request, request.headers)
    grant: Grant | _Skipped
    try:
        grant = _acquire(task, request, options, key, run, args, kwargs)
    except Parked as parked:
        # Celery takes the traceback apart and sends it to the main process, where nobody looks at it.
        raise parked.with_traceback(None) from None
    except StoreUnavailable as error:
        if options.on_store_error == "run":
            log.warning("Task %s[%s] runs without its lock %r: %s", task.name, run.id, key, error)
            request.distlock_unlocked = True
            _begin(task, request, options, run, key)
            _started(task, request)
            return body(*args, **kwargs)
        if options.on_store_error == "fail" or request.is_eager:
            raise
        log.warning("Task %s[%s] will be retried: %s", task.name, run.id, error)
        retry_later(task, options, run, key, error, ticket=ticket_of(request, task._lock_store))
    if isinstance(grant, _Skipped):
        return grant.result
    return _hold(task, request, options, grant, body, args, kwargs)


def _hold(
    task: Any, request: Any, options: LockOptions, grant: Grant, body: Callable[..., Any], args: Any, kwargs: Any
) -> Any:
    request.distlock_grant = grant
    # Before the frame: task_postrun takes away only what it is told of, and a time limit may strike in between.
    request.distlock_frame = True
    frames().append(Frame(request, grant.lock, owns=True))
    # Once granted, the refusals are history: a later retry by the task itself starts counting anew.
    headers = request.headers
    if headers and not _OF_REFUSALS.isdisjoint(headers):
        request.headers = {name: value for name, value in headers.items() if name not in _OF_REFUSALS}
    if lock_acquired.receivers:
        lock_acquired.send(sender=task, task_id=request.id, key=grant.lease.key, lock=grant.lock)
    _begin(task, request, options, grant.run, grant.lease.key)
    if task._lock_track_started:
        _started(task, request)
    result = body(*args, **kwargs)
    if not grant.lock.held:
        confirm(task, request.id, options, grant.lock)
    return result


def _begin(task: Any, request: Any, options: LockOptions, run: Run, key: str | None) -> None:
    """Tell the store that a unique message starts; without an answer the task follows ``lock_on_store_error``."""
    message: UniqueMessage | None = getattr(request, "distlock_unique", None)
    if message is None:
        return
    try:
        message.begin(options, run)
    except StoreUnavailable as error:
        if options.on_store_error == "fail":
            raise
        if options.on_store_error == "retry":
            retry_later(task, options, run, str(key), error)
        log.warning("Task %s[%s] runs without a word to the store: %s", task.name, run.id, error)


def _started(task: Any, request: Any) -> None:
    """Do what the tracer does for ``track_started``, now that the task really starts."""
    if task._lock_track_started and not request.is_eager and not ignores_result(task, request):
        meta = {"pid": os.getpid(), "hostname": request.hostname}
        task.backend.store_result(request.id, meta, states.STARTED, request=request)


def _acquire(
    task: Any, request: Any, options: LockOptions, key: str, run: Run, args: Any, kwargs: Any
) -> Grant | _Skipped:
    store: LockStore = task._lock_store
    if options.min_hold and not store.rests:
        raise cannot_rest(task.name, store)
    owner, cell = _identity(request)
    # Then a place is kept for this owner: asking confirms it, and whoever does not ask gives it back.
    called = is_called(request)
    limit = limit_of(task, options, args, kwargs)
    redelivered = is_redelivered(request)
    if cell is not None and not cell.asking(key, owner, options.ttl, limit):
        if not cell.belongs_to(owner):
            # The main process has given us up, with what it held under this name. We are too late, or it has lost its
            # connection: then the broker has delivered the message again, and that may be done by now.
            owner, called, redelivered = cells.late(owner), False, True
            if not cell.asking(key, owner, options.ttl, limit):
                owner, cell = new_owner(), None
        else:
            cell = None
    if called and cell is not None and not redelivered and not options.hold_on_retry:
        # Perhaps the main process has asked already, while we were sent for.
        fence, deadline = cell.gift(key, owner, options.ttl, limit) or (0, 0.0)
        if deadline > time.monotonic() + options.ttl / 2:
            lease = Lease(key, owner, fence, options.ttl, deadline, limit)
            return _granted(task, request, options, store, lease, cell, run)
    completion = completion_of(task, key, run.label) if task.acks_late and redelivered else None
    claim = Claim(key, owner, options.ttl, limit, record_of(task, run), completion, draws(task, request, options))
    try:
        answer: Lease | Contended | Completed
        question = inheriting(task, run) if options.hold_on_retry and not request.is_eager else ask
        if claim.limit > 1 and claim.completion is not None and has_copy(run, store.holders(key)):
            # With places left, the store would grant the copy of a running message one of its own.
            answer = Contended(key, tuple(store.holders(key)))
            if called:
                give_back(store, Lease.unknown(key, owner, options.ttl))
        else:
            number = None if called else ticket_of(request, store)
            answer = question(store, claim) if number is None else ask_with_ticket(store, claim, number)
        if isinstance(answer, Contended) and any(run.succeeds(holder) for holder in answer.holders):
            answer = poll_for(store, claim, PREDECESSOR_PATIENCE, answer, question)
        if isinstance(answer, Contended) and redelivered and has_copy(run, answer.holders):
            if cell is not None:
                cell.refused()
            answer = settle_copy(task, request, store, claim, run, answer)
        if isinstance(answer, Lease):
            return _granted(task, request, options, store, answer, cell, run)
        if cell is not None:
            cell.refused()
        if isinstance(answer, Completed):
            if called:
                give_back(store, Lease.unknown(key, owner, options.ttl))
            _turn_away(task, request, run)
        return _refused(task, request, options, run, claim, cell, answer, args, kwargs)
    except TaskPredicate:
        raise
    except BaseException as error:
        if cell is None:
            # With one, the main process sees to it when the request ends.
            disown(store, claim, error)
        raise


def _turn_away(task: Any, request: Any, run: Run) -> NoReturn:
    log.info("Task %s[%s]: this delivery has already done its work; not run again", task.name, run.id)
    check_result(task, request)
    raise Ignore(f"already completed as {run.label}")


def _identity(request: Any) -> tuple[str, cells.Cell | None]:
    """Return the owner and the cell that the supervising main process gave this request, or an owner of our own."""
    token = (request.properties or {}).get("distlock") if not request.is_eager else None
    if not token:
        return new_owner(), None
    owner, arena, index = token[:3]
    return owner, cells.attach(arena, index) if index is not None else None


def _granted(
    task: Any, request: Any, options: LockOptions, store: LockStore, lease: Lease, cell: cells.Cell | None, run: Run
) -> Grant:
    trust: Trust
    kept = None
    if cell is not None:
        cell.granted(lease)
        trust = cell
    else:
        trust = kept = keep_alive(task, request.id, store, lease, options.max_hold)
    return Grant(
        store,
        lease,
        HeldLock(lease, store, trust, options.max_hold),
        cell,
        kept,
        run,
        options.min_hold,
        options.ttl if options.hold_on_retry and not request.is_eager else None,
    )


# -- refused -----------------------------------------------------------------------------------------------------


def _refused(
    task: Any,
    request: Any,
    options: LockOptions,
    run: Run,
    claim: Claim,
    cell: cells.Cell | None,
    answer: Contended,
    args: Any,
    kwargs: Any,
) -> Grant | _Skipped:
    message: UniqueMessage | None = getattr(request, "distlock_unique", None)
    if message is not None:
        message.still_queued()
    since = (request.headers or {}).get(SINCE_HEADER)
    contention = Contention(
        answer.key, answer.holder, run.attempt, 0.0 if since is None else max(0.0, time.time() - since)
    )
    policy = decide(task, request.id, options, contention)
    error = LockContended(answer.key, answer.holder)
    if policy == "skip":
        return _Skipped(skip(task, request, options, contention))
    if policy == "fail":
        raise error
    if not request.is_eager:
        if policy == "wait":
            wait_parked(task, request, options, run, claim, answer)
        retry_later(task, options, run, answer.key, error, answer.holder)
    # Celery would run a Retry at once and recursively: wait in place instead.
    lease = wait_in_place(task._lock_store, options, claim, answer)
    return _granted(task, request, options, task._lock_store, lease, None, run)
