"""A task called as a function: there is no tracer, so the lock is released when the call returns.

There is no message to publish again either: ``retry`` and ``wait`` wait in place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery_distlock.errors import LockContended, StoreUnavailable
from celery_distlock.held import Frame, HeldLock, SelfKept, ask, disown, frames, give_back, holding
from celery_distlock.lease import Claim, Contended, Lease, new_owner
from celery_distlock.options import LockOptions
from celery_distlock.signals import lock_acquired, lock_released
from celery_distlock.stores.base import LockStore
from celery_distlock.task import event_loop
from celery_distlock.task.contention import Contention, decide, skip
from celery_distlock.task.grant import at_release, cannot_rest, confirm, keep_alive, limit_of, record_of, wait_in_place
from celery_distlock.task.run import Run

__all__ = ["run_direct"]

log = logging.getLogger(__name__)


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
    outer = holding(key, task._lock_store) if frames() else None
    if outer is not None:
        return _framed(Frame(task, outer, owns=False), body, args, kwargs)
    if event_loop.is_here():
        return event_loop.run_beside(task.name, lambda: run_direct(task, body, args, kwargs))
    store: LockStore = task._lock_store
    if options.min_hold and not store.rests:
        raise cannot_rest(task.name, store)
    run = Run(None)
    claim = Claim(key, new_owner(), options.ttl, limit_of(task, options, args, kwargs), record_of(task, run))
    try:
        answer = ask(store, claim)
        if isinstance(answer, Contended):
            contention = Contention(key, answer.holder, 0, 0.0)
            policy = decide(task, None, options, contention)
            if policy == "skip":
                return skip(task, None, options, contention)
            if policy == "fail":
                raise LockContended(key, answer.holder)
            answer = wait_in_place(store, options, claim, answer)
        assert isinstance(answer, Lease)
        kept = keep_alive(task, None, store, answer, options.max_hold)
        lock = HeldLock(answer, store, kept, options.max_hold)
    except StoreUnavailable as error:
        if options.on_store_error != "run":
            raise
        log.warning("Task %s runs without its lock %r: %s", task.name, key, error)
        return body(*args, **kwargs)
    except BaseException as error:
        disown(store, claim, error)
        raise
    lock_acquired.send(sender=task, task_id=None, key=key, lock=lock)
    try:
        result = _framed(Frame(task, lock, owns=True), body, args, kwargs)
        confirm(task, None, options, lock)
        return result
    finally:
        lease = at_release(answer, options.min_hold) if options.min_hold else answer
        _release_direct(task, store, lease, lock, kept)


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
