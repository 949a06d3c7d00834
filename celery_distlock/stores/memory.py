"""Locks of one process, for eager mode and unit tests: ``memory://name``.

Authority
    One table per (name, prefix), shared by every :class:`MemoryStore` of that name and prefix in this process, and
    guarded by one mutex. Its time is the store's clock. A claim, a renewal or a release is decided under the mutex.

A holder and the table::

     acquire            time passes              a grant needs its place
    ────────▶ listed ───────────────▶ expired ──────────────────────────▶ tombstone ──▶ nothing
                │  ▲                  (listed)                            (LOST)
                │  └─── renew: HELD ─────┘
                └── release ──▶ nothing (GONE)

A waiter and the table: see :class:`~celery_distlock.stores.base.Queueing`. Hints are given outside of the mutex,
in the thread that has freed the place.

What it is not
    Nothing is shared between processes. A forked child starts with empty tables, as a server restarted without its
    data would: a key held in the parent is free in the child. Never use it with worker pools of several processes.

Expired holders, tombstones and barred owners are kept for an hour, completion records for their own ttl; whatever is
due is dropped by the next call, so the tables are bounded by what happened within that hour.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast
from urllib.parse import urlsplit

from celery_distlock.errors import LockConfigError
from celery_distlock.lease import (
    Claim,
    Completed,
    Completion,
    Contended,
    Holder,
    Lease,
    Offer,
    Renewal,
    Ticket,
    deadline_of,
    new_owner,
)
from celery_distlock.stores.base import EventLoop, Listener, LockStore, PassingOn, Queueing, Uniqueness
from celery_distlock.stores.expiring import Expiring
from celery_distlock.stores.token_rules import Tokens
from celery_distlock.tokens import Begun, Duplicate, Reserved, Superseded, Token, running_key

__all__ = ["MemoryStore"]

#: Seconds for which an expired holder stays listed, and for which tombstones and bars are remembered.
_MEMORY = 3600.0

# Wall-clock microseconds to start with, so that the fences of a restarted process are above those of its predecessor.
# Tickets are numbered by the same count.
_fences = itertools.count(time.time_ns() // 1000)


@dataclass
class _Held:
    key: str
    owner: str
    fence: int
    expires: float
    record: Mapping[str, Any]
    #: Set until the waiter that was offered this place has taken it.
    offer: _Waiter | None = None
    #: Released before its shortest time was over.
    resting: bool = False


@dataclass
class _Waiter:
    claim: Claim
    number: int
    listener: str
    patience: float


@dataclass
class _Queue:
    """The waiters of one key."""

    by_owner: dict[str, _Waiter] = field(default_factory=dict)
    #: (number, owner), sorted.
    order: list[tuple[int, str]] = field(default_factory=list)

    def add(self, waiter: _Waiter) -> None:
        self.by_owner[waiter.claim.owner] = waiter
        bisect.insort(self.order, (waiter.number, waiter.claim.owner))

    def remove(self, waiter: _Waiter) -> None:
        del self.by_owner[waiter.claim.owner]
        del self.order[self.ahead_of(waiter)]

    def ahead_of(self, waiter: _Waiter) -> int:
        return bisect.bisect_left(self.order, (waiter.number, waiter.claim.owner))


@dataclass
class _Table:
    """The data of one name; every access is under its mutex."""

    mutex: threading.Lock = field(default_factory=threading.Lock)
    #: Leases with a smaller fence were granted before the data were lost.
    epoch: int = field(default_factory=lambda: next(_fences))
    #: key → owner → holder. No key without a holder.
    holders: dict[str, dict[str, _Held]] = field(default_factory=dict)
    #: When the holders above leave the table although nobody came.
    listed: Expiring[_Held] = field(default_factory=Expiring)
    tombstones: Expiring[None] = field(default_factory=Expiring)
    barred: Expiring[None] = field(default_factory=Expiring)
    completions: Expiring[None] = field(default_factory=Expiring)
    #: key → those who wait for it. No key without a waiter.
    queues: dict[str, _Queue] = field(default_factory=dict)
    #: When waiters are taken for gone, and when offers end.
    patience: Expiring[_Waiter] = field(default_factory=Expiring)
    #: (listener, key, owner) of offers made since the mutex was taken.
    hints: list[tuple[str, str, str]] = field(default_factory=list)
    tokens: Tokens = field(default_factory=Tokens)

    @contextlib.contextmanager
    def opened(self, now: float) -> Iterator[None]:
        """Hold the mutex; begin with what has become due, and give the hints afterwards."""
        with self.mutex:
            self.purge(now)
            try:
                yield
            finally:
                hints, self.hints = self.hints, []
        for listener, key, owner in hints:
            on_offer = _listening.get(listener)
            if on_offer is not None:
                on_offer(key, owner)

    def purge(self, now: float) -> None:
        for held in self.listed.purge(now):
            self._unlist(held)
        for memories in (self.tombstones, self.barred, self.completions):
            memories.purge(now)
        self.tokens.purge(now)
        overdue = self.patience.purge(now)
        for waiter in overdue:
            self.drop(waiter.claim.key, waiter.claim.owner)
        for key in {waiter.claim.key for waiter in overdue}:
            self.settle(key, now)

    # -- the line --

    def waiter(self, key: str, owner: str) -> _Waiter | None:
        queue = self.queues.get(key)
        return queue.by_owner.get(owner) if queue is not None else None

    def join(self, waiter: _Waiter, now: float) -> None:
        self.queues.setdefault(waiter.claim.key, _Queue()).add(waiter)
        self.refresh(waiter, now)

    def refresh(self, waiter: _Waiter, now: float) -> None:
        self.patience.put((waiter.claim.key, waiter.claim.owner), now + waiter.patience, waiter)

    def leave(self, waiter: _Waiter) -> None:
        queue = self.queues[waiter.claim.key]
        queue.remove(waiter)
        if not queue.order:
            del self.queues[waiter.claim.key]

    def drop(self, key: str, owner: str) -> None:
        """Take an owner out of the line, and its offer back; a lease is not touched."""
        self.patience.pop((key, owner))
        waiter = self.waiter(key, owner)
        if waiter is not None:
            self.leave(waiter)
        held = self.holders.get(key, {}).get(owner)
        if held is not None and held.offer is not None:
            self.remove(held)

    def settle(self, key: str, now: float) -> None:
        """Offer what places there are to those who wait, first in, first out."""
        while key in self.queues:
            queue = self.queues[key]
            waiter = queue.by_owner[queue.order[0][1]]
            claim = waiter.claim
            if not self.make_room(claim, now):
                return
            self.leave(waiter)
            self.enter(_Held(key, claim.owner, next(_fences), now + waiter.patience, dict(claim.record), waiter))
            self.refresh(waiter, now)
            self.hints.append((waiter.listener, key, claim.owner))

    def confirm(self, held: _Held, claim: Claim, now: float) -> None:
        """Start the holder's time anew; an offer becomes a lease."""
        if held.offer is not None:
            self.patience.pop((held.key, held.owner))
            held.offer = None
            held.record = dict(claim.record)
        self.extend(held, now + claim.ttl)

    def next_change(self, key: str, now: float) -> float:
        """Return in how many seconds a lease, an offer or a waiter's patience for this key ends."""
        expiries = [held.expires - now for held in self.holders.get(key, {}).values() if held.expires > now]
        queue = self.queues.get(key)
        if queue is not None:
            # Only the first one stands in the way; looking at all would cost each of them all the others.
            until = self.patience.until((key, queue.order[0][1]))
            expiries.append(until - now)
        return min(expiries, default=math.inf)

    # -- the holders --

    def find(self, lease: Lease) -> _Held | None:
        held = self.holders.get(lease.key, {}).get(lease.owner)
        return held if held is not None and lease.fence in (0, held.fence) else None

    def enter(self, held: _Held) -> None:
        self.holders.setdefault(held.key, {})[held.owner] = held
        self.extend(held, held.expires)

    def extend(self, held: _Held, expires: float) -> None:
        held.expires = expires
        self.listed.put((held.key, held.owner), expires + (0.0 if held.resting else _MEMORY), held)

    def remove(self, held: _Held) -> None:
        self.listed.pop((held.key, held.owner))
        self._unlist(held)

    def refuses(self, claim: Claim) -> bool:
        """Tell whether this owner has lost the key, or given back an unknown lease: both are final."""
        pair = (claim.key, claim.owner)
        return pair in self.tombstones or pair in self.barred

    def bury(self, key: str, owner: str, now: float) -> None:
        self.tombstones.put((key, owner), now + _MEMORY, None)

    def make_room(self, claim: Claim, now: float) -> bool:
        """Replace as many expired holders as this claim needs, longest silent first; none if they are too few."""
        holders = self.holders.get(claim.key, {})
        missing = len(holders) - claim.limit + 1
        if missing <= 0:
            return True
        expired = sorted((h for h in holders.values() if h.expires <= now), key=lambda h: h.expires)
        if len(expired) < missing:
            return False
        for held in expired[:missing]:
            self.remove(held)
            self.bury(held.key, held.owner, now)
        return True

    def runner(self, key: str, now: float) -> str | None:
        """Return the id that the key's holder has told, if it is still believed."""
        for held in self.holders.get(key, {}).values():
            if held.expires > now and isinstance(held.record.get("id"), str):
                return str(held.record["id"])
        return None

    def describe(self, key: str, now: float) -> list[Holder]:
        oldest_first = sorted(self.holders.get(key, {}).values(), key=lambda h: h.fence)
        return [
            cast(
                Holder,
                {
                    **h.record,
                    "key": key,
                    "owner": h.owner,
                    "fence": h.fence,
                    "remaining": h.expires - now,
                    **({"offered": True} if h.offer else {}),
                    **({"resting": True} if h.resting else {}),
                },
            )
            for h in oldest_first
        ]

    def _unlist(self, held: _Held) -> None:
        owners = self.holders[held.key]
        del owners[held.owner]
        if not owners:
            del self.holders[held.key]


