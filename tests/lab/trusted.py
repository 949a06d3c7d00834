"""The fast path: at most ``limit`` believe in a key at once, and who comes later has the larger fence.

It looks at what holders believed (:mod:`.belief`) and at nothing else, so it judges what users rely upon; the checker
(:mod:`.checker`) judges what the store answered.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.lab.belief import Span
from tests.lab.history import Operation

__all__ = ["Crowd", "crowds", "disordered", "shrinking_fences"]


@dataclass(frozen=True)
class Crowd:
    """More believed at once than may.

    Attributes:
        key: in what.
        spans: who; the last one is who came in excess.
        start, end: during which time (monotonic seconds).
    """

    key: str
    spans: tuple[Span, ...]
    start: float
    end: float

    def __str__(self) -> str:
        ms = 1000 * (self.end - self.start)
        return f"{self.key!r}: {len(self.spans)} at once for {ms:.1f} ms: {'; '.join(map(str, self.spans))}"


def crowds(spans: Iterable[Span]) -> list[Crowd]:
    """Return every beginning of a belief that made one too many."""
    found = []
    for key, mine in _by_key(spans).items():
        believing: list[Span] = []
        for span in sorted(mine, key=lambda one: one.start):
            believing = [each for each in believing if each.end > span.start]
            believing.append(span)
            if len(believing) > span.limit:
                found.append(Crowd(key, tuple(believing), span.start, min(each.end for each in believing)))
    return found


def shrinking_fences(operations: Sequence[Operation]) -> list[tuple[Operation, Operation]]:
    """Return pairs of grants of one key (limit 1), the later of which has no larger fence.

    Arguments:
        operations: of one key.
    """
    grants = [each for each in operations if each.more.get("answer") == "lease" and each.fence]
    first_of: dict[tuple[str, int], Operation] = {}
    for grant in grants:
        # The same lease again is no other grant.
        known = first_of.get((grant.owner, grant.fence))
        if known is None or grant.returned < known.returned:
            first_of[grant.owner, grant.fence] = grant
    ordered = sorted(first_of.values(), key=lambda grant: grant.fence)
    found = []
    for index, grant in enumerate(ordered):
        # One that was asked for only after another with a larger or equal fence had returned.
        later = [each for each in ordered[index + 1 :] if each.returned < grant.invoked]
        equal = [each for each in ordered[:index] if each.fence == grant.fence]
        found += [(each, grant) for each in (later[:1] + equal[:1])]
    return found


def disordered(spans: Iterable[Span]) -> list[tuple[Span, Span]]:
    """Return pairs of holds of one key (limit 1), one after the other, the later of which has no larger fence."""
    found = []
    for mine in _by_key(span for span in spans if span.limit == 1).values():
        highest: Span | None = None
        for span in sorted(mine, key=lambda one: one.start):
            smaller = highest is not None and span.hold != highest.hold and span.fence <= highest.fence
            # Who believes again after a doubt was granted the key before.
            if highest is not None and smaller and first_of(mine, span).start > highest.start:
                found.append((highest, span))
            if highest is None or span.fence > highest.fence:
                highest = span
    return found


def first_of(spans: Sequence[Span], span: Span) -> Span:
    """Return the first span of the same hold."""
    return min((each for each in spans if each.hold == span.hold), key=lambda one: one.start)


def _by_key(spans: Iterable[Span]) -> dict[str, list[Span]]:
    by_key: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        by_key[span.key].append(span)
    return by_key
