"""Other people's locks under the faults that break them: what the same lab says of them, for comparison."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.lab.effects import tally
from tests.lab.faults import longer_than_the_ttl
from tests.lab.history import load
from tests.lab.run import Outcome, StoreName, open_site
from tests.lab.scenarios import holder
from tests.lab.scene import Actor, Scene
from tests.lab.verdict import judge

__all__ = ["PLAYS", "PeerPlay", "perform"]


@dataclass(frozen=True)
class PeerPlay:
    """A lock of somebody else's, and what happens to whoever holds it.

    Attributes:
        kind: whose.
        store: where it lives.
        script: what happens.
        hold: seconds of work; where nothing is renewed, less than the lock lasts, as its users are told.
    """

    kind: str
    store: StoreName
    script: Callable[[Scene, random.Random], None]
    hold: float


def holder_stopped(scene: Scene, rng: random.Random) -> None:
    """A process is stopped for longer than the lock lasts, and goes on."""
    stopped = holder(scene)
    stopped.freeze()
    time.sleep(longer_than_the_ttl(scene, rng) + 1.0)
    stopped.thaw()
    time.sleep(2.0)


def holder_cut_off(scene: Scene, rng: random.Random) -> None:
    """A process cannot reach its store for longer than the lock lasts."""
    alone = holder(scene)
    alone.wire.break_()
    time.sleep(longer_than_the_ttl(scene, rng) + 1.0)
    alone.wire.mend()
    time.sleep(2.0)


PLAYS = [
    PeerPlay("redis-py", "redis", holder_stopped, hold=1.0),
    PeerPlay("python-redis-lock", "redis", holder_cut_off, hold=5.0),
    PeerPlay("kazoo", "zookeeper", holder_cut_off, hold=5.0),
]


def perform(play: PeerPlay, folder: Path) -> Outcome:
    """Perform a play with two processes, and judge what they believed."""
    scene = Scene(folder, open_site(play.store, folder), 1, workers=0, lockers=0)
    try:
        for n in range(2):
            name = f"peer{n}"
            argv = ["-m", "tests.lab.peer", play.kind, "one", str(scene.site.ttl), str(play.hold)]
            scene.lockers.append(Actor(name, argv, scene.site.wire(), scene))
        play.script(scene, random.Random(1))
        scene.end_processes()
        lists = tally(load(scene.history), scene.resource.url)
        verdict = judge(scene.history, ttl=scene.site.ttl, silence=scene.site.silence)
        return Outcome(verdict, lists, [], [], Counter())
    finally:
        scene.close()
        scene.close_resource()
