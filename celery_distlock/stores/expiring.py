"""A mapping whose entries vanish by themselves; what the store in memory remembers."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

__all__ = ["Expiring", "Pair"]

_T = TypeVar("_T")
#: A lock's or token's key, and what belongs to it: an owner, a run, a task id.
Pair = tuple[str, str]


class Expiring(Generic[_T]):
    """A mapping whose entries vanish at a time of their own; each operation costs O(log n)."""

    def __init__(self) -> None:
        self._entries: dict[Pair, tuple[float, _T]] = {}
        self._due: list[tuple[float, Pair]] = []

    def __contains__(self, pair: Pair) -> bool:
        return pair in self._entries

    def get(self, pair: Pair) -> _T | None:
        entry = self._entries.get(pair)
        return None if entry is None else entry[1]

    def put(self, pair: Pair, until: float, value: _T) -> None:
        self._entries[pair] = (until, value)
        heapq.heappush(self._due, (until, pair))
        if len(self._due) > 2 * len(self._entries) + 64:  # outdated entries: renewed or removed before they were due
            self._due = [(until, pair) for pair, (until, _) in self._entries.items()]
            heapq.heapify(self._due)

    def pop(self, pair: Pair) -> None:
        self._entries.pop(pair, None)

    def until(self, pair: Pair) -> float:
        return self._entries[pair][0]

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
