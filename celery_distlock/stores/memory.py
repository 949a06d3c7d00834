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

What it is not
    Nothing is shared between processes. A forked child starts with empty tables, as a server restarted without its
    data would: a key held in the parent is free in the child. Never use it with worker pools of several processes.

Expired holders, tombstones and barred owners are kept for an hour, completion records for their own ttl; whatever is
due is dropped by the next call, so the tables are bounded by what happened within that hour.
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast
from urllib.parse import urlsplit

from celery_distlock.errors import LockConfigError
from celery_distlock.lease import Claim, Completed, Completion, Contended, Holder, Lease, Renewal, deadline_of
from celery_distlock.stores.base import LockStore

__all__ = ["MemoryStore"]

#: Seconds for which an expired holder stays listed, and for which tombstones and bars are remembered.
_MEMORY = 3600.0

_T = TypeVar("_T")
_Pair = tuple[str, str]  # (key, owner) or (key, run)

# Wall-clock microseconds to start with, so that the fences of a restarted process are above those of its predecessor.
_fences = itertools.count(time.time_ns() // 1000)


class _Expiring(Generic[_T]):
    """A mapping whose entries vanish at a time of their own; each operation costs O(log n)."""

    def __init__(self) -> None:
        self._entries: dict[_Pair, tuple[float, _T]] = {}
        self._due: list[tuple[float, _Pair]] = []

    def __contains__(self, pair: _Pair) -> bool:
        return pair in self._entries

    def put(self, pair: _Pair, until: float, value: _T) -> None:
        self._entries[pair] = (until, value)
        heapq.heappush(self._due, (until, pair))
        if len(self._due) > 2 * len(self._entries) + 64:  # outdated entries: renewed or removed before they were due
            self._due = [(until, pair) for pair, (until, _) in self._entries.items()]
            heapq.heapify(self._due)

    def pop(self, pair: _Pair) -> None:
        self._entries.pop(pair, None)

    def purge(self, now: float) -> list[_T]:
        """Drop what is due by now, and return it."""
        dropped = []
        while self._due and self._due[0][0] <= now:
            until, pair = heapq.heappop(self._due)
            entry = self._entries.get(pair)
            if entry is not None and entry[0] == until:
                dropped.append(entry[1])
                del self._entries[pair]
        return dropped


@dataclass
class _Held:
    key: str
    owner: str
    fence: int
    expires: float
    record: Mapping[str, Any]


@dataclass
class _Table:
    """The data of one name; every access is under its mutex."""

    mutex: threading.Lock = field(default_factory=threading.Lock)
    #: Leases with a smaller fence were granted before the data were lost.
    epoch: int = field(default_factory=lambda: next(_fences))
    #: key → owner → holder. No key without a holder.
    holders: dict[str, dict[str, _Held]] = field(default_factory=dict)
    #: When the holders above leave the table although nobody came.
    listed: _Expiring[_Held] = field(default_factory=_Expiring)
    tombstones: _Expiring[None] = field(default_factory=_Expiring)
    barred: _Expiring[None] = field(default_factory=_Expiring)
    completions: _Expiring[None] = field(default_factory=_Expiring)

    def purge(self, now: float) -> None:
        for held in self.listed.purge(now):
            self._unlist(held)
        for memories in (self.tombstones, self.barred, self.completions):
            memories.purge(now)

    def find(self, lease: Lease) -> _Held | None:
        held = self.holders.get(lease.key, {}).get(lease.owner)
        return held if held is not None and lease.fence in (0, held.fence) else None

    def enter(self, held: _Held) -> None:
        self.holders.setdefault(held.key, {})[held.owner] = held
        self.extend(held, held.expires)

    def extend(self, held: _Held, expires: float) -> None:
        held.expires = expires
        self.listed.put((held.key, held.owner), expires + _MEMORY, held)

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

    def describe(self, key: str, now: float) -> list[Holder]:
        oldest_first = sorted(self.holders.get(key, {}).values(), key=lambda h: h.fence)
        return [
            cast(Holder, {**h.record, "key": key, "owner": h.owner, "fence": h.fence, "remaining": h.expires - now})
            for h in oldest_first
        ]

    def _unlist(self, held: _Held) -> None:
        owners = self.holders[held.key]
        del owners[held.owner]
        if not owners:
            del self.holders[held.key]


_tables: dict[tuple[str, str], _Table] = {}

# The child inherits copies, and perhaps a mutex that a thread of the parent holds for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tables.clear)


class MemoryStore(LockStore):
    """A store in the memory of this process.

    Arguments:
        name: stores of one name and prefix share their data.
        prefix: as for other stores, separates applications.
        clock: the store's time in seconds; give all stores of one name the same. The deadlines of leases stay on
            ``time.monotonic()``, as everywhere.
    """

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
        with table.mutex:
            table.purge(now)
            done = claim.completion
            if done is not None and (done.key, done.run) in table.completions:
                return Completed(claim.key, done.run)
            held = table.holders.get(claim.key, {}).get(claim.owner)
            if held is not None:
                table.extend(held, now + claim.ttl)
            elif table.refuses(claim) or not table.make_room(claim, now):
                return Contended(claim.key, tuple(table.describe(claim.key, now)))
            else:
                held = _Held(claim.key, claim.owner, next(_fences), now + claim.ttl, dict(claim.record))
                table.enter(held)
            return Lease(claim.key, claim.owner, held.fence, claim.ttl, deadline_of(sent, claim.ttl), claim.limit)

    def renew(self, leases: Sequence[Lease]) -> list[Renewal]:
        """Start the time of these leases anew; see :meth:`LockStore.renew`."""
        now, table = self._clock(), self._table
        with table.mutex:
            table.purge(now)
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
        with table.mutex:
            table.purge(now)
            released = []
            for lease, completion in pairs:
                held = table.find(lease)
                if held is not None:
                    table.remove(held)
                # A lease of before the loss of the data is barred too, or a renewal under way would re-assert it.
                if lease.fence == 0 or (held is None and lease.fence < table.epoch):
                    table.barred.put((lease.key, lease.owner), now + _MEMORY, None)
                if completion is not None:
                    table.completions.put((completion.key, completion.run), now + completion.ttl, None)
                released.append(held is not None)
            return released

    def forget(self, completions: Sequence[Completion]) -> None:
        """Erase completion records."""
        table = self._table
        with table.mutex:
            for completion in completions:
                table.completions.pop((completion.key, completion.run))

    def holders(self, key: str | None = None, *, prefix: str = "") -> list[Holder]:
        """Return who holds ``key``, or every holder of a key that starts with ``prefix``; oldest first per key."""
        now, table = self._clock(), self._table
        with table.mutex:
            table.purge(now)
            keys = [key] if key is not None else [k for k in table.holders if k.startswith(prefix)]
            return [holder for k in keys for holder in table.describe(k, now)]

    def close(self) -> None:
        """Do nothing: there are no connections, and the data belong to the process."""

    def drop(self) -> None:
        """Lose the data of this name and prefix, for all its stores, as a server restarted without its data would."""
        _tables.pop(self._address, None)