_tables: dict[tuple[str, str], _Table] = {}
_listening: dict[str, Callable[[str, str], None]] = {}

# The child inherits copies, and perhaps a mutex that a thread of the parent holds for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tables.clear)
    os.register_at_fork(after_in_child=_listening.clear)


class _MemoryListener(Listener):
    def __init__(self, on_offer: Callable[[str, str], None]) -> None:
        self.name = new_owner()
        _listening[self.name] = on_offer

    @property
    def closed(self) -> bool:
        return self.name not in _listening

    def close(self) -> None:
        _listening.pop(self.name, None)


class MemoryStore(LockStore, Queueing, PassingOn, Uniqueness):
    """A store in the memory of this process.

    Arguments:
        name: stores of one name and prefix share their data.
        prefix: as for other stores, separates applications.
        clock: the store's time in seconds; give all stores of one name the same. The deadlines of leases stay on
            ``time.monotonic()``, as everywhere.
    """

    rests = True

    def __init__(
        self, name: str = "", *, prefix: str = "distlock", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = f"memory://{name}"
        self.prefix = prefix
        self._address = (name, prefix)
        self._clock = clock

    @classmethod
    def from_url(cls, url: str, *, prefix: str = "distlock", options: Mapping[str, Any] | None = None) -> MemoryStore:
        """Open ``memory://name``.

        Arguments:
            url: the name may be empty.
            prefix: separates applications.
            options: ``clock`` only.

        Raises:
            LockConfigError: the URL or an option is not one of a memory store's.
        """
        parts = urlsplit(url)
        if parts.scheme != "memory" or parts.query or parts.fragment:
            raise LockConfigError(f"distlock_url: {url!r} is not of the form memory://name")
        unknown = set(options or ()) - {"clock"}
        if unknown:
            raise LockConfigError(f"distlock_store_options: {sorted(unknown)} unknown to memory://; allowed: ['clock']")
        return cls((parts.netloc + parts.path).strip("/"), prefix=prefix, **(options or {}))

    @property
    def _table(self) -> _Table:
        # Looked up at each call: after a fork, and after drop(), the old table must not be used any more.
        return _tables.get(self._address) or _tables.setdefault(self._address, _Table())

    def acquire(self, claim: Claim) -> Lease | Contended | Completed:
        """Try once to get the key; see :meth:`LockStore.acquire`."""
        sent = time.monotonic()
        now, table = self._clock(), self._table
        with table.opened(now):
            done = claim.completion
            if done is not None and (done.key, done.run) in table.completions:
                return Completed(claim.key, done.run)
            # Places go to those who wait first; it may be one of them who asks.
            table.settle(claim.key, now)
            lease = self._held(table, claim, now, sent)
            if lease is not None:
                return lease
            if table.refuses(claim) or claim.key in table.queues or not table.make_room(claim, now):
                drawn = next(_fences) if claim.draws else None
                return Contended(claim.key, tuple(table.describe(claim.key, now)), drawn)
            fence = next(_fences)
            table.enter(_Held(claim.key, claim.owner, fence, now + claim.ttl, dict(claim.record)))
            return Lease(claim.key, claim.owner, fence, claim.ttl, deadline_of(sent, claim.ttl), claim.limit)

    @staticmethod
    def _held(table: _Table, claim: Claim, now: float, sent: float) -> Lease | None:
        """Return the lease of an owner that is listed, its time started anew; an offer is confirmed by that."""
        held = table.holders.get(claim.key, {}).get(claim.owner)
        if held is None:
            return None
        table.confirm(held, claim, now)
        return Lease(claim.key, claim.owner, held.fence, claim.ttl, deadline_of(sent, claim.ttl), claim.limit)

    def renew(self, leases: Sequence[Lease]) -> list[Renewal]:
        """Start the time of these leases anew; see :meth:`LockStore.renew`."""
        now, table = self._clock(), self._table
        with table.opened(now):
            return [self._renew(table, lease, now) for lease in leases]

    @staticmethod
    def _renew(table: _Table, lease: Lease, now: float) -> Renewal:
        held, pair = table.find(lease), (lease.key, lease.owner)
        if held is not None:
            table.extend(held, now + lease.ttl)
            return Renewal.HELD
        if pair in table.tombstones:
            return Renewal.LOST
        if pair in table.barred or not 0 < lease.fence < table.epoch:
            return Renewal.GONE
        if len(table.holders.get(lease.key, ())) >= lease.limit:
            table.bury(*pair, now)  # the verdict stands, also when the key is free at the next renewal
            return Renewal.LOST
        table.enter(_Held(lease.key, lease.owner, lease.fence, now + lease.ttl, {}))
        return Renewal.REASSERTED

    def release(self, leases: Sequence[Lease], completions: Sequence[Completion | None] = ()) -> list[bool]:
        """Give these leases back; see :meth:`LockStore.release`."""
        pairs = list(zip(leases, completions or [None] * len(leases), strict=True))
        now, table = self._clock(), self._table
        with table.opened(now):
            released = []
            for lease, completion in pairs:
                held = table.find(lease)
                if held is not None:
                    table.remove(held)
                    if lease.rest:
                        table.enter(
                            replace(held, owner=f"{held.owner}:resting", expires=now + lease.rest, resting=True)
                        )
                if lease.fence == 0:
                    table.drop(lease.key, lease.owner)
                # A lease of before the loss of the data is barred too, or a renewal under way would re-assert it.
                if lease.fence == 0 or (held is None and lease.fence < table.epoch):
                    table.barred.put((lease.key, lease.owner), now + _MEMORY, None)
                if completion is not None:
                    table.completions.put((completion.key, completion.run), now + completion.ttl, None)
                released.append(held is not None)
                table.settle(lease.key, now)
            return released

    def pass_on(
        self, lease: Lease, claim: Claim, completion: Completion | None = None, *, unattended: bool = False
    ) -> Lease | Completed | None:
        """Turn a lease into one of another owner; see :meth:`PassingOn.pass_on`."""
        sent = time.monotonic()
        now, table = self._clock(), self._table
        with table.opened(now):
            if completion is not None:
                table.completions.put((completion.key, completion.run), now + completion.ttl, None)
            done = claim.completion
            if done is not None and (done.key, done.run) in table.completions:
                return Completed(claim.key, done.run)
            if (claim.key, claim.owner) in table.barred:
                return None
            held = table.find(lease)
            if held is not None and held.offer is None:
                table.remove(held)
                held = _Held(claim.key, claim.owner, next(_fences), now + claim.ttl, dict(claim.record))
                table.enter(held)
            else:
                # Asked a second time, perhaps.
                held = table.holders.get(claim.key, {}).get(claim.owner)
                if held is None or held.offer is not None:
                    return None
                table.extend(held, now + claim.ttl)
            return Lease(claim.key, claim.owner, held.fence, claim.ttl, deadline_of(sent, claim.ttl), claim.limit)

    def forget(self, completions: Sequence[Completion]) -> None:
        """Erase completion records."""
        table = self._table
        with table.mutex:
            for completion in completions:
                table.completions.pop((completion.key, completion.run))

    def holders(self, key: str | None = None, *, prefix: str = "") -> list[Holder]:
        """Return who holds ``key``, or every holder of a key that starts with ``prefix``; oldest first per key."""
        now, table = self._clock(), self._table
        with table.opened(now):
            keys = [key] if key is not None else [k for k in table.holders if k.startswith(prefix)]
            return [holder for k in keys for holder in table.describe(k, now)]

    def enqueue(
        self, claim: Claim, *, listener: str = "", ticket: int | None = None
    ) -> Lease | Ticket | Contended | Completed:
        """Get the key, or join the line; see :meth:`Queueing.enqueue`."""
        sent = time.monotonic()
        now, table = self._clock(), self._table
        with table.opened(now):
            done = claim.completion
            if done is not None and (done.key, done.run) in table.completions:
                return Completed(claim.key, done.run)
            lease = self._held(table, claim, now, sent)
            if lease is not None:
                return lease
            if table.refuses(claim):
                return Contended(claim.key)
            waiter = self._join(table, claim, listener, ticket, now)
            lease = self._held(table, claim, now, sent)
            return lease if lease is not None else self._ticket(table, waiter, now)

    def poll(self, places: Sequence[Ticket | Offer], *, listener: str = "") -> list[Ticket | Offer | None]:
        """Keep places in the line; see :meth:`Queueing.poll`."""
        sent = time.monotonic()
        now, table = self._clock(), self._table
        with table.mutex:
            # Before anybody is taken for gone: this may be the first call for a while.
            for place in places:
                waiter = table.waiter(place.key, place.owner)
                if waiter is not None:
                    table.refresh(waiter, now)
        with table.opened(now):
            for key in {place.key for place in places}:
                table.settle(key, now)
            return [self._look(table, place, listener, now, sent) for place in places]

    def _look(
        self, table: _Table, place: Ticket | Offer, listener: str, now: float, sent: float
    ) -> Ticket | Offer | None:
        waiter = table.waiter(place.key, place.owner)
        held = table.holders.get(place.key, {}).get(place.owner)
        if waiter is None and held is None:
            if table.refuses(place.claim):
                return None
            waiter = self._join(table, place.claim, listener, place.number, now)
            held = table.holders.get(place.key, {}).get(place.owner)
        if held is not None:
            return Offer(place.claim, place.number, deadline_of(sent, max(0.0, held.expires - now)))
        assert waiter is not None
        return self._ticket(table, waiter, now)

    def _join(self, table: _Table, claim: Claim, listener: str, ticket: int | None, now: float) -> _Waiter:
        waiter = table.waiter(claim.key, claim.owner)
        if waiter is None:
            waiter = _Waiter(claim, next(_fences) if ticket is None else ticket, listener, self.claim_ttl)
            table.join(waiter, now)
        else:
            table.refresh(waiter, now)
        table.settle(claim.key, now)
        # It has just been told.
        table.hints = [hint for hint in table.hints if hint[1:] != (claim.key, claim.owner)]
        return waiter

    @staticmethod
    def _ticket(table: _Table, waiter: _Waiter, now: float) -> Ticket:
        key = waiter.claim.key
        ahead = table.queues[key].ahead_of(waiter)
        return Ticket(waiter.claim, waiter.number, ahead, time.monotonic() + table.next_change(key, now) + 0.001)

    def confirm(self, claims: Sequence[Claim]) -> list[Lease | Completed | None]:
        """Turn offers into leases; see :meth:`Queueing.confirm`."""
        sent = time.monotonic()
        now, table = self._clock(), self._table
        found: list[Lease | Completed | None] = []
        with table.opened(now):
            for claim in claims:
                done = claim.completion
                if done is not None and (done.key, done.run) in table.completions:
                    table.drop(claim.key, claim.owner)
                    table.settle(claim.key, now)
                    found.append(Completed(claim.key, done.run))
                else:
                    found.append(self._held(table, claim, now, sent))
        return found

    def withdraw(self, claims: Sequence[Claim]) -> None:
        """Leave the line; see :meth:`Queueing.withdraw`."""
        now, table = self._clock(), self._table
        with table.opened(now):
            for claim in claims:
                table.drop(claim.key, claim.owner)
            for key in {claim.key for claim in claims}:
                table.settle(key, now)

    def listen(
        self,
        on_offer: Callable[[str, str], None],
        on_gap: Callable[[], None] = lambda: None,
        loop: EventLoop | None = None,
    ) -> Listener:
        """Start to listen; see :meth:`Queueing.listen`. There are no gaps."""
        on_gap()
        return _MemoryListener(on_offer)

    def reserve(self, token: Token) -> Reserved | Duplicate | Superseded:
        """Enter a message as the one of its key; see :meth:`Uniqueness.reserve`."""
        now, table = self._clock(), self._table
        with table.opened(now):
            return table.tokens.reserve(token, table.runner(running_key(token.key), now), now)

    def begin(self, token: Token, claim: Claim | None) -> Begun | Superseded:
        """Start a message; see :meth:`Uniqueness.begin`."""
        sent = time.monotonic()
        now, table = self._clock(), self._table
        with table.opened(now):
            answer = table.tokens.begin(token, now)
            if answer is not None or claim is None:
                return answer or Begun()
            lease = self._held(table, claim, now, sent)
            if lease is not None:
                return Begun(lease.fence)
            if table.refuses(claim) or not table.make_room(claim, now):
                return Begun()
            fence = next(_fences)
            table.enter(_Held(claim.key, claim.owner, fence, now + claim.ttl, dict(claim.record)))
            return Begun(fence)

    def cancel(self, token: Token, *, window: bool) -> None:
        """Free the place of a message that will not start; see :meth:`Uniqueness.cancel`."""
        table = self._table
        with table.mutex:
            table.tokens.cancel(token, window=window)

    def close(self) -> None:
        """Do nothing: there are no connections, and the data belong to the process."""

    def drop(self) -> None:
        """Lose the data of this name and prefix, for all its stores, as a server restarted without its data would."""
        _tables.pop(self._address, None)
