"""What can go wrong with processes, with wires, with the broker and with Celery: one function for each.

A fault does what its name says to one actor, keeps it up for some time, and undoes it. ``touches`` says what cannot be
relied upon meanwhile: bounds of time are not judged then.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery

from tests.lab.history import Tail
from tests.lab.scene import VISIBILITY, Actor, Scene, WorkerActor, is_alive
from tests.support.waiting import eventually

__all__ = ["FAULTS", "Fault", "Touches", "fault"]

#: ``nothing`` that bounds depend upon, some ``process``, or the ``store``.
Touches = str


@dataclass(frozen=True)
class Fault:
    """One kind of accident.

    Attributes:
        name: for the history.
        run: lets it happen, and undoes it.
        touches: see above.
        weight: how often it is chosen, relative to others.
        needs_workers: whether it is of Celery workers.
    """

    name: str
    run: Callable[[Scene, random.Random], None]
    touches: Touches
    weight: float
    needs_workers: bool


FAULTS: dict[str, Fault] = {}


def fault(
    touches: Touches, *, weight: float = 1.0, workers: bool = False, into: dict[str, Fault] | None = None
) -> Callable[[Callable[[Scene, random.Random], None]], Callable[[Scene, random.Random], None]]:
    """Enter a function among the faults."""

    def enter(function: Callable[[Scene, random.Random], None]) -> Callable[[Scene, random.Random], None]:
        table = FAULTS if into is None else into
        table[function.__name__] = Fault(function.__name__, function, touches, weight, workers)
        return function

    return enter


def longer_than_the_ttl(scene: Scene, rng: random.Random) -> float:
    """Return seconds that a dead or stopped holder is not believed for."""
    return scene.site.silence * rng.uniform(1.1, 1.8)


def a_locker(scene: Scene, rng: random.Random) -> Actor:
    return rng.choice(scene.lockers)


def a_worker(scene: Scene, rng: random.Random) -> WorkerActor:
    return rng.choice(scene.workers)


def anybody(scene: Scene, rng: random.Random) -> Actor | WorkerActor:
    """Return somebody who takes locks."""
    everybody: list[Actor | WorkerActor] = [*scene.lockers, *scene.workers]
    return rng.choice(everybody)


def a_child(scene: Scene, rng: random.Random) -> tuple[WorkerActor, int]:
    """Return a pool process, by preference one that holds a lock."""
    worker = a_worker(scene, rng)

    def look() -> list[int]:
        if not worker.alive:
            worker.start()
        return worker.pool()

    pool = eventually(look, 30.0, f"pool processes of {worker}", every=0.05)
    open_holds: dict[str, int] = {}
    for event in Tail(scene.history).read():
        if event.get("event") == "believes":
            open_holds[event["span"]] = event["pid"]
        elif event.get("event") == "believes no more":
            open_holds.pop(event["span"], None)
    holding = [pid for pid in pool if pid in open_holds.values()]
    return worker, rng.choice(holding or pool)


# Processes.


@fault("nothing", weight=2.0, workers=True)
def child_killed(scene: Scene, rng: random.Random) -> None:
    _, pid = a_child(scene, rng)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not is_alive(pid), 10.0, f"the death of {pid}")
    scene.note("killed", dead=pid)


@fault("process", weight=2.0, workers=True)
def child_stopped(scene: Scene, rng: random.Random) -> None:
    _, pid = a_child(scene, rng)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(longer_than_the_ttl(scene, rng))
        os.kill(pid, signal.SIGCONT)


@fault("process", weight=2.0, workers=True)
def main_process_stopped(scene: Scene, rng: random.Random) -> None:
    """Its pool goes on, and nobody renews; for long enough the broker delivers its messages to others."""
    worker = a_worker(scene, rng)
    worker.worker.freeze(main_only=True)
    time.sleep(max(VISIBILITY + 1.5, longer_than_the_ttl(scene, rng)) if rng.random() < 0.5 else scene.site.ttl * 1.2)
    worker.thaw()


@fault("process", workers=True)
def worker_stopped(scene: Scene, rng: random.Random) -> None:
    worker = a_worker(scene, rng)
    worker.freeze()
    time.sleep(longer_than_the_ttl(scene, rng))
    worker.thaw()


@fault("process", workers=True)
def main_process_killed(scene: Scene, rng: random.Random) -> None:
    worker = a_worker(scene, rng)
    worker.worker.kill()
    time.sleep(rng.uniform(0.1, 1.0))
    worker.end()
    worker.start()


@fault("process", workers=True)
def whole_worker_killed(scene: Scene, rng: random.Random) -> None:
    worker = a_worker(scene, rng)
    worker.kill()
    worker.start()


@fault("process", weight=2.0)
def locker_stopped(scene: Scene, rng: random.Random) -> None:
    locker = a_locker(scene, rng)
    locker.freeze()
    time.sleep(longer_than_the_ttl(scene, rng))
    locker.thaw()


@fault("process")
def locker_stopped_for_about_its_ttl(scene: Scene, rng: random.Random) -> None:
    locker = a_locker(scene, rng)
    locker.freeze()
    time.sleep(scene.site.silence * rng.uniform(0.9, 1.1))
    locker.thaw()


@fault("process", weight=1.5)
def locker_killed(scene: Scene, rng: random.Random) -> None:
    locker = a_locker(scene, rng)
    locker.kill()
    locker.start()


@fault("nothing", weight=0.5, workers=True)
def publisher_killed(scene: Scene, rng: random.Random) -> None:
    assert scene.publisher is not None
    scene.publisher.kill()
    scene.publisher.start()


@fault("nothing", weight=0.5, workers=True)
def publisher_stopped(scene: Scene, rng: random.Random) -> None:
    assert scene.publisher is not None
    scene.publisher.freeze()
    time.sleep(rng.uniform(0.5, 2.0))
    scene.publisher.thaw()


# Wires to the store.


@fault("store", weight=2.0)
def cut_off_from_the_store(scene: Scene, rng: random.Random) -> None:
    wire = anybody(scene, rng).wire
    wire.break_()
    time.sleep(longer_than_the_ttl(scene, rng))
    wire.mend()


@fault("store", weight=2.0)
def not_heard_by_the_store(scene: Scene, rng: random.Random) -> None:
    """Nothing gets through one way, or neither way; what was held back arrives in the end."""
    wire = anybody(scene, rng).wire
    ways: list[tuple[Any, ...]] = [("server",), ("client",), ()]
    wire.hold_back(*rng.choice(ways))
    time.sleep(longer_than_the_ttl(scene, rng))
    wire.mend()


@fault("store")
def connections_to_the_store_reset(scene: Scene, rng: random.Random) -> None:
    wire = anybody(scene, rng).wire
    for _ in range(rng.randint(1, 5)):
        wire.cut()
        time.sleep(rng.uniform(0.0, 0.3))


@fault("store")
def slow_wire_to_the_store(scene: Scene, rng: random.Random) -> None:
    wire = anybody(scene, rng).wire
    wire.delay(rng.uniform(0.02, 0.3))
    time.sleep(rng.uniform(0.5, 2.0))
    wire.mend()


@fault("store")
def half_closed_wire_to_the_store(scene: Scene, rng: random.Random) -> None:
    anybody(scene, rng).wire.half_close(rng.choice(("server", "client")))


# The broker.


@fault("process", workers=True)
def broker_connections_reset(scene: Scene, rng: random.Random) -> None:
    """What was delivered and not acknowledged is delivered again."""
    a_worker(scene, rng).broker.cut()
    time.sleep(0.5)


@fault("process", workers=True)
def cut_off_from_the_broker(scene: Scene, rng: random.Random) -> None:
    broker = a_worker(scene, rng).broker
    broker.break_()
    time.sleep(rng.uniform(0.5, VISIBILITY + 1.5))
    broker.mend()


@fault("process", weight=0.5, workers=True)
def slow_wire_to_the_broker(scene: Scene, rng: random.Random) -> None:
    broker = a_worker(scene, rng).broker
    broker.delay(rng.uniform(0.02, 0.2))
    time.sleep(rng.uniform(0.5, 1.5))
    broker.mend()


@fault("process", weight=0.5, workers=True)
def half_closed_wire_to_the_broker(scene: Scene, rng: random.Random) -> None:
    a_worker(scene, rng).broker.half_close(rng.choice(("server", "client")))


@fault("process", workers=True)
def reply_of_the_broker_lost(scene: Scene, rng: random.Random) -> None:
    broker = a_worker(scene, rng).broker
    for _ in range(rng.randint(1, 3)):
        broker.swallow_reply()
        time.sleep(rng.uniform(0.05, 0.3))
    broker.mend()


# Celery.


@fault("process", workers=True)
def warm_shutdown(scene: Scene, rng: random.Random) -> None:
    _shut_down(a_worker(scene, rng), signal.SIGTERM)


@fault("process", workers=True)
def cold_shutdown(scene: Scene, rng: random.Random) -> None:
    _shut_down(a_worker(scene, rng), signal.SIGQUIT)


def _shut_down(worker: WorkerActor, signum: int) -> None:
    worker.worker.process.signal(signum)
    with contextlib.suppress(AssertionError):
        worker.worker.process.wait(5.0)
    worker.end()
    worker.start()


@fault("nothing", weight=1.5, workers=True)
def revoked(scene: Scene, rng: random.Random) -> None:
    _revoke(scene, rng, _running(scene) + _waiting(scene))


@fault("nothing", weight=2.0, workers=True)
def terminated(scene: Scene, rng: random.Random) -> None:
    _revoke(scene, rng, _running(scene), terminate=True, signal=rng.choice(("TERM", "TERM", "KILL")))


def _revoke(scene: Scene, rng: random.Random, ids: Sequence[str], **options: Any) -> None:
    if not ids:
        return
    chosen = rng.choice(ids)
    scene.note("revoking", id=chosen, **options)
    with Celery("control", broker=scene.broker.url_of(1), set_as_current=False) as app:
        app.control.revoke(chosen, **options)


def _running(scene: Scene) -> list[str]:
    """Return the ids of tasks that hold, as of a moment ago."""
    ids: dict[str, str] = {}
    for event in Tail(scene.history).read():
        if event.get("event") == "believes" and event.get("id"):
            ids[event["span"]] = event["id"]
        elif event.get("event") == "believes no more":
            ids.pop(event["span"], None)
    return list(ids.values())[-10:]


def _waiting(scene: Scene) -> list[str]:
    """Return the ids of tasks in the line of the broker."""
    with scene.broker.client(1) as client:
        messages: Any = client.hvals("unacked")
    return [json.loads(message)[0]["headers"]["id"] for message in messages][:20]


# Clocks.


@fault("nothing", weight=1.0)
def clock_of_a_machine_steps(scene: Scene, rng: random.Random) -> None:
    """It has no part in when a lease ends, nor in the order of fences."""
    clock = anybody(scene, rng).clock
    if clock is not None:
        clock.step(rng.choice((-1, 1)) * rng.uniform(1.0, 100.0))
