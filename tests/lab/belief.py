"""Until when a holder believed in its lock, as it saw it itself: the truth that mutual exclusion is judged by.

A holder looks at its lock every few milliseconds, and writes down when it begins to believe, doubts, believes again
and ends. In between it notes the time of each look in a mapped file, without a system call: what is there when it is
killed is when it was alive for the last time. So a belief that has no end in the history, since its process died,
lasts until then; and that of a stopped process until its deadline, for it may run on at any moment.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import struct
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.lab import history

__all__ = ["Believer", "Holdable", "Span", "believing", "spans"]

_SLOTS = 4096
_WORD = struct.Struct("d")


class Holdable(Protocol):
    """What can be believed in: a lock of ours, or of somebody else's."""

    @property
    def remaining(self) -> float:
        """Seconds for which it can be relied upon from now on; 0.0 if not."""


class _Beats:
    """The times at which the bodies of this process were alive for the last time."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        path = Path(os.environ[history.FOLDER]) / f"beats-{self.pid}"
        path.write_bytes(bytes(_SLOTS * _WORD.size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._next = 0

    def slot(self) -> int:
        self._next = (self._next + 1) % _SLOTS
        return self._next

    def beat(self, slot: int) -> None:
        _WORD.pack_into(self._map, slot * _WORD.size, time.monotonic())


_beats: _Beats | None = None


class Believer:
    """One hold; see :func:`believing`."""

    def __init__(self, lock: Holdable, key: str, owner: str, fence: int, limit: int, **more: Any) -> None:
        global _beats
        if _beats is None or _beats.pid != os.getpid():
            _beats = _Beats()
        self._beats = _beats
        self._lock = lock
        self._span = uuid.uuid4().hex
        self._slot = _beats.slot()
        # The clock first: whoever is stopped between the two then believes for less long than it says.
        now = time.monotonic()
        self._until = now + _bounded(lock.remaining)
        self._seen, self._believes = now, True
        _beats.beat(self._slot)
        history.note(
            "believes",
            span=self._span,
            slot=self._slot,
            key=key,
            owner=owner,
            fence=fence,
            limit=limit,
            until=self._until,
            **more,
        )

    def look(self) -> None:
        """See whether the lock can still be relied upon, and write down when that changes."""
        now = time.monotonic()
        remaining = _bounded(self._lock.remaining)
        if remaining > 0:
            if not self._believes:
                history.note("believes again", span=self._span, until=now + remaining)
            self._until = now + remaining
            self._seen, self._believes = now, True
            self._beats.beat(self._slot)
        elif self._believes:
            # Told by its store it gives up before its deadline; else it has believed right up to that.
            told = time.monotonic() < self._until
            history.note("doubts", span=self._span, seen=self._seen if told else self._until)
            self._believes = False

    def hold(self, seconds: float, every: float = 0.004) -> None:
        """Go on looking for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.look()
            time.sleep(every)
        self.look()

    def end(self) -> None:
        """Believe no longer: what comes next is the release."""
        self.look()
        if self._believes:
            history.note("believes no more", span=self._span, seen=min(self._seen, self._until))
        else:
            history.note("believes no more", span=self._span)


def _bounded(seconds: float) -> float:
    # JSON knows no infinity.
    return min(seconds, 1e6)


@contextlib.contextmanager
def believing(lock: Holdable, key: str, owner: str, fence: int, limit: int = 1, **more: Any) -> Iterator[Believer]:
    """Write down one hold, however the block ends."""
    believer = Believer(lock, key, owner, fence, limit, **more)
    try:
        yield believer
    finally:
        believer.end()


@dataclass(frozen=True)
class Span:
    """A time during which a holder believed that it holds (monotonic seconds)."""

    key: str
    owner: str
    fence: int
    limit: int
    start: float
    end: float
    pid: int
    #: One hold may have several spans, with doubts in between.
    hold: str
    role: str = ""

    def __str__(self) -> str:
        return f"{self.role or self.pid} #{self.fence} [{self.start:.3f}, {self.end:.3f}]"


def spans(events: Iterable[history.Event], folder: Path) -> list[Span]:
    """Return the beliefs of a history, in the order of their beginnings; everybody has ended by now."""
    begun: dict[str, history.Event] = {}
    open_since: dict[str, float] = {}
    found: list[Span] = []

    def close(span: str, end: float) -> None:
        told, start = begun[span], open_since.pop(span)
        if end > start:
            found.append(
                Span(
                    told["key"],
                    told["owner"],
                    told["fence"],
                    told["limit"],
                    start,
                    end,
                    told["pid"],
                    span,
                    told.get("role", ""),
                )
            )

    for event in events:
        if event["kind"] != "note":
            continue
        match event["event"]:
            case "believes":
                begun[event["span"]] = event
                open_since[event["span"]] = event["t"]
            case "believes again":
                open_since[event["span"]] = event["t"]
            case "doubts":
                close(event["span"], event["seen"])
            case "believes no more" if event["span"] in open_since:
                close(event["span"], event["seen"])
    for span in list(open_since):
        close(span, _last_beat(folder, begun[span]))
    return sorted(found, key=lambda one: one.start)


def _last_beat(folder: Path, begun: history.Event) -> float:
    path = folder / f"beats-{begun['pid']}"
    if not path.exists():
        return -math.inf
    (beat,) = _WORD.unpack_from(path.read_bytes(), begun["slot"] * _WORD.size)
    return float(beat)
