"""When bounds of time can be judged: while nothing that they depend upon is broken, or has just been mended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tests.lab.history import Event

__all__ = ["Break", "Windows", "breaks", "troubled"]

#: Seconds after a fault has ended for which it still counts: clients connect anew, and processes catch up.
SETTLE = 2.0


@dataclass(frozen=True)
class Windows:
    """Times during which something was broken."""

    windows: tuple[tuple[float, float], ...]

    def touch(self, start: float, end: float) -> bool:
        """Return whether a time has anything in common with them."""
        return any(a <= end and start <= b for a, b in self.windows)


def troubled(events: Iterable[Event], *touches: str, settle: float = SETTLE) -> Windows:
    """Return when faults of these kinds were under way."""
    begun: dict[tuple[int, str], list[float]] = {}
    found: list[tuple[float, float]] = []
    for event in events:
        if event.get("event") != "fault" or event["touches"] not in touches:
            continue
        which = event["pid"], event["name"]
        if event["phase"] == "begins":
            begun.setdefault(which, []).append(event["t"])
        else:
            found.append((begun[which].pop(0), event["t"] + settle))
    return Windows(tuple(found))


@dataclass(frozen=True)
class Break:
    """Something after which two may believe in one lock for a while: it happened between two times.

    With ``fences`` they may be smaller than before, too: the data were lost before the clock, which had gone back, was
    where it had been.
    """

    what: str
    since: float
    by: float
    fences: bool = False

    def excuses(self, older_start: float, newer_start: float, older_end: float, ttl: float) -> bool:
        """Return whether an overlap is its doing: one began to believe before it, another soon after.

        The older one has at most its ttl to go on: by then it has heard from the store, or doubts.
        """
        return older_start <= self.by and self.since <= newer_start and older_end <= self.by + ttl

    def renumbers(self, older: float, newer: float) -> bool:
        """Return whether a fence given out at one time may be larger than one given out later, at another."""
        return self.fences and older <= self.by and self.since <= newer


def breaks(events: Iterable[Event]) -> list[Break]:
    """Return what was broken in this way."""
    found = list(events)
    back = [(event["t"], event["seconds"]) for event in found if event.get("event") == "clock of the store goes back"]
    return [
        Break(
            event["what"],
            event["since"],
            event["t"],
            event["what"] == "lose data" and any(t - 1.0 < event["t"] < t + seconds + 1.0 for t, seconds in back),
        )
        for event in found
        if event.get("event") == "breaks"
    ]
