"""One run: a scene, a nemesis, some time; then the end of everybody, and the verdict."""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from celery_distlock.lease import Claim, Lease, new_owner
from celery_distlock.stores import open_store
from tests.lab.effects import Kind, Tally, tally
from tests.lab.faults import FAULTS, Fault
from tests.lab.history import load
from tests.lab.nemesis import Nemesis
from tests.lab.redis_faults import BREAKING as REDIS_BREAKING
from tests.lab.redis_faults import REDIS_FAULTS
from tests.lab.scene import Scene
from tests.lab.sites import RedisSite, Site, ZooKeeperSite
from tests.lab.verdict import Verdict, judge
from tests.lab.zookeeper_faults import BREAKING as ZOOKEEPER_BREAKING
from tests.lab.zookeeper_faults import ZOOKEEPER_FAULTS

__all__ = ["Outcome", "StoreName", "conclude", "faults_of", "open_site", "run"]

StoreName = Literal["redis", "zookeeper"]


@dataclass
class Outcome:
    """What a run has come to.

    Attributes:
        verdict: what the history says.
        lists: what became of the writes under the lock, by kind of list.
        leftovers: what was still in the store in the end.
        complaints: lines of logs that should not be there.
        happened: how often each fault did.
    """

    verdict: Verdict
    lists: dict[Kind, Tally]
    leftovers: list[str]
    complaints: list[str]
    happened: Counter[str]

    @property
    def violations(self) -> list[str]:
        """Everything that must not have been."""
        fenced = self.lists["fenced"]
        return [
            *self.verdict.violations,
            *([f"the list that checks fences: {fenced}"] if fenced.lost else []),
            *(f"left behind: {each}" for each in self.leftovers),
            *(f"logged: {each}" for each in self.complaints),
        ]

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {what}" for what, count in self.verdict.counts.items())
        lists = "; ".join(f"{kind}: {each}" for kind, each in self.lists.items())
        faults = ", ".join(f"{count} × {name}" for name, count in sorted(self.happened.items()))
        lines = [counts, f"lists: {lists}", f"faults: {faults}"]
        lines += [f"excused: {each}" for each in self.verdict.excused]
        lines += [f"undecided: {each}" for each in self.verdict.undecided]
        shown = self.violations
        lines += [f"VIOLATION: {each}" for each in shown[:12]]
        lines.append(f"{len(shown)} violations")
        return "\n".join(lines)


def faults_of(store: StoreName, *, breaking: bool = True) -> list[Fault]:
    """Return what may happen to a store and to those who use it.

    Arguments:
        store: which.
        breaking: also what may let two believe in one lock.
    """
    own, breaks = {
        "redis": (REDIS_FAULTS, REDIS_BREAKING),
        "zookeeper": (ZOOKEEPER_FAULTS, ZOOKEEPER_BREAKING),
    }[store]
    found = {**FAULTS, **own, **(breaks if breaking else {})}
    return list(found.values())


def open_site(store: StoreName, folder: Path) -> Site:
    """Start the servers of a store."""
    return RedisSite(folder) if store == "redis" else ZooKeeperSite(folder)


def run(
    folder: Path,
    store: StoreName,
    seed: int,
    seconds: float,
    *,
    breaking: bool = True,
    say: Callable[[str], None] = lambda line: None,
    **scene: Any,
) -> Outcome:
    """Let everybody work for so long while things break, and judge what happened.

    Arguments:
        folder: takes everything that is written.
        store: where the locks live.
        seed: decides what breaks.
        seconds: of it.
        breaking: whether faults that may let two believe in one lock are among them.
        say: called with a line for each fault.
        scene: arguments of :class:`~tests.lab.scene.Scene`.
    """
    stage = Scene(folder, open_site(store, folder), seed, **{"clocks": True, **scene})
    try:
        nemesis = Nemesis(stage, faults_of(store, breaking=breaking), seed, say)
        nemesis.rage(seconds)
        # Peace at last: bounds of time can be judged once more.
        time.sleep(2.0)
        return conclude(stage, nemesis.happened)
    finally:
        stage.close()
        stage.close_resource()


def conclude(stage: Scene, happened: Counter[str] | None = None, *, tidy: bool = True) -> Outcome:
    """End everybody but the servers, and judge; ``tidy``: also what is left in the store some seconds later."""
    stage.end_processes()
    lists = tally(load(stage.history), stage.resource.url)
    leftovers: list[str] = []
    if tidy:
        # Waiters are taken for gone within two seconds, and their offers within two more.
        time.sleep(max(stage.site.silence, 4.0) + 0.5)
        leftovers = _visit(stage.site, {*stage.keys, "permits"})
    complaints = [
        f"{actor}: {line}" for actor in stage.actors for line in re.findall(r".*unexpected error.*", actor.log)
    ]
    verdict = judge(stage.history, ttl=stage.site.ttl, silence=stage.site.silence)
    return Outcome(verdict, lists, leftovers, complaints, happened or Counter())


def _visit(site: Site, keys: set[str]) -> list[str]:
    """Have every key taken and given back once more, and name what is there after that.

    A key whose holder was killed must be free by now; the dead holder stays listed until somebody wants its place.
    """
    wire = site.wire()
    found = []
    with contextlib.closing(wire), contextlib.closing(open_store(wire.url)) as store:
        for key in sorted(keys):
            answer = store.acquire(Claim(key, new_owner(), site.ttl))
            if isinstance(answer, Lease):
                store.release([answer])
            else:
                found.append(f"{key!r} is not free: {answer}")
        return found + site.leftovers()
