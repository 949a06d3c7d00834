"""Is there an order in which these operations, one after the other, could have had the answers that they had?

The search of Wing and Gong, with Lowe's memoisation: operations take effect one by one, each somewhere between its
invocation and its return; a configuration, that is which have taken effect and the state they left, is looked at once.
An operation without an answer may take effect at any time after its invocation, or never; it is tried last.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from tests.lab.history import Operation
from tests.lab.models import Model

__all__ = ["Verdict", "check"]


@dataclass(frozen=True)
class Verdict:
    """What the search found.

    Attributes:
        legal: True or False; None if it was given up, the budget being spent.
        stuck: of an illegal history: the operations that nothing in the furthest order found can be followed by.
        looked: how many configurations were looked at.
    """

    legal: bool | None
    stuck: tuple[Operation, ...] = ()
    looked: int = 0


def check(operations: Sequence[Operation], model: Model, budget: int = 400_000) -> Verdict:
    """Search for a legal order.

    Arguments:
        operations: of one key; those that mean nothing to the model are left out.
        model: what is legal.
        budget: how many configurations to look at before giving up.
    """
    judged = sorted(model.select(operations), key=lambda one: one.invoked)
    return _Search(judged, model, budget).run()


#: Which closed operations are before: all below the first number, and those of the mask from there on; which open ones.
_Done = tuple[int, int, int]


class _Search:
    def __init__(self, operations: Sequence[Operation], model: Model, budget: int) -> None:
        self._closed = [each for each in operations if not each.open]
        self._open = [each for each in operations if each.open]
        self._model = model
        self._budget = budget

    def run(self) -> Verdict:
        start: _Done = (0, 0, 0)
        seen: set[tuple[_Done, Hashable]] = {(start, self._model.initial)}
        # Each with the latest invocation among those that have taken effect: no optional step can come before it.
        stack = [self._successors(start, self._model.initial, -math.inf)]
        furthest, best = -1, start
        while stack:
            following = next(stack[-1], None)
            if following is None:
                stack.pop()
                continue
            done, state, now = following
            if (done, state) in seen:
                continue
            seen.add((done, state))
            count = done[0] + done[1].bit_count()
            if count == len(self._closed):
                return Verdict(True, looked=len(seen))
            if count > furthest:
                furthest, best = count, done
            if len(seen) > self._budget:
                return Verdict(None, looked=len(seen))
            stack.append(self._successors(done, state, now))
        if not self._closed:
            return Verdict(True, looked=len(seen))
        candidates, _ = self._candidates(best)
        return Verdict(False, tuple(self._closed[index] for index in candidates), len(seen))

    def _candidates(self, done: _Done) -> tuple[list[int], float]:
        """Return the closed operations of which any may be next, and the time by which one of them has returned."""
        first, mask, _ = done
        found: list[int] = []
        latest = math.inf
        index = first
        while index < len(self._closed) and self._closed[index].invoked <= latest:
            if not mask >> (index - first) & 1:
                found.append(index)
                latest = min(latest, self._closed[index].returned)
            index += 1
        found = [index for index in found if self._closed[index].invoked <= latest]
        return sorted(found, key=lambda index: self._closed[index].returned), latest

    def _successors(self, done: _Done, state: Hashable, now: float) -> Iterator[tuple[_Done, Hashable, float]]:
        candidates, latest = self._candidates(done)
        for index in candidates:
            operation = self._closed[index]
            for after in self._model.steps(state, operation, latest):
                yield self._with(done, index), after, max(now, operation.invoked)
        first, mask, opened = done
        for number, operation in enumerate(self._open):
            if opened >> number & 1 or operation.invoked > latest or operation.more.get("by", math.inf) < now:
                continue
            for after in self._model.steps(state, operation, latest):
                yield (first, mask, opened | 1 << number), after, max(now, operation.invoked)

    @staticmethod
    def _with(done: _Done, index: int) -> _Done:
        first, mask, opened = done
        mask |= 1 << (index - first)
        while mask & 1:
            mask >>= 1
            first += 1
        return first, mask, opened
