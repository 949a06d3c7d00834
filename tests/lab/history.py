"""What every process of a run did, as lines of JSON: each process writes a file of its own, and they are merged.

An operation is an ``invoke`` line, written before the question is sent, and an ``ok``, ``fail`` or ``unknown`` line,
written when the answer is there. One that was interrupted, or whose process was killed, has no second line: it may
have happened at any time since, or not at all. Everything else is a ``note``. Times are ``time.monotonic()``, which on
Linux is one clock for all processes of a host, whatever is done to its wall clock.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["FOLDER", "Event", "Operation", "Outcome", "Tail", "invoke", "load", "note", "operations", "recording"]

#: The environment variable that names the folder with the run's files.
FOLDER = "LAB_HISTORY"

Outcome = Literal["ok", "fail", "unknown"]
Event = dict[str, Any]

_numbers = itertools.count(1)
_file: tuple[int, str, int] | None = None


def recording() -> bool:
    """Return whether this process writes a history."""
    return bool(os.environ.get(FOLDER))


def write(kind: str, *, folder: Path | None = None, **fields: Any) -> None:
    """Append one line; what was written survives the process's ``kill -9``."""
    global _file
    where, pid = os.environ[FOLDER] if folder is None else str(folder), os.getpid()
    if _file is None or _file[:2] != (pid, where):
        # A forked child has a file of its own.
        path = os.path.join(where, f"history-{pid}.jsonl")
        _file = (pid, where, os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666))
    line = json.dumps({"kind": kind, "t": time.monotonic(), "pid": pid, **fields}, separators=(",", ":"))
    os.write(_file[2], line.encode() + b"\n")


def note(event: str, *, folder: Path | None = None, **fields: Any) -> None:
    """Write down something that is no operation, in the folder that the environment names or in this one."""
    write("note", folder=folder, event=event, **fields)


class Call:
    """An operation under way; see :func:`invoke`."""

    def __init__(self, op: str, fields: Mapping[str, Any]) -> None:
        self._call = f"{os.getpid()}.{next(_numbers)}"
        write("invoke", op=op, call=self._call, **fields)

    def returns(self, outcome: Outcome, **fields: Any) -> None:
        """Write down the answer."""
        write(outcome, call=self._call, **fields)


def invoke(op: str, **fields: Any) -> Call:
    """Write down that an operation is about to be asked for.

    Arguments:
        op: its name.
        fields: JSON-serialisable; ``key`` and ``owner`` say what it is about.
    """
    return Call(op, fields)


@dataclass(frozen=True)
class Operation:
    """One operation on one key.

    Attributes:
        op: its name.
        owner: who asked, or on whose behalf.
        invoked, returned: monotonic seconds; ``returned`` is infinite if there was no answer.
        outcome: what came of it; an operation that never returned is ``unknown``.
        fence: of the lease that was granted, or that it is about; 0 if not known.
        ttl: seconds.
        more: what else was written about it.
    """

    op: str
    owner: str
    invoked: float
    returned: float = math.inf
    outcome: Outcome = "ok"
    key: str = "k"
    fence: int = 0
    ttl: float = 1.0
    pid: int = 0
    more: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)

    @property
    def open(self) -> bool:
        """Whether nobody knows if it happened."""
        return self.outcome == "unknown"

    def __str__(self) -> str:
        result = self.more.get("answer") or self.outcome
        fence = f" #{self.fence}" if self.fence else ""
        return f"{self.op} → {result}{fence}"


def operations(events: Iterable[Event]) -> list[Operation]:
    """Pair up the lines; oldest invocation first."""
    pending: dict[str, Event] = {}
    answers: dict[str, Event] = {}
    for event in events:
        if event["kind"] == "invoke":
            pending[event["call"]] = event
        elif event["kind"] != "note":
            answers[event["call"]] = event
    found = []
    for call, asked in pending.items():
        answer = answers.get(call, {"kind": "unknown", "t": math.inf})
        told = {**asked, **answer}
        unknown = answer["kind"] == "unknown"
        found.append(
            Operation(
                op=asked["op"],
                owner=asked["owner"],
                invoked=asked["t"],
                returned=math.inf if unknown else answer["t"],
                outcome=answer["kind"],
                key=asked["key"],
                fence=told.get("fence") or 0,
                ttl=told.get("ttl") or 0.0,
                pid=asked["pid"],
                more=told,
            )
        )
    return sorted(found, key=lambda operation: operation.invoked)


def load(folder: Path) -> list[Event]:
    """Return the lines of all processes, oldest first."""
    tail = Tail(folder)
    return sorted(tail.read(), key=lambda event: float(event["t"]))


class Tail:
    """Reads what is new in a folder, while the run goes on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[Path, int] = {}

    def read(self) -> list[Event]:
        """Return the lines that were written since the last call, those of each process in their order."""
        found: list[Event] = []
        for path in sorted(self._folder.glob("history-*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                text = file.read()
            # A line counts once its end is there.
            whole = text[: text.rfind(b"\n") + 1]
            self._offsets[path] = self._offsets.get(path, 0) + len(whole)
            found += [json.loads(line) for line in whole.splitlines()]
        return found
