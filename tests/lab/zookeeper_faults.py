"""What can go wrong with a ZooKeeper ensemble."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator

from tests.lab.faults import Fault, anybody, fault
from tests.lab.history import Tail
from tests.lab.scene import Scene
from tests.lab.sites import ZooKeeperSite
from tests.support.zookeeper_ensemble import ZooKeeperEnsemble
from tests.support.zookeeper_server import close_session

__all__ = ["BREAKING", "ZOOKEEPER_FAULTS"]

ZOOKEEPER_FAULTS: dict[str, Fault] = {}
#: Those that may let two believe in one lock: what then happens is counted, and explained.
BREAKING: dict[str, Fault] = {}


def _ensemble(scene: Scene) -> ZooKeeperEnsemble:
    assert isinstance(scene.site, ZooKeeperSite)
    return scene.site.ensemble


_turn = threading.Lock()


@contextlib.contextmanager
def _breaking(scene: Scene) -> Iterator[ZooKeeperEnsemble]:
    """Have the ensemble to oneself, since each fault waits until it is whole again."""
    with _turn:
        yield _ensemble(scene)


#: Numbers of the requests that write: create, delete, set, multi, create a container.
_WRITES = {1, 2, 5, 14, 19}


def _writes(data: bytes) -> bool:
    """Return whether a packet begins with a request that writes: what it is stands behind its length and number."""
    return int.from_bytes(data[8:12], "big") in _WRITES


@fault("store", weight=2.0, into=ZOOKEEPER_FAULTS)
def reply_lost_after_commit(scene: Scene, rng: random.Random) -> None:
    wire = anybody(scene, rng).wire
    for _ in range(rng.randint(1, 3)):
        wire.swallow_reply(_writes)
        time.sleep(rng.uniform(0.1, 0.5))
    wire.mend()


@fault("store", weight=2.0, into=ZOOKEEPER_FAULTS)
def leader_killed(scene: Scene, rng: random.Random) -> None:
    with _breaking(scene) as ensemble:
        ensemble.kill(ensemble.leader())
        time.sleep(rng.uniform(0.0, 2.0))
        ensemble.restore()


@fault("store", into=ZOOKEEPER_FAULTS)
def follower_killed(scene: Scene, rng: random.Random) -> None:
    with _breaking(scene) as ensemble:
        ensemble.kill(rng.choice(ensemble.followers()))
        time.sleep(rng.uniform(0.0, 1.0))
        ensemble.restore()


@fault("store", into=ZOOKEEPER_FAULTS)
def leader_stopped(scene: Scene, rng: random.Random) -> None:
    with _breaking(scene) as ensemble:
        leader = ensemble.leader()
        leader.freeze()
        time.sleep(rng.uniform(0.5, 3.0))
        leader.thaw()
        ensemble.restore()


@fault("store", into=ZOOKEEPER_FAULTS)
def follower_stopped(scene: Scene, rng: random.Random) -> None:
    with _breaking(scene) as ensemble:
        follower = rng.choice(ensemble.followers())
        follower.freeze()
        time.sleep(rng.uniform(0.5, 3.0))
        follower.thaw()
        ensemble.restore()


@fault("store", into=ZOOKEEPER_FAULTS)
def quorum_lost(scene: Scene, rng: random.Random) -> None:
    with _breaking(scene) as ensemble:
        ensemble.lose_quorum()
        time.sleep(rng.uniform(0.5, 4.0))
        ensemble.restore()


@fault("store", into=BREAKING)
def session_closed_by_somebody_else(scene: Scene, rng: random.Random) -> None:
    """Nobody can know that before; the holder is told right then."""
    found = [event["session"] for event in Tail(scene.history).read() if event.get("session")]
    if not found:
        return
    session, password = rng.choice(found[-5:])
    begun = time.monotonic()
    # It may be over by now; and a client that claims it back in the same moment may win.
    with contextlib.suppress(AssertionError):
        close_session(_ensemble(scene).hosts, session, bytes.fromhex(password))
    scene.note("breaks", what="expire all", since=begun)
