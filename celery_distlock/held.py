"""A granted lock as its holder sees it, and which locks the running code holds.

Whether a lock can still be relied upon is read from where its renewals are written: a shared cell that the worker's
main process keeps (:mod:`celery_distlock.cells`), or, without one, a :class:`SelfKept` lease that this process's own
thread renews. Either way reading it costs no round trip.

Re-entrancy follows the execution stack: every thread, and every greenlet, has its own list of frames. A nested call
on a key that a frame below it holds runs under that frame's lock; only the frame that acquired releases.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from celery_distlock.errors import DistLockError, LockLost, StoreUnavailable
from celery_distlock.keepalive import RENEWALS_PER_TTL, Kept, keeper
from celery_distlock.lease import Claim, Completed, Contended, Lease, Renewal, deadline_of
from celery_distlock.stores.base import LockStore

__all__ = [
    "Frame",
    "HeldLock",
    "SelfKept",
    "Trust",
    "ask",
    "current_lock",
    "disown",
    "frames",
    "give_back",
    "granted_at",
    "holding",
]

log = logging.getLogger(__name__)

TAKEN = "the store says that its place was given away"
SILENT = "the store has been silent past the lease's deadline"
TOO_LONG = "it has been held for longer than lock_max_hold"


class Trust(Protocol):
    """Where the latest word about a lease is written."""

    @property
    def deadline(self) -> float:
        """Until when the lease may be believed (monotonic seconds)."""

    @property
    def lost(self) -> bool:
        """True once the store said that the lease is over."""


class SelfKept(Kept):
    """A lease that this process's own keeper renews while a :class:`HeldLock` uses it, until :meth:`end`.

    Never without a user: an exception raised by a signal can strike before anybody owns it, and what nobody owns nobody
    ends.

    Arguments:
        store: where the lease lives.
        lease: what was granted.
        on_trouble: called once with :data:`TAKEN` or :data:`TOO_LONG` or, per silence, :data:`SILENT`, in the
            keeper's thread.
        max_hold: seconds after which it is not renewed any more; None: never.
    """

    def __init__(
        self,
        store: LockStore,
        lease: Lease,
        on_trouble: Callable[[str], None] | None = None,
        max_hold: float | None = None,
    ) -> None:
        self.store = store
        self.deadline = lease.deadline
        self.lost = False
        self.look_at = time.monotonic() + lease.ttl / RENEWALS_PER_TTL
        self._ttl = lease.ttl
        self._ends = math.inf if max_hold is None else granted_at(lease) + max_hold
        self._lease: Lease | None = lease
        self._on_trouble = on_trouble
        self._user: weakref.ref[Any] | None = None

    def used_by(self, user: Any) -> None:
        """Renew from now on, while ``user`` exists."""
        self._user = weakref.ref(user)
        keeper().listen_to(self.store)
        keeper().keep(self)

    def end(self) -> None:
        """Stop renewing; to be called before the release is sent, so that its effect is not taken for a loss."""
        self._lease = None
        keeper().drop(self)

    def lease(self) -> Lease | None:
        """Return the lease to renew; None once it has ended."""
        lease = self._lease
        if lease is not None and (self._user is None or self._user() is None):
            self.end()
            give_back(self.store, lease)
            return None
        if lease is not None and time.monotonic() >= self._ends:
            # Not given back at once: its holder may not have noticed yet.
            self.end()
            keeper().let_run_out(self.store, replace(lease, deadline=self.deadline))
            if self._on_trouble is not None:
                self._on_trouble(TOO_LONG)
            return None
        return None if lease is None else replace(lease, deadline=self.deadline)

    def ttl(self) -> float:
        """Return the lease's ttl in seconds."""
        return self._ttl

    def on_renewed(self, deadline: float) -> None:
        """Believe the lease until ``deadline``."""
        self.deadline = deadline

    def on_lost(self, answer: Renewal) -> None:
        """Stop believing the lease."""
        self.lost = True
        if self._on_trouble is not None:
            self._on_trouble(TAKEN)

    def on_unsure(self, lease: Lease, reason: Exception) -> None:
        """Report that the deadline passed in silence."""
        if self._on_trouble is not None:
            self._on_trouble(SILENT)


