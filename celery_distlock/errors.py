"""Everything this library raises on purpose.

::

    DistLockError
     ├─ LockContended      somebody else holds the key        (.key, .holder)
     ├─ LockTimeout        waited for it as long as allowed   (.key, .waited, .holder)
     ├─ LockLost           held it, and somebody else got it  (.key, .reason)
     ├─ DuplicateTask      another one is queued, or runs     (.key, .id)
 ├─ StoreUnavailable   the store could not be asked       (.store, .reason)
     ├─ LockKeyError       these arguments make no key        (ValueError too)
     └─ LockConfigError    an option is wrong                 (ValueError too)

"Contended" is an answer, "unavailable" is the absence of one; the two are never mixed.

Celery's JSON result back ends keep ``exc.args`` and later call ``type(exc)(*args)``, so every class here is
constructed from positional, JSON-serialisable values and writes its sentence in ``__str__``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "DistLockError",
    "DuplicateTask",
    "LockConfigError",
    "LockContended",
    "LockKeyError",
    "LockLost",
    "LockTimeout",
    "StoreUnavailable",
    "describe",
]


def describe(holder: Mapping[str, Any] | None) -> str:
    """Say in a few words who holds a key.

    Arguments:
        holder: a :class:`~celery_distlock.lease.Holder`, or None where the store could not name one.
    """
    if not holder:
        return "an unknown holder"
    if holder.get("id"):
        who = f"task {holder.get('task') or '?'}[{holder['id']}]"
    elif holder.get("identifier"):
        who = f"{holder['identifier']!r}"
    else:
        who = f"owner {holder.get('owner', '?')}"
    if holder.get("host"):
        who += f" on {holder['host']}"
        if holder.get("pid"):
            who += f" (pid {holder['pid']})"
    return who


class DistLockError(Exception):
    """Base of every error raised by this library."""

    def __repr__(self) -> str:
        # Celery logs the repr of what a task is retried for: the sentence says more than the arguments.
        return f"{type(self).__name__}({str(self)!r})"


class LockContended(DistLockError):
    """The key is held by somebody else.

    Arguments:
        key: the contended key.
        holder: who holds it, as in :class:`~celery_distlock.lease.Holder`; None if unknown.
    """

    def __init__(self, key: str, holder: Mapping[str, Any] | None = None) -> None:
        self.key = key
        self.holder: dict[str, Any] | None = dict(holder) if holder else None
        super().__init__(key, self.holder)

    def __str__(self) -> str:
        return f"lock {self.key!r} is held by {describe(self.holder)}"


class LockTimeout(DistLockError):
    """The key did not become free in the time allowed.

    Arguments:
        key: the contended key.
        waited: seconds since the first attempt.
        holder: who held it at the last attempt; None if unknown.
    """

    def __init__(self, key: str, waited: float, holder: Mapping[str, Any] | None = None) -> None:
        self.key = key
        self.waited = waited
        self.holder: dict[str, Any] | None = dict(holder) if holder else None
        super().__init__(key, waited, self.holder)

    def __str__(self) -> str:
        return f"gave up on lock {self.key!r} after {self.waited:.3f} s; it is held by {describe(self.holder)}"


class LockLost(DistLockError):
    """The lock was held, and can no longer be relied upon.

    Arguments:
        key: the key that was held.
        reason: what is known: the store named a second holder, or has been silent past the deadline.
    """

    def __init__(self, key: str, reason: str) -> None:
        self.key = key
        self.reason = reason
        super().__init__(key, reason)

    def __str__(self) -> str:
        return f"lock {self.key!r} is no longer ours: {self.reason}"


class DuplicateTask(DistLockError):
    """A task was not published, for another one of its unique key has been (``on_duplicate="raise"``).

    Arguments:
        key: what must not be published twice.
        id: the other task's id.
    """

    def __init__(self, key: str, id: str) -> None:
        self.key = key
        self.id = id
        super().__init__(key, id)

    def __str__(self) -> str:
        return f"not published: task [{self.id}] is the one of {self.key!r}"


class StoreUnavailable(DistLockError):
    """The store of locks could not be asked, or did not answer in time.

    Whether the command took effect is not known. ``__cause__`` is the client library's own exception.

    Arguments:
        store: the store's address, without its password.
        reason: what the client library said.
    """

    def __init__(self, store: str, reason: str) -> None:
        self.store = store
        self.reason = reason
        super().__init__(store, reason)

    def __str__(self) -> str:
        return f"lock store {self.store} is unavailable: {self.reason}"


class LockKeyError(DistLockError, ValueError):
    """No key can be made of these arguments; the message names the task, the option and the argument."""


class LockConfigError(DistLockError, ValueError):
    """An option has a value it cannot have; the message names the option, the value and the allowed ones."""
