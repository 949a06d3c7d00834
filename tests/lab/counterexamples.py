"""What does break a lock: plays in which two believe, or writes are lost, and by how much.

They are no mistakes of the code but the limits of what it promises (docs/guarantees.md): a store that has lost its
data, clocks that jump, locks that are removed by hand, and processes that are stopped without noticing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from tests.lab.history import Tail
from tests.lab.redis_faults import BREAKING as REDIS_BREAKING
from tests.lab.run import Outcome, StoreName, conclude, open_site
from tests.lab.scenarios import Script, holder
from tests.lab.scene import Scene
from tests.lab.sites import RedisSite, ZooKeeperSite
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.waiting import eventually

__all__ = ["COUNTEREXAMPLES", "Counterexample", "show"]


@dataclass(frozen=True)
class Counterexample:
    """A play that shows a limit.

    Attributes:
        store: where the locks live.
        script: what happens.
        cast: who takes part.
    """

    store: StoreName
    script: Script
    cast: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name."""
        return f"{self.store}: {self.script.__name__.replace('_', ' ')}"


COUNTEREXAMPLES: list[Counterexample] = []


def counterexample(*stores: StoreName, **cast: Any) -> Callable[[Script], Script]:
    """Enter a play."""

    def enter(script: Script) -> Script:
        whole = {"workers": 0, "keys": ("one",), **cast}
        COUNTEREXAMPLES.extend(Counterexample(store, script, whole) for store in stores)
        return script

    return enter


def show(example: Counterexample, folder: Path) -> Outcome:
    """Perform a play, and judge what happened."""
    scene = Scene(folder, open_site(example.store, folder), 1, **example.cast)
    try:
        example.script(scene, random.Random(1))
        return conclude(scene, tidy=False)
    finally:
        scene.close()
        scene.close_resource()


@counterexample("redis", lockers=3, styles=("try",), hold=1.5)
def the_server_restarts_without_its_data(scene: Scene, rng: random.Random) -> None:
    for _ in range(5):
        holder(scene)
        REDIS_BREAKING["server_restarted_without_its_data"].run(scene, rng)
        time.sleep(2.0)


@counterexample("redis", lockers=3, styles=("try",), hold=1.5)
def a_replica_takes_over_that_missed_the_last_writes(scene: Scene, rng: random.Random) -> None:
    assert isinstance(scene.site, RedisSite)
    primary = scene.site.server
    for n in range(3):
        replica = RedisServer(scene.folder / f"replica{n}")
        scene.site.replicas.append(replica)
        between = Proxy(primary.host, primary.port)
        with replica.client() as client:
            client.replicaof(between.host, between.port)

            def in_step(client: redis.Redis = client) -> bool:
                return bool(client.info("replication")["master_link_status"] == "up")

            eventually(in_step, 20.0, "a replica in step")
            between.pause("client")
            time.sleep(2.0)
            holder(scene)
            begun = time.monotonic()
            primary.kill()
            between.close()
            client.replicaof("NO", "ONE")
        for locker in scene.lockers:
            locker.wire.lead_to(replica)
        scene.note("breaks", what="lose data", since=begun)
        primary = replica
        time.sleep(2.0)


@counterexample("redis", lockers=3, styles=("try",), hold=1.5)
def the_clock_of_the_server_jumps_forwards(scene: Scene, rng: random.Random) -> None:
    assert isinstance(scene.site, RedisSite)
    assert scene.site.clock is not None
    for _ in range(5):
        holder(scene)
        begun = time.monotonic()
        scene.site.clock.step(3 * scene.site.ttl)
        time.sleep(0.2)
        scene.note("breaks", what="expire all", since=begun)
        time.sleep(1.8)


@counterexample("redis", lockers=2, styles=("wait",), hold=0.1)
def data_lost_and_a_clock_that_went_back(scene: Scene, rng: random.Random) -> None:
    assert isinstance(scene.site, RedisSite)
    assert scene.site.clock is not None
    holder(scene)
    time.sleep(1.0)
    begun = time.monotonic()
    scene.site.clock.step(-60.0)
    scene.site.restart(without_data=True)
    scene.note("breaks", what="lose data", since=begun)
    time.sleep(4.0)


@counterexample("zookeeper", lockers=3, styles=("try",), hold=1.5)
def the_node_of_a_holder_is_deleted_by_hand(scene: Scene, rng: random.Random) -> None:
    assert isinstance(scene.site, ZooKeeperSite)
    for _ in range(5):
        holder(scene)
        begun = time.monotonic()
        scene.site.delete_holder("one")
        scene.note("breaks", what="expire all", since=begun)
        time.sleep(2.0)


@counterexample("zookeeper", lockers=2, styles=("wait",), hold=0.2)
def all_servers_lose_their_data(scene: Scene, rng: random.Random) -> None:
    assert isinstance(scene.site, ZooKeeperSite)
    holder(scene)
    # Fences grow by transactions: some more, so that those of the new life are smaller for a while.
    time.sleep(3.0)
    begun = time.monotonic()
    scene.site.lose_data()
    scene.note("breaks", what="lose data", since=begun)
    # The servers let nobody in who has seen later transactions than they know of: only processes that begin anew.
    for locker in scene.lockers:
        locker.kill()
        locker.start()
    holder(scene)
    time.sleep(2.0)


@counterexample("redis", "zookeeper", lockers=3, styles=("drowsy",), hold=0.1)
def holders_are_stopped_between_their_last_look_and_their_write(scene: Scene, rng: random.Random) -> None:
    tail = Tail(scene.history)
    end = time.monotonic() + 20.0
    asleep: dict[int, float] = {}
    while time.monotonic() < end:
        for event in tail.read():
            if event.get("event") == "falls asleep":
                asleep[event["pid"]] = event["t"]
        for locker in scene.lockers:
            pid = locker.process.pid
            # Long enough for another one to have come, and to have written.
            if pid in asleep and time.monotonic() > asleep[pid] + scene.site.silence + 1.0:
                del asleep[pid]
                locker.thaw()
        time.sleep(0.02)
    for locker in scene.lockers:
        locker.thaw()
    time.sleep(0.5)
