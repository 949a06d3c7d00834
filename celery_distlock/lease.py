"""Claims, leases, and how long a lease may be believed.

Authority
    The store decides who holds a key. A :class:`Lease` is the store's answer to a :class:`Claim`; it is believed
    without asking again until its ``deadline``.

The trust formula
    ``deadline = (monotonic time before the request was sent) + ttl - drift``, with
    ``drift = 1 % of ttl + 2 ms``. The store starts counting when it executes the command, which is after it
    was sent; so the holder stops trusting its lease before the store stops believing the holder. The drift covers
    two clocks that tick at different rates (Redlock's formula; https://redis.io/docs/latest/develop/use/patterns/distributed-locks/).

States of a granted lease, as its holder sees them::

            granted, HELD, REASSERTED               the store answers HELD
      ┌──────────────┐   deadline passes   ┌────────────┐
      │     held     │ ──────────────────▶ │   unsure   │ ──▶ held
      └──────────────┘                     └────────────┘
             │   the store answers LOST, or GONE    │
             │   while we did not release           │
             └───────────────┬──────────────────────┘
                             ▼
                       ┌──────────┐
                       │   lost   │   final
                       └──────────┘

All durations are seconds as floats; all deadlines here are on ``time.monotonic()``, which on Linux is the same
clock in every process of a host.
"""

from __future__ import annotations

import enum
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

__all__ = [
    "Claim",
    "Completed",
    "Completion",
    "Contended",
    "Holder",
    "Lease",
    "Offer",
    "Renewal",
    "Ticket",
    "deadline_of",
    "new_owner",
]

_DRIFT_RATE = 0.01
_DRIFT_FLOOR = 0.002


def new_owner() -> str:
    """Return a random token of one execution: 32 hexadecimal digits."""
    return os.urandom(16).hex()


def deadline_of(sent: float, ttl: float) -> float:
    """Return until when a lease of ``ttl`` seconds, asked for at monotonic time ``sent``, may be believed."""
    return sent + ttl - (ttl * _DRIFT_RATE + _DRIFT_FLOOR)


class Holder(TypedDict, total=False):
    """What the store knows of one holder. Everything but key, owner, fence and remaining is told by the holder.

    ``since`` is wall-clock time (seconds since the epoch, the holder's clock), ``remaining`` is how many seconds the
    store will still believe it without hearing from it (negative: expired, and nobody else came). ``offered`` is True
    for a waiter that was offered the place and has not taken it yet, and absent otherwise; ``resting`` likewise for a
    place that was released before its shortest time was over.
    """

    key: str
    owner: str
    fence: int
    remaining: float
    since: float
    task: str
    id: str
    retries: int
    attempt: int
    depth: int
    host: str
    pid: int
    identifier: str
    offered: bool
    resting: bool


@dataclass(frozen=True)
class Completion:
    """The record that one delivery of a task did its work, kept until its message is known to be acknowledged.

    Attributes:
        key: the lock's key; the record lives beside the lock.
        run: which run: task id, retries and lock attempt, joined.
        ttl: seconds the store keeps it unless it is forgotten earlier.
    """

    key: str
    run: str
    ttl: float


# Not frozen, though nobody changes them: a frozen dataclass costs five times as much to make, for every task.
@dataclass(slots=True, unsafe_hash=True)
class Claim:
    """A wish to hold a key.

    Attributes:
        key: what must not run twice at once.
        owner: random token of this execution; asking twice with one owner is asking once.
        ttl: seconds a silent holder is believed.
        limit: how many may hold the key at once.
        record: what others may see of this holder: the optional fields of :class:`Holder`.
        completion: set on a redelivered message: if the store remembers it, the answer is :class:`Completed`.
        draws: whether a refusal is to be worth a place in the line, which is not taken as yet.
    """

    key: str
    owner: str
    ttl: float
    limit: int = 1
    record: Mapping[str, Any] = field(default_factory=dict)
    completion: Completion | None = None
    draws: bool = False


@dataclass(slots=True, unsafe_hash=True)
class Lease:
    """The right to hold ``key`` until ``deadline`` (monotonic seconds), renewed while the work goes on.

    ``fence`` grows with every grant of a key (limit 1). A fence of 0 means that it is not known whether the store
    granted the claim; releasing such a lease also forbids its owner to be granted the key by a command still under way.
    ``limit`` is the claim's: a store that lost its data has nobody else to ask how many may hold the key.
    ``rest`` counts when it is released: seconds for which the key stays taken after that, by nobody who could renew it.
    """

    key: str
    owner: str
    fence: int
    ttl: float
    deadline: float
    limit: int = 1
    rest: float = 0.0

    @classmethod
    def unknown(cls, key: str, owner: str, ttl: float) -> Lease:
        """Return what must be released when an acquire had no answer."""
        return cls(key, owner, 0, ttl, time.monotonic() + ttl)

    @property
    def remaining(self) -> float:
        """Seconds until the deadline; negative once it has passed."""
        return self.deadline - time.monotonic()


@dataclass(frozen=True)
class Contended:
    """The store's answer "no": who holds the key, oldest first (empty when only waiters stand before us).

    ``number`` is that of a place at the end of the line, for a claim that ``draws``, if the store has any to give.
    """

    key: str
    holders: tuple[Holder, ...] = ()
    number: int | None = None

    @property
    def holder(self) -> Holder | None:
        """The oldest holder, or None."""
        return self.holders[0] if self.holders else None


@dataclass(frozen=True)
class Completed:
    """The store's answer "this very delivery has already done its work"."""

    key: str
    run: str


@dataclass(frozen=True)
class Ticket:
    """A claim's place in the line of those who wait for a key.

    Attributes:
        claim: what is waited for.
        number: the place: the smaller one is served first. It stays the owner's own after it has left the line.
        ahead: how many wait before it, as of the store's answer.
        look_at: monotonic time from which asking again may tell something new, if that is known to the store: the
            holder's lease or an unanswered offer ends then. Infinite if not.
    """

    claim: Claim
    number: int
    ahead: int
    look_at: float = math.inf

    @property
    def key(self) -> str:
        """What is waited for."""
        return self.claim.key

    @property
    def owner(self) -> str:
        """Who waits."""
        return self.claim.owner


@dataclass(frozen=True)
class Offer:
    """A place kept free for a waiter until ``deadline`` (monotonic seconds). It is no lease until it is confirmed.

    Attributes:
        claim: what was waited for.
        number: of the waiter's ticket.
        deadline: when the place is offered to the next one, unless it was confirmed.
    """

    claim: Claim
    number: int
    deadline: float

    @property
    def key(self) -> str:
        """What is offered."""
        return self.claim.key

    @property
    def owner(self) -> str:
        """To whom it is offered."""
        return self.claim.owner


class Renewal(enum.IntEnum):
    """What the store says of one lease when asked to renew it."""

    #: Still listed (perhaps expired meanwhile, but nobody came); its time starts anew.
    HELD = 1
    #: The store had lost its data, the key was free, and the lease was entered again with its old fence.
    REASSERTED = 2
    #: Not listed, and the store remembers no reason: it was released.
    GONE = 3
    #: Its place was given to somebody else, or it was released by force.
    LOST = 4
