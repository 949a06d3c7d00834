"""celery-distlock: a Celery task runs only while it holds a distributed lock named by its own arguments."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from celery_distlock.errors import DistLockError as DistLockError
    from celery_distlock.errors import DuplicateTask as DuplicateTask
    from celery_distlock.errors import LockConfigError as LockConfigError
    from celery_distlock.errors import LockContended as LockContended
    from celery_distlock.errors import LockKeyError as LockKeyError
    from celery_distlock.errors import LockLost as LockLost
    from celery_distlock.errors import LockTimeout as LockTimeout
    from celery_distlock.errors import StoreUnavailable as StoreUnavailable
    from celery_distlock.held import HeldLock as HeldLock
    from celery_distlock.held import current_lock as current_lock
    from celery_distlock.lease import Lease as Lease
    from celery_distlock.lock import Lock as Lock
    from celery_distlock.lock import locked as locked
    from celery_distlock.options import LockOptions as LockOptions
    from celery_distlock.task import Contention as Contention
    from celery_distlock.task import LockedTask as LockedTask
    from celery_distlock.task.rebase import lock_tasks as lock_tasks
    from celery_distlock.unique import unique_send_task as unique_send_task

# Loaded on first use: a program that only takes a Lock does not pay for Celery's worker, nor one that only catches
# an error for anything.
_HOME = {
    "Contention": "task",
    "DistLockError": "errors",
    "DuplicateTask": "errors",
    "HeldLock": "held",
    "Lease": "lease",
    "Lock": "lock",
    "LockConfigError": "errors",
    "LockContended": "errors",
    "LockKeyError": "errors",
    "LockLost": "errors",
    "LockOptions": "options",
    "LockTimeout": "errors",
    "LockedTask": "task",
    "StoreUnavailable": "errors",
    "current_lock": "held",
    "lock_tasks": "task.rebase",
    "locked": "lock",
    "unique_send_task": "unique",
}

__all__ = sorted([*_HOME, "__version__"])  # a list of names, computed


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
