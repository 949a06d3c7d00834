"""Several processes that fight for one lock (:mod:`.contender`) while a test breaks things, and what they believed."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.contender import URL
from tests.support.journal import VARIABLE, Entry, Journal
from tests.support.process import Process
from tests.support.trust import Hold, holds, overlapping
from tests.support.waiting import eventually

__all__ = ["Contest"]


class Contest:
    """Contenders for one key, started by the constructor; ended by :meth:`end`.

    Arguments:
        urls: the store's address, as each contender knows it: one process for each.
        journal: what they write.
        folder: takes their logs.
        ttl: seconds of each lease.
        hold: seconds for which each of them holds, before the next one's turn.
    """

    KEY = "contested"

    def __init__(self, urls: Sequence[str], journal: Journal, folder: Path, *, ttl: float, hold: float) -> None:
        self.journal = journal
        argv = [sys.executable, "-m", "tests.support.contender", self.KEY, str(ttl), str(hold)]
        self.contenders = [
            Process(
                argv,
                name=f"contender{n}",
                log=folder / f"contender{n}.log",
                env={URL: url, VARIABLE: str(journal.path)},
            )
            for n, url in enumerate(urls)
        ]

    def name_of(self, process: Process) -> str:
        """Return what a contender calls itself in the journal."""
        return f"contender {process.pid}"

    def holder(self, *, within: float = 30.0) -> tuple[Process, Entry]:
        """Wait for a hold that has just begun; return its process and its ``granted`` entry.

        Raises:
            AssertionError: there was none within so many seconds.
        """
        began = time.monotonic()

        def look() -> Entry | None:
            grants = self.journal.entries("granted")
            return grants[-1] if grants and grants[-1]["t"] >= began else None

        grant = eventually(look, within, "a grant")
        assert grant is not None
        return next(each for each in self.contenders if self.name_of(each) == grant["name"]), grant

    def everybody_holds_again(self, *, without: Process | None = None, within: float = 60.0) -> None:
        """Wait until each contender, but one, has been granted the lock once more.

        Raises:
            AssertionError: one of them was not, within so many seconds, or has ended.
        """
        began = time.monotonic()
        names = {self.name_of(each) for each in self.contenders if each is not without}

        def look() -> bool:
            for each in self.contenders:
                assert each.alive, f"{each!r}:\n{each.log[-4000:]}"
            return names <= {entry["name"] for entry in self.journal.entries("granted") if entry["t"] >= began}

        eventually(look, within, f"a grant to each of {len(names)} contenders", every=0.02)

    def check(self) -> list[Hold]:
        """Look at every hold there was so far, and return them.

        Raises:
            AssertionError: two believed in their holds at the same time, or a fence did not grow.
        """
        grants = holds(self.journal.entries())
        both = overlapping(grants)
        assert not both, f"two held the lock at once: {both}"
        fences = [hold.fence for hold in grants]
        assert fences == sorted(set(fences)), f"a fence did not grow: {fences}"
        return grants

    def end(self) -> None:
        """Kill the contenders."""
        for each in self.contenders:
            each.end(0.0)
