"""From what contenders wrote: who believed in its hold when, and whether two ever did at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tests.support.journal import Entry

__all__ = ["Hold", "Span", "holds", "overlapping"]


@dataclass(frozen=True)
class Span:
    """A time during which a holder believed that it holds (monotonic seconds)."""

    start: float
    end: float
    name: str
    owner: str
    fence: int


@dataclass(frozen=True)
class Hold:
    """One grant, from the holder's side.

    Attributes:
        spans: when it was believed; more than one after a doubt that was dispelled.
        ours: what the release said; None if there was none (yet).
    """

    name: str
    owner: str
    fence: int
    spans: tuple[Span, ...]
    ours: bool | None


def holds(entries: Iterable[Entry]) -> list[Hold]:
    """Return the grants of a journal of contenders, in their order.

    A holder that was killed or stopped is taken to believe until its last deadline; one whose session a test has
    closed, until then.
    """
    by_owner: dict[str, list[Entry]] = {}
    closed: dict[int, float] = {}
    for entry in entries:
        if entry["event"] == "closed":
            closed[entry["session"]] = entry["t"]
        elif "owner" in entry:
            by_owner.setdefault(entry["owner"], []).append(entry)
    return [_hold(mine, closed) for mine in by_owner.values()]


def _hold(entries: list[Entry], closed: Mapping[int, float]) -> Hold:
    first, last = entries[0], entries[-1]
    name, owner, fence = first["name"], first["owner"], first["fence"]
    session = first.get("session")
    until = closed.get(session[0], math.inf) if session else math.inf
    spans = tuple(Span(start, min(end, until), name, owner, fence) for start, end in _spans(entries) if start < until)
    return Hold(name, owner, fence, spans, last.get("ours"))


def _spans(entries: list[Entry]) -> Iterator[tuple[float, float]]:
    start: float | None = None
    until = 0.0
    for entry in entries:
        match entry["event"]:
            case "granted" | "believed":
                start, until = entry["t"], entry["until"]
            case "renewed":
                until = entry["until"]
            case "doubted":
                assert start is not None
                # Told by its store, it gives up before its deadline; else it has believed right up to that.
                yield start, (entry["seen"] if entry["told"] else until)
                start = None
            case "releasing":
                if start is not None:
                    yield start, min(until, entry["t"])
                start = None
    if start is not None:
        yield start, until


def overlapping(grants: Iterable[Hold]) -> list[tuple[Span, Span]]:
    """Return the pairs of spans, of different grants, that have time in common."""
    spans = sorted((span for hold in grants for span in hold.spans if span.end > span.start), key=lambda s: s.start)
    found = []
    open_spans: list[Span] = []
    for span in spans:
        open_spans = [each for each in open_spans if each.end > span.start]
        found += [(each, span) for each in open_spans if each.owner != span.owner]
        open_spans.append(span)
    return found
