"""When the bodies of tasks began and ended: 16 bytes each, in a file that all processes append to.

Written at the body's end, so that measuring does not get between two bodies. Times are ``time.monotonic()``, which on
Linux is one clock for all processes of a host.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

__all__ = ["FOLDER", "Bodies", "Body", "body", "gaps", "overlaps", "record"]

#: The environment variable that names the folder of the files.
FOLDER = "BENCH_BODIES"
_RECORD = struct.Struct("dd")
_files: dict[str, int] = {}


class Body(NamedTuple):
    """When it began and ended (monotonic)."""

    start: float
    end: float


@contextmanager
def body(name: str) -> Iterator[None]:
    """Record the times of this block in the file ``name``."""
    start = time.monotonic()
    yield
    record(name, start, time.monotonic())


def record(name: str, start: float, end: float) -> None:
    """Append one entry to the file ``name``."""
    file = _files.get(name)
    if file is None:
        path = Path(os.environ[FOLDER]) / name
        file = _files[name] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, _RECORD.pack(start, end))


class Bodies:
    """The reader's side of one file."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / name

    def __len__(self) -> int:
        return self._path.stat().st_size // _RECORD.size if self._path.exists() else 0

    def since(self, number: int = 0) -> list[Body]:
        """Return what was recorded after the first ``number``, in the order of the starts."""
        content = self._path.read_bytes()[number * _RECORD.size :] if self._path.exists() else b""
        return sorted(Body(*times) for times in _RECORD.iter_unpack(content))


def gaps(bodies: Sequence[Body]) -> list[float]:
    """Return the seconds from each end to the next start; negative where they overlap."""
    return [after.start - before.end for before, after in pairwise(bodies)]


def overlaps(bodies: Sequence[Body]) -> int:
    """Return how many began before all that had begun earlier had ended."""
    count, latest = 0, float("-inf")
    for one in bodies:
        count += one.start < latest
        latest = max(latest, one.end)
    return count
