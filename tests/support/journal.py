"""What task bodies did, as lines of a file: how tests and workers synchronise.

Every line is one ``write`` to a file opened with ``O_APPEND``, so processes never mix their lines, and what a process
wrote survives its ``kill -9``. Times are ``time.monotonic()``, which on Linux is one clock for all processes of a host.
"""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from tests.support.waiting import eventually

__all__ = ["VARIABLE", "Entry", "Journal", "Run", "overlaps", "record", "running"]

#: The environment variable that tells workers the journal's path.
VARIABLE = "JOURNAL"

Entry = dict[str, Any]


def record(event: str, *, path: str | Path | None = None, **fields: Any) -> None:
    """Append one entry.

    Arguments:
        event: what happened.
        path: the journal's file; default: the one named by the environment.
        fields: JSON-serialisable; ``t``, ``wall`` and ``pid`` are added.
    """
    entry = {"event": event, "t": time.monotonic(), "wall": time.time(), "pid": os.getpid(), **fields}
    line = json.dumps(entry).encode() + b"\n"
    fd = os.open(path or os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(fd, line)
    finally:
        os.close(fd)


class running:
    """Record a ``start`` and, however the block ends, an ``end``: one :class:`Run`. A killed process writes no end.

    A class of its own: a signal that strikes while a generator is on its way into the block leaves it without an end.

    Arguments:
        key: what must not run twice at once.
        fields: recorded with the start; ``id``, ``owner`` and ``fence`` are known to :class:`Run`.
    """

    def __init__(self, key: str, **fields: Any) -> None:
        self._run = {"run": uuid.uuid4().hex, "key": key}
        self._fields = fields

    def __enter__(self) -> str:
        try:
            record("start", **self._run, **self._fields)
        except BaseException as error:
            self._end(type(error))
            raise
        return self._run["run"]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end(kind)

    def _end(self, kind: type[BaseException] | None) -> None:
        record("end", **self._run, error=None if kind is None else kind.__name__)


@dataclass(frozen=True)
class Run:
    """One execution of a task's body; ``end`` is infinite while it runs."""

    key: str
    start: float
    end: float
    pid: int
    id: str | None = None
    owner: str | None = None
    fence: int | None = None
    #: The class name of the exception that ended it; ``"killed"`` after :meth:`Journal.died`.
    error: str | None = None

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.end != math.inf


def overlaps(runs: Iterable[Run]) -> list[tuple[Run, Run]]:
    """Return the pairs of runs of one key that were under way at the same time."""
    return [
        (a, b)
        for a, b in combinations(sorted(runs, key=lambda run: run.start), 2)
        if a.key == b.key and b.start < a.end and a.start < b.end
    ]


class Journal:
    """The reader's side, for tests."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def record(self, event: str, **fields: Any) -> None:
        """Append an entry of the test's own."""
        record(event, path=self.path, **fields)

    def died(self, pid: int) -> None:
        """Note that a process is known to be dead: its open runs end now, with error ``"killed"``."""
        self.record("died", dead=pid)

    def entries(self, event: str | None = None, **fields: Any) -> list[Entry]:
        """Return the entries, oldest first; only those of an event and with these fields, if given."""
        text = self.path.read_text()
        # A reader may come between two halves of nothing: a line counts once its newline is there.
        entries: list[Entry] = [json.loads(line) for line in text.split("\n")[:-1]]
        return [
            entry
            for entry in entries
            if (event is None or entry["event"] == event) and all(entry.get(k) == v for k, v in fields.items())
        ]

    def runs(self, key: str | None = None) -> list[Run]:
        """Return the runs, in the order of their starts; only those of a key, if given."""
        open_runs: dict[str, Entry] = {}
        ends: dict[str, tuple[float, str | None]] = {}
        for entry in self.entries():
            if entry["event"] == "start":
                open_runs[entry["run"]] = entry
            elif entry["event"] == "end":
                ends.setdefault(entry["run"], (entry["t"], entry["error"]))
            elif entry["event"] == "died":
                for run, start in open_runs.items():
                    if start["pid"] == entry["dead"]:
                        ends.setdefault(run, (entry["t"], "killed"))
        runs = []
        for run, start in open_runs.items():
            end, error = ends.get(run, (math.inf, None))
            known = {name: start.get(name) for name in ("id", "owner", "fence")}
            runs.append(Run(start["key"], start["t"], end, start["pid"], **known, error=error))
        return sorted((run for run in runs if key is None or run.key == key), key=lambda run: run.start)

    def overlaps(self, key: str | None = None) -> list[tuple[Run, Run]]:
        """Return the pairs of runs that overlapped."""
        return overlaps(self.runs(key))

    def wait_for(self, event: str, count: int = 1, timeout: float = 20.0, **fields: Any) -> list[Entry]:
        """Wait for ``count`` entries of an event with these fields, and return all there are.

        Raises:
            AssertionError: they were not there after ``timeout`` seconds; the message shows the journal.
        """
        return self.wait_until(
            lambda found: len(found) >= count, timeout, f"{count} × {event} {fields or ''}", event, **fields
        )

    def wait_until(
        self,
        predicate: Callable[[list[Entry]], bool],
        timeout: float = 20.0,
        what: str = "",
        event: str | None = None,
        **fields: Any,
    ) -> list[Entry]:
        """Wait until ``predicate`` is true of the (selected) entries, and return them.

        Raises:
            AssertionError: it was false after ``timeout`` seconds; the message shows the journal.
        """
        seen = -1
        found: list[Entry] = []

        def look() -> bool:
            nonlocal seen, found
            size = self.path.stat().st_size
            if size == seen:
                return False
            seen, found = size, self.entries(event, **fields)
            return predicate(found)

        try:
            eventually(look, timeout, what or "the awaited entry", every=0.002)
        except AssertionError as exc:
            raise AssertionError(f"{exc}; the journal:\n{self.path.read_text()[-6000:]}") from None
        return found
