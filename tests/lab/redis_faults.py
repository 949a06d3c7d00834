"""What can go wrong with a Redis server."""

from __future__ import annotations

import random
import time

from tests.lab.faults import Fault, anybody, fault, longer_than_the_ttl
from tests.lab.scene import Scene
from tests.lab.sites import RedisSite

__all__ = ["BREAKING", "REDIS_FAULTS"]

REDIS_FAULTS: dict[str, Fault] = {}
#: Those that may let two believe in one lock (design rule 16): what then happens is counted, and explained.
BREAKING: dict[str, Fault] = {}


def _site(scene: Scene) -> RedisSite:
    assert isinstance(scene.site, RedisSite)
    return scene.site


@fault("store", weight=2.0, into=REDIS_FAULTS)
def reply_lost_after_commit(scene: Scene, rng: random.Random) -> None:
    wire = anybody(scene, rng).wire
    for _ in range(rng.randint(1, 4)):
        wire.swallow_reply(b"EVALSHA")
        time.sleep(rng.uniform(0.05, 0.2))
    wire.mend()


@fault("store", into=REDIS_FAULTS)
def server_stopped(scene: Scene, rng: random.Random) -> None:
    site = _site(scene)
    site.server.freeze()
    time.sleep(longer_than_the_ttl(scene, rng) if rng.random() < 0.7 else rng.uniform(0.1, 1.0))
    site.server.thaw()


@fault("store", into=REDIS_FAULTS)
def server_restarted_with_its_data(scene: Scene, rng: random.Random) -> None:
    _site(scene).restart()


@fault("store", into=REDIS_FAULTS)
def scripts_flushed(scene: Scene, rng: random.Random) -> None:
    with _site(scene).server.client() as client:
        for _ in range(rng.randint(1, 10)):
            client.script_flush()
            time.sleep(rng.uniform(0.0, 0.2))


@fault("store", into=REDIS_FAULTS)
def clients_paused(scene: Scene, rng: random.Random) -> None:
    seconds = longer_than_the_ttl(scene, rng) if rng.random() < 0.5 else rng.uniform(0.1, 1.0)
    with _site(scene).server.client() as client:
        client.client_pause(round(1000 * seconds))
    time.sleep(seconds)


@fault("store", into=REDIS_FAULTS)
def clock_of_the_server_steps_back(scene: Scene, rng: random.Random) -> None:
    """Dead holders are believed for longer; fences grow nevertheless, since the counter is kept."""
    clock = _site(scene).clock
    if clock is not None:
        step = rng.uniform(0.5, 3.0)
        scene.note("clock of the store goes back", seconds=step)
        clock.step(-step)
        time.sleep(step)


@fault("store", into=BREAKING)
def server_restarted_without_its_data(scene: Scene, rng: random.Random) -> None:
    begun = time.monotonic()
    _site(scene).restart(without_data=True)
    scene.note("breaks", what="lose data", since=begun)


@fault("store", into=BREAKING)
def clock_of_the_server_steps_forward(scene: Scene, rng: random.Random) -> None:
    clock = _site(scene).clock
    if clock is not None:
        begun = time.monotonic()
        clock.step(rng.uniform(0.5, 2.0) * scene.site.ttl)
        # Whoever is not heard of for a ttl from now on has expired by this clock, too.
        time.sleep(0.2)
        scene.note("breaks", what="expire all", since=begun)
