"""Those of one key who are parked in this worker: the first of them stand in the store's line, the others behind.

Whoever stands in the store's line has to be polled, and has to leave it and come back whenever this worker declines a
place; so only a few of a key do. All have a number, which the store gave them when it refused them the key; the others
take their places there, in the order of these, when those before them have gone. Places are refilled in batches, early
enough that a worker that is slow to do so is not overtaken by another one's waiters.
"""

from __future__ import annotations

import heapq
import itertools
from typing import Protocol, TypeVar

__all__ = ["FEWEST", "MOST", "Row"]

#: How many of a key stand in the store's line at most, but for those whose numbers are lower than theirs.
MOST = 32
#: As many where places keep being declined: a worker without slots needs few, and each has to leave and come back.
FEWEST = 2

_numbers = itertools.count()


class _Member(Protocol):
    number: int | None
    aside: bool

    @property
    def owner(self) -> str: ...


_T = TypeVar("_T", bound=_Member)


class Row(dict[str, _T]):
    """By owner, those in the store's line; the others are :meth:`behind`. Every method is safe in any thread."""

    def __init__(self) -> None:
        #: Whether nobody is in line until one of them has got a slot.
        self.declined = False
        #: How many are to stand in the store's line.
        self.size = MOST
        self._behind: list[tuple[float, int, _T]] = []

    def admits(self, number: int | None) -> bool:
        """Return whether somebody new takes a place in the store's line at once, and not behind the others."""
        if self.declined:
            return False
        if number is None:
            # This store gives out places, but no numbers with which to come later.
            return not self._behind
        if not self._behind and len(self) < self.size:
            return True
        return any(member.number is not None and number < member.number for member in list(self.values()))

    @property
    def is_over(self) -> bool:
        """Whether nobody is left."""
        return not (self or self._behind or self.declined)

    def put_behind(self, member: _T) -> None:
        """Have it stand behind, with its number if it has one."""
        member.aside = True
        number = float("inf") if member.number is None else member.number
        heapq.heappush(self._behind, (number, next(_numbers), member))
        # In this order: never is it in neither.
        self.pop(member.owner, None)

    def first(self) -> _T | None:
        """Take out the first one behind; it may have gone meanwhile."""
        return heapq.heappop(self._behind)[2] if self._behind else None

    def missing(self) -> int:
        """Return how many are to take their places in the store's line now: none until half of them have gone."""
        return 0 if self.declined or len(self) > self.size // 2 else self.size - len(self)

    def decline(self) -> None:
        """Note that a place was declined."""
        self.declined = True
        self.size = max(FEWEST, self.size // 2)

    def took(self) -> None:
        """Note that a place was taken."""
        self.size = min(MOST, self.size + 1)
