"""One attempt to run a task under its lock.

Two ways in
    *Traced* – called by Celery's tracer, in a worker or eagerly. The lock is released by ``task_postrun``: after the
    result was stored and the callbacks were published, and also for Retry, Ignore, Reject and SIGTERM.
    *Direct* – called as a function. There is no tracer, so the lock is released when the call returns.

::

    __call__ ─ key? ─none──────────────────────────────────────────────▶ body
                │ held by a frame below us ────────────────────────────▶ body (under that frame's lock)
                ▼
             acquire ─ granted ──────────────────────▶ body ─ still ours? ─▶ result ─▶ task_postrun ─▶ release
                │   ├─ completed (redelivered copy) ─▶ Ignore: acknowledged, result untouched
                │   ├─ contended by our predecessor ─▶ wait in place, 1 s at most
                │   ├─ contended by ourselves ───────▶ Parked: the broker delivered one message twice
                │   └─ contended ────────────────────▶ the task's policy
                └─ no answer ────────────────────────▶ lock_on_store_error

Authority
    The store. The worker's main process reads, from the request's cell, what this executor was granted; it renews
    it and gives it back should this process die. Without a cell (no supervising worker) this process keeps it alive.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery import signals, states
from celery.exceptions import Ignore

from celery_distlock import cells
from celery_distlock.errors import LockContended, LockLost, LockTimeout, StoreUnavailable, describe
from celery_distlock.held import SILENT, TAKEN, Frame, HeldLock, SelfKept, Trust, ask, frames, give_back, holding
from celery_distlock.keepalive import keeper
from celery_distlock.lease import Claim, Completed, Completion, Contended, Lease, new_owner
from celery_distlock.options import LockOptions
from celery_distlock.signals import lock_acquired, lock_lost, lock_released, lock_unsure
from celery_distlock.stores.base import LockStore
from celery_distlock.task import event_loop
from celery_distlock.task.contention import Contention, decide, retry_later, skip
from celery_distlock.task.run import ATTEMPT_HEADER, SINCE_HEADER, Run
from celery_distlock.waiting import poll_for, wait_for

__all__ = ["Parked", "run_direct", "run_traced"]

log = logging.getLogger(__name__)

#: How long a task waits in place for its predecessor (the release comes a moment after its successor is published).
PREDECESSOR_PATIENCE = 1.0
#: How often a copy looks whether the original is done where nobody can park it, in seconds.
_COPY_PAUSE = 0.5

_HOST = socket.gethostname()


class Parked(Ignore):  # type: ignore[misc]  # Celery has no type hints
    """Raised in the executor: the main process keeps the unacknowledged message and tries again later."""


@dataclass
class _Grant:
    """What the tracer's frame holds until ``task_postrun``; kept on the request's context."""

    store: LockStore
    lease: Lease
    lock: HeldLock
    cell: cells.Cell | None
    kept: SelfKept | None
    run: Run


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
    options: LockOptions = task._lock_checked_options_of(request)
    key = task._lock_key_of(request, args, kwargs)
    if key is None:
        return body(*args, **kwargs)
    outer = holding(key)
    if outer is not None:
        frames().append(Frame(request, outer, owns=False))
        request.distlock_frame = True
        return body(*args, **kwargs)
    run = Run.of(request, request.headers)
    grant: _Grant | _Skipped | Contended
    try:
        grant = _acquire(task, request, options, key, run, args, kwargs)
        if isinstance(grant, Contended):
            grant = _refused(task, request, options, run, grant, args, kwargs)
    except StoreUnavailable as error:
        if options.on_store_error == "run":
            log.warning("Task %s[%s] runs without its lock %r: %s", task.name, run.id, key, error)
            return body(*args, **kwargs)
        if options.on_store_error == "fail" or request.is_eager:
            raise
        log.warning("Task %s[%s] will be retried: %s", task.name, run.id, error)
        retry_later(task, options, run, key, error)
    if isinstance(grant, _Skipped):
        return grant.result
    return _hold(task, request, options, grant, body, args, kwargs)


def _hold(
    task: Any, request: Any, options: LockOptions, grant: _Grant, body: Callable[..., Any], args: Any, kwargs: Any
) -> Any:
    request.distlock_grant = grant
    frames().append(Frame(request, grant.lock, owns=True))
    request.distlock_frame = True
    # Once granted, the refusals are history: a later retry by the task itself starts counting anew.
    for header in (ATTEMPT_HEADER, SINCE_HEADER):
        if request.headers and header in request.headers:
            request.headers = {name: value for name, value in request.headers.items() if name != header}
    lock_acquired.send(sender=task, task_id=request.id, key=grant.lock.key, lock=grant.lock)
    result = body(*args, **kwargs)
    _still_ours(task, request.id, options, grant.lock)
    return result


def _still_ours(task: Any, task_id: str | None, options: LockOptions, lock: HeldLock) -> None:
    """Keep a result from being stored as a success when somebody else held the key at the same time."""
    what = lock.confirm()
    if what is None:
        return
    if (what is TAKEN and options.on_lost == "abort") or (what is SILENT and options.on_unsure == "abort"):
        raise LockLost(lock.key, what)
    log.warning("Task %s[%s] ended without being sure of its lock %r: %s", task.name, task_id, lock.key, what)


def _acquire(
    task: Any, request: Any, options: LockOptions, key: str, run: Run, args: Any, kwargs: Any
) -> _Grant | Contended:
    store: LockStore = task._lock_store
    owner, cell = _identity(request)
    claim = Claim(
        key,
        owner,
        options.ttl,
        _limit(task, options, args, kwargs),
        {
            "task": task.name,
            "id": run.id,
            "retries": run.retries,
            "attempt": run.attempt,
            "depth": run.depth,
            "host": _HOST,
            "pid": os.getpid(),
            "since": time.time(),
        },
        _completion(task, key, run) if _may_be_copy(task, request) else None,
    )
    if cell is not None and not cell.asking(key, owner, options.ttl, claim.limit):
        cell = None
    answer: Lease | Contended | Completed
    if claim.limit > 1 and claim.completion is not None and _copies(run, store.holders(key)):
        # With places left, the store would grant the copy of a running message one of its own.
        answer = Contended(key, tuple(store.holders(key)))
    else:
        answer = ask(store, claim)
    if isinstance(answer, Contended) and any(run.succeeds(holder) for holder in answer.holders):
        answer = poll_for(store, claim, PREDECESSOR_PATIENCE, answer)
    if isinstance(answer, Contended) and _copies(run, answer.holders):
        answer = _copied(task, request, store, claim, run, answer)
    if isinstance(answer, Lease):
        return _granted(task, request, store, answer, cell, run)
    if cell is not None:
        cell.refused()
    if isinstance(answer, Completed):
        log.info("Task %s[%s]: this delivery has already done its work; not run again", task.name, run.id)
        raise Ignore(f"already completed as {run.label}")
    return answer


def _identity(request: Any) -> tuple[str, cells.Cell | None]:
    """Return the owner and the cell that the supervising main process gave this request, or an owner of our own."""
    token = (request.properties or {}).get("distlock") if not request.is_eager else None
    if not token:
        return new_owner(), None
    owner, arena, index = token
    return owner, cells.attach(arena, index) if index is not None else None


def _granted(task: Any, request: Any, store: LockStore, lease: Lease, cell: cells.Cell | None, run: Run) -> _Grant:
    trust: Trust
    kept = None
    if cell is not None:
        cell.granted(lease)
        trust = cell
    else:
        trust = kept = _self_kept(task, request.id, store, lease)
    return _Grant(store, lease, HeldLock(lease, store, trust), cell, kept, run)


def _self_kept(task: Any, task_id: str | None, store: LockStore, lease: Lease) -> SelfKept:
    def on_trouble(what: str) -> None:
        log.warning("Task %s[%s]: lock %r: %s", task.name, task_id, lease.key, what)
        signal = lock_lost if what is TAKEN else lock_unsure
        signal.send(sender=task, task_id=task_id, key=lease.key, owner=lease.owner, fence=lease.fence)

    return SelfKept(store, lease, on_trouble)


def _limit(task: Any, options: LockOptions, args: Any, kwargs: Any) -> int:
    if not callable(options.limit):
        return options.limit
    limit = options.limit(*args, **kwargs)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ValueError(f"task {task.name}: lock_limit returned {limit!r}; it must return an int >= 1")
    return limit


# -- redelivered copies ------------------------------------------------------------------------------------------


def _may_be_copy(task: Any, request: Any) -> bool:
    return bool(task.acks_late and request.delivery_info and request.delivery_info.get("redelivered"))


def _completion(task: Any, key: str, run: Run) -> Completion:
    return Completion(key, run.label, task._lock_completion_ttl)


def _copies(run: Run, holders: Any) -> bool:
    return any(run.is_copy_of(holder) for holder in holders)


def _copied(
    task: Any, request: Any, store: LockStore, claim: Claim, run: Run, answer: Contended
) -> Lease | Contended | Completed:
    """Deal with a message that was delivered again while its first copy runs."""
    if not task.acks_late:
        log.info("Task %s[%s]: delivered again while it runs; this copy is dropped", task.name, run.id)
        raise Ignore("a copy of a running task")
    if (request.properties or {}).get("distlock"):
        raise Parked(f"a copy of a running task; lock {claim.key!r} is held by {describe(answer.holder)}")
    # Without our main process nobody can park it, and acknowledging it would delete the original's message.
    got: Lease | Contended | Completed = answer
    while isinstance(got, Contended) and _copies(run, got.holders):
        time.sleep(_COPY_PAUSE)
        got = ask(store, claim)
    return got


# -- refused -----------------------------------------------------------------------------------------------------


def _refused(
    task: Any, request: Any, options: LockOptions, run: Run, answer: Contended, args: Any, kwargs: Any
) -> _Grant | _Skipped:
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
            task._lock_warn_once("wait is not available in this version; the task is retried instead")
        retry_later(task, options, run, answer.key, error, answer.holder)
    # Celery would run a Retry at once and recursively: wait in place instead.
    lease = _wait_in_place(task, options, answer, run, args, kwargs)
    return _granted(task, request, task._lock_store, lease, None, run)


def _wait_in_place(task: Any, options: LockOptions, answer: Contended, run: Run, args: Any, kwargs: Any) -> Lease:
    record = {"task": task.name, "id": run.id, "host": _HOST, "pid": os.getpid(), "since": time.time()}
    claim = Claim(answer.key, new_owner(), options.ttl, _limit(task, options, args, kwargs), record)
    started = time.monotonic()
    got = wait_for(task._lock_store, claim, options.timeout, answer)
    if isinstance(got, Lease):
        return got
    raise LockTimeout(answer.key, time.monotonic() - started, getattr(got, "holder", None))


# -- the end -----------------------------------------------------------------------------------------------------


def _on_postrun(sender: Any = None, task: Any = None, state: str | None = None, retval: Any = None, **_: Any) -> None:
    request = task.request_stack.top
    if request is None or not getattr(request, "distlock_frame", False):
        return
    stack = frames()
    stack[:] = [frame for frame in stack if frame.subject is not request]
    grant: _Grant | None = getattr(request, "distlock_grant", None)
    if grant is not None:
        _release(task, request, grant, _leaves_record(task, request, state, retval))


# Tracers look at the receivers when they are built, so this is connected at import, and for good.
signals.task_postrun.connect(_on_postrun, weak=False, dispatch_uid="celery_distlock.release")


def _leaves_record(task: Any, request: Any, state: str | None, retval: Any) -> bool:
    """Return whether this ending means that the message must not do its work again."""
    if not task.acks_late or request.is_eager:
        return False
    if state == states.REJECTED or (state == states.FAILURE and not task.acks_on_failure):
        # It goes back to its queue, or to where dead letters go, and what comes back from there is meant to run. Only
        # the main process rejects it, and reports that: if it dies before it can, the next delivery has to.
        return False
    # None: killed on the way, the work is not known to be done.
    return state is not None


def _release(task: Any, request: Any, grant: _Grant, complete: bool) -> None:
    lock, lease = grant.lock, grant.lease
    lock.released = True
    completion = _completion(task, lease.key, grant.run) if complete else None
    if grant.kept is not None:
        grant.kept.end()
    if grant.cell is not None:
        grant.cell.releasing(complete)
    try:
        (ours,) = grant.store.release([lease], [completion])
    except StoreUnavailable as error:
        log.warning("Task %s[%s]: lock %r will be released later: %s", task.name, request.id, lease.key, error)
        _release_later(grant, completion)
        return
    except BaseException:
        _release_later(grant, completion)
        raise
    if grant.cell is not None:
        grant.cell.done()
    if not ours:
        log.warning("Task %s[%s]: lock %r was no longer ours when it was released", task.name, request.id, lease.key)
    lock_released.send(sender=task, task_id=request.id, key=lease.key, owner=lease.owner, fence=lease.fence)


def _release_later(grant: _Grant, completion: Completion | None) -> None:
    # With a cell the main process sees RELEASING and goes on: it outlives this child.
    if grant.cell is None:
        keeper().give_back(grant.store, grant.lease, completion)


# -- direct calls ------------------------------------------------------------------------------------------------


def run_direct(task: Any, body: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Run ``body`` under the task's lock, for a caller that called the task as a function.

    Raises:
        LockContended: the policy is ``fail``.
        LockTimeout: the policy is ``retry`` or ``wait``, and ``lock_timeout`` passed.
        StoreUnavailable: the store could not be asked, and ``lock_on_store_error`` is not ``run``.
        LockLost: the lock was found lost after the body returned.
    """
    options: LockOptions = task._lock_options
    key = task._lock_key_of(None, args, kwargs)
    if key is None:
        return body(*args, **kwargs)
    outer = holding(key)
    if outer is not None:
        return _framed(Frame(task, outer, owns=False), body, args, kwargs)
    if event_loop.is_here():
        return event_loop.run_beside(task.name, lambda: run_direct(task, body, args, kwargs))
    store: LockStore = task._lock_store
    run = Run(None)
    record = {"task": task.name, "host": _HOST, "pid": os.getpid(), "since": time.time()}
    claim = Claim(key, new_owner(), options.ttl, _limit(task, options, args, kwargs), record)
    try:
        answer = ask(store, claim)
        if isinstance(answer, Contended):
            contention = Contention(key, answer.holder, 0, 0.0)
            policy = decide(task, None, options, contention)
            if policy == "skip":
                return skip(task, None, options, contention)
            if policy == "fail":
                raise LockContended(key, answer.holder)
            answer = _wait_in_place(task, options, answer, run, args, kwargs)
    except StoreUnavailable as error:
        if options.on_store_error != "run":
            raise
        log.warning("Task %s runs without its lock %r: %s", task.name, key, error)
        return body(*args, **kwargs)
    assert isinstance(answer, Lease)
    kept = _self_kept(task, None, store, answer)
    lock = HeldLock(answer, store, kept)
    lock_acquired.send(sender=task, task_id=None, key=key, lock=lock)
    try:
        result = _framed(Frame(task, lock, owns=True), body, args, kwargs)
        _still_ours(task, None, options, lock)
        return result
    finally:
        _release_direct(task, store, answer, lock, kept)


def _framed(frame: Frame, body: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    stack = frames()
    stack.append(frame)
    try:
        return body(*args, **kwargs)
    finally:
        stack[:] = [other for other in stack if other is not frame]


def _release_direct(task: Any, store: LockStore, lease: Lease, lock: HeldLock, kept: SelfKept) -> None:
    lock.released = True
    kept.end()
    try:
        store.release([lease])
    except StoreUnavailable as error:
        log.warning("Task %s: lock %r will be released later: %s", task.name, lease.key, error)
        give_back(store, lease)
    except BaseException:
        give_back(store, lease)
        raise
    else:
        lock_released.send(sender=task, task_id=None, key=lease.key, owner=lease.owner, fence=lease.fence)
