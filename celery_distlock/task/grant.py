"""What an attempt asks for, how it keeps what it got, and makes sure of it: for traced and direct calls alike."""

from __future__ import annotations

import logging
import os
import socket
import time
from dataclasses import replace
from typing import Any

from celery_distlock.errors import LockConfigError, LockLost, LockTimeout
from celery_distlock.held import SILENT, TAKEN, TOO_LONG, HeldLock, SelfKept, granted_at
from celery_distlock.lease import Claim, Contended, Lease
from celery_distlock.options import LockOptions
from celery_distlock.signals import lock_lost, lock_unsure
from celery_distlock.stores.base import LockStore
from celery_distlock.task.run import Run
from celery_distlock.waiting import wait_for

__all__ = ["at_release", "cannot_rest", "confirm", "keep_alive", "limit_of", "record_of", "wait_in_place"]

log = logging.getLogger(__name__)

_HOST = socket.gethostname()


def record_of(task: Any, run: Run) -> dict[str, Any]:
    """Return what others may see of this run while it holds its key."""
    record = {"task": task.name, "host": _HOST, "pid": os.getpid(), "since": time.time()}
    if run.id is not None:
        record.update(id=run.id, retries=run.retries, attempt=run.attempt, depth=run.depth)
    return record


def limit_of(task: Any, options: LockOptions, args: Any, kwargs: Any) -> int:
    """Return how many may hold the key of this call.

    Raises:
        ValueError: the callable returned something else than a number of at least 1.
    """
    if not callable(options.limit):
        return options.limit
    limit = options.limit(*args, **kwargs)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ValueError(f"task {task.name}: lock_limit returned {limit!r}; it must return an int >= 1")
    return limit


def keep_alive(
    task: Any, task_id: str | None, store: LockStore, lease: Lease, max_hold: float | None = None
) -> SelfKept:
    """Have this process renew the lease, since no main process does."""

    def on_trouble(what: str) -> None:
        log.warning("Task %s[%s]: lock %r: %s", task.name, task_id, lease.key, what)
        signal = lock_unsure if what is SILENT else lock_lost
        signal.send(sender=task, task_id=task_id, key=lease.key, owner=lease.owner, fence=lease.fence)

    return SelfKept(store, lease, on_trouble, max_hold)


def wait_in_place(store: LockStore, options: LockOptions, claim: Claim, answer: Contended) -> Lease:
    """Wait for the key where there is no message to publish again.

    Arguments:
        answer: how the claim was refused just now.

    Raises:
        LockTimeout: ``lock_timeout`` passed.
        StoreUnavailable: the store could not be asked.
    """
    started = time.monotonic()
    got = wait_for(store, claim, options.timeout, answer)
    if isinstance(got, Lease):
        return got
    raise LockTimeout(answer.key, time.monotonic() - started, getattr(got, "holder", None))


def at_release(lease: Lease, min_hold: float) -> Lease:
    """Return the lease as it is to be released: its key stays taken until ``min_hold`` seconds from its grant."""
    return replace(lease, rest=max(0.0, granted_at(lease) + min_hold - time.monotonic()))


def cannot_rest(name: str, store: LockStore) -> LockConfigError:
    """Return the error for a task that has a shortest time and a store that knows of none."""
    return LockConfigError(f"task {name}: lock_min_hold needs a store that can keep it, which {store.name} cannot")


def confirm(task: Any, task_id: str | None, options: LockOptions, lock: HeldLock) -> None:
    """Keep a result from being stored as a success when somebody else held the key at the same time."""
    what = lock.confirm()
    if what is None:
        return
    if (
        (what is TAKEN and options.on_lost == "abort")
        or (what is SILENT and options.on_unsure == "abort")
        or what is TOO_LONG
    ):
        raise LockLost(lock.key, what)
    log.warning("Task %s[%s] ended without being sure of its lock %r: %s", task.name, task_id, lock.key, what)
