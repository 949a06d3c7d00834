"""What was measured in turns: kinds of things, one value of each quantity per round, and their ratios.

Whatever else the machine is doing hits neighbours alike. So a figure is the median, over the rounds, of the ratio of
two values of *one* round; never the ratio of two medians from different minutes.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

__all__ = ["Rounds", "Spread", "percentile", "turns"]


class Spread(NamedTuple):
    """The median over the rounds, the smallest and the largest, and how many there were."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values), len(values))


class Rounds:
    """Values by kind and quantity, in the order of the rounds.

    Arguments:
        values: kind → quantity → one value per round; as :attr:`values` of another one.
    """

    def __init__(self, values: Mapping[str, Mapping[str, Sequence[float]]] | None = None) -> None:
        self.values: dict[str, dict[str, list[float]]] = {
            kind: {name: list(each) for name, each in quantities.items()} for kind, quantities in (values or {}).items()
        }

    def add(self, kind: str, **quantities: float) -> None:
        """Enter what one kind did in one round."""
        known = self.values.setdefault(kind, {})
        for name, value in quantities.items():
            known.setdefault(name, []).append(value)

    def __contains__(self, kind: str) -> bool:
        return kind in self.values

    def of(self, kind: str, quantity: str) -> list[float]:
        """Return the values, one per round; none if that was not measured."""
        return self.values.get(kind, {}).get(quantity, [])

    def spread(self, kind: str, quantity: str) -> Spread:
        """Return how one quantity of one kind is spread over the rounds."""
        return Spread.of(self.of(kind, quantity))

    def ratio(self, kind: str, quantity: str, base: str) -> Spread:
        """Return how the ratios to another kind's values of the same rounds are spread.

        Raises:
            ValueError: they did not take part in the same rounds.
        """
        pairs = zip(self.of(kind, quantity), self.of(base, quantity), strict=True)
        return Spread.of([one / other for one, other in pairs])


def turns(kinds: Sequence[str], rounds: int) -> Iterator[str]:
    """Yield every kind once per round; each round begins with another one, so that none always follows the same."""
    for number in range(rounds):
        first = number % len(kinds)
        yield from kinds[first:]
        yield from kinds[:first]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which so large a share of them lies (0 … 1)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