class HeldLock:
    """The lock the running code holds: ``self.lock`` in a task, :func:`current_lock` elsewhere.

    Attributes:
        key: what must not run twice at once.
        owner: random token of this execution.
        fence: a number that grows with every grant of the key; hand it to resources that can refuse smaller ones.
    """

    __slots__ = ("__weakref__", "_ends", "_lease", "_store", "_trust", "released")

    def __init__(self, lease: Lease, store: LockStore, trust: Trust, max_hold: float | None = None) -> None:
        self._lease = lease
        self._store = store
        self._trust = trust
        self._ends = math.inf if max_hold is None else granted_at(lease) + max_hold
        self.released = False
        if isinstance(trust, SelfKept):
            trust.used_by(self)

    @property
    def lease(self) -> Lease:
        """The lease as it was granted; its deadline is the first one."""
        return self._lease

    @property
    def key(self) -> str:
        """The key that is held."""
        return self._lease.key

    @property
    def owner(self) -> str:
        """The random token of this execution."""
        return self._lease.owner

    @property
    def fence(self) -> int:
        """The number of this grant."""
        return self._lease.fence

    def lives_in(self, store: LockStore) -> bool:
        """Return whether this is a lock in ``store``, or in another object's view of the same one."""
        return self._store is store or (self._store.name, self._store.prefix) == (store.name, store.prefix)

    @property
    def ttl(self) -> float:
        """Seconds for which the store believes a silent holder."""
        return self._lease.ttl

    @property
    def held(self) -> bool:
        """True while the lock can be relied upon; costs no round trip."""
        return not self.released and not self._trust.lost and time.monotonic() < self._deadline

    @property
    def remaining(self) -> float:
        """Seconds for which the lock can be relied upon without another word from the store; 0.0 if not held."""
        return max(0.0, self._deadline - time.monotonic()) if self.held else 0.0

    @property
    def _deadline(self) -> float:
        return min(self._trust.deadline, self._ends)

    @property
    def lost(self) -> bool:
        """True once the store said that somebody else may hold the key."""
        return self._trust.lost

    def check(self) -> None:
        """Return if the lock can be relied upon now.

        Costs no round trip: call it before every step that must not happen twice.

        Raises:
            LockLost: the key was given to somebody else, the store has been silent for too long, the lock was held
                for too long, or it was released.
        """
        if self.released:
            raise LockLost(self.key, "it has been released")
        if time.monotonic() >= self._ends:
            raise LockLost(self.key, TOO_LONG)
        if self._trust.lost:
            raise LockLost(self.key, TAKEN)
        if time.monotonic() >= self._trust.deadline:
            raise LockLost(self.key, SILENT)

    def confirm(self) -> str | None:
        """Say at the end of the work whether the lock was held through it; ask the store only past the deadline.

        Returns:
            None if it was held, :data:`TAKEN` if it is known that it was not, :data:`SILENT` if nobody can tell,
            :data:`TOO_LONG` if it was held for longer than it may be.
        """
        if time.monotonic() >= self._ends:
            return TOO_LONG
        if self._trust.lost:
            return TAKEN
        if time.monotonic() < self._trust.deadline:
            return None
        try:
            (answer,) = self._store.renew([self._lease])
        except StoreUnavailable:
            return SILENT
        return None if answer in (Renewal.HELD, Renewal.REASSERTED) else TAKEN

    def __repr__(self) -> str:
        state = "held" if self.held else "lost" if self._trust.lost else "released" if self.released else "unsure"
        return f"<{type(self).__name__} {self.key!r} fence={self.fence} {state}>"


def granted_at(lease: Lease) -> float:
    """Return the monotonic time before a lease that was never renewed was asked for."""
    return lease.deadline - deadline_of(0.0, lease.ttl)


@dataclass(slots=True)
class Frame:
    """One running piece of code and the lock it runs under.

    Attributes:
        subject: the task, :class:`~celery_distlock.Lock` or function that runs.
        lock: the lock.
        owns: whether this frame acquired it; the others re-entered.
    """

    subject: Any
    lock: HeldLock
    owns: bool


class _Local(threading.local):
    def __init__(self) -> None:
        self.frames: list[Frame] = []


_local = _Local()


def frames() -> list[Frame]:
    """Return the frames of this thread or greenlet, innermost last."""
    return _local.frames


def holding(key: str, store: LockStore) -> HeldLock | None:
    """Return the lock on ``key`` in ``store`` under which this thread or greenlet already runs."""
    for frame in reversed(_local.frames):
        if frame.lock.key == key and not frame.lock.released and frame.lock.lives_in(store):
            return frame.lock
    return None


def current_lock() -> HeldLock | None:
    """Return the innermost lock under which the calling code runs; None outside of any."""
    stack = _local.frames
    return stack[-1].lock if stack else None


def ask(store: LockStore, claim: Claim) -> Lease | Contended | Completed:
    """Ask once; if there is no answer, see to it that the claim is not granted behind our back.

    Raises:
        StoreUnavailable: there was no answer. Whatever the store may have granted is being given back.
    """
    try:
        return store.acquire(claim)
    except BaseException:
        # Not only StoreUnavailable: SIGTERM, a time limit or a killed greenlet can interrupt the wait for the reply.
        give_back(store, Lease.unknown(claim.key, claim.owner, claim.ttl))
        raise


def disown(store: LockStore, claim: Claim, error: BaseException) -> None:
    """Give back what ``claim`` may have been granted, after an ``error`` on the way from the question to its owner.

    Our own errors come from who has seen to it. Any other may have been raised by a signal, between any two lines.
    """
    if not isinstance(error, DistLockError):
        give_back(store, Lease.unknown(claim.key, claim.owner, claim.ttl))


def give_back(store: LockStore, lease: Lease) -> None:
    """Release ``lease`` in the background, until its deadline at the latest."""
    keeper().give_back(store, lease)


def _forget_frames() -> None:
    # The parent's locks are the parent's, though the code that took them goes on in both.
    _local.frames = []


os.register_at_fork(after_in_child=_forget_frames)
