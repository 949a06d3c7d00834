"""Short plays, each the fault that shows one mistake; what is right survives all of them.

Each names the cast (arguments of :class:`~tests.lab.scene.Scene`), the mutant that it shows, and what happens.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab import redis_faults
from tests.lab.faults import longer_than_the_ttl
from tests.lab.history import Event, Tail
from tests.lab.run import Outcome, conclude, open_site
from tests.lab.scene import Actor, Scene
from tests.support.apps import close_app, load_app
from tests.support.waiting import eventually

__all__ = ["SCENARIOS", "Scenario", "holder", "play"]

Script = Callable[[Scene, random.Random], None]


@dataclass(frozen=True)
class Scenario:
    """A play.

    Attributes:
        mutant: what it shows.
        script: what happens.
        cast: who takes part.
        ttl: seconds of a lease.
    """

    mutant: str
    script: Script
    cast: dict[str, Any] = field(default_factory=dict)
    ttl: float = 2.0


SCENARIOS: list[Scenario] = []


def shows(mutant: str, *, ttl: float = 2.0, **cast: Any) -> Callable[[Script], Script]:
    """Enter a play."""

    def enter(script: Script) -> Script:
        SCENARIOS.append(Scenario(mutant, script, {"workers": 0, "keys": ("one",), **cast}, ttl))
        return script

    return enter


def play(scenario: Scenario, folder: Path, mutant: str | None) -> Outcome:
    """Perform a play, with the mutant or without, and judge what happened."""
    site = open_site("redis", folder)
    site.ttl = site.silence = scenario.ttl
    scene = Scene(folder, site, 1, mutant=mutant, **scenario.cast)
    try:
        scenario.script(scene, random.Random(1))
        return conclude(scene, tidy=mutant is None)
    finally:
        scene.close()
        scene.close_resource()


def beliefs(scene: Scene, **fields: Any) -> list[Event]:
    """Return the beginnings of holds that have not ended, oldest first."""
    begun: dict[str, Event] = {}
    for event in sorted(Tail(scene.history).read(), key=lambda one: float(one["t"])):
        if event.get("event") == "believes":
            begun[event["span"]] = event
        elif event.get("event") in ("believes no more", "doubts"):
            begun.pop(event["span"], None)
    return [each for each in begun.values() if all(each[name] == value for name, value in fields.items())]


def holder(scene: Scene) -> Actor:
    """Wait for a locker that holds, and return it."""

    def look() -> Actor | None:
        pids = {event["pid"] for event in beliefs(scene)}
        return next((locker for locker in scene.lockers if locker.process.pid in pids), None)

    found = eventually(look, 20.0, "a locker that holds")
    assert found is not None
    return found


@shows("release_without_owner_check", lockers=3, styles=("wait",), hold=0.8)
def a_holder_is_stopped_for_longer_than_its_lease(scene: Scene, rng: random.Random) -> None:
    stopped = holder(scene)
    stopped.freeze()
    time.sleep(longer_than_the_ttl(scene, rng))
    stopped.thaw()
    time.sleep(1.5)


@shows("no_trust_deadline", lockers=2, styles=("wait",), hold=4.0)
def a_holder_is_cut_off_from_its_store(scene: Scene, rng: random.Random) -> None:
    alone = holder(scene)
    alone.wire.break_()
    time.sleep(scene.site.silence + 1.0)
    alone.wire.mend()


@shows("owner_is_task_id", workers=2, lockers=0, hold=0.5, per_second=4.0, twice=1.0)
def every_message_comes_twice(scene: Scene, rng: random.Random) -> None:
    eventually(lambda: beliefs(scene), 30.0, "the first task")
    time.sleep(5.0)


@shows("acquire_is_not_idempotent", lockers=2, styles=("try",), hold=0.05)
def replies_are_lost_after_the_store_has_acted(scene: Scene, rng: random.Random) -> None:
    holder(scene)
    for _ in range(10):
        redis_faults.REDIS_FAULTS["reply_lost_after_commit"].run(scene, rng)
        time.sleep(0.1)


@shows("release_on_task_revoked", ttl=6.0, workers=2, lockers=0, per_second=0.01)
def a_task_that_will_not_stop_is_terminated(scene: Scene, rng: random.Random) -> None:
    module = load_app("tests.lab.app", {"BROKER_URL": scene.broker.url_of(1)})
    try:
        first = str(uuid.uuid4())
        module.stubborn.apply_async(("one", 7.0), task_id=first, ignore_result=True)
        eventually(lambda: beliefs(scene, id=first), 20.0, "the first one's hold")
        module.waiting.apply_async(("one", 0.3), ignore_result=True)
        eventually(
            lambda: [event for event in Tail(scene.history).read() if event.get("answer") == "ticket"], 20.0, "a waiter"
        )
        # From a renewal to the next one there is time enough for others to come.
        renewed = len(_renewals(scene))
        eventually(lambda: len(_renewals(scene)) > renewed, 20.0, "a renewal")
        module.app.control.revoke(first, terminate=True, signal="TERM")
        time.sleep(4.5)
    finally:
        close_app(module.app)


def _renewals(scene: Scene) -> list[Event]:
    return [event for event in Tail(scene.history).read() if event.get("answer") == "HELD"]


@shows("renewal_goes_on_after_release", lockers=2, styles=("mixed",), hold=0.1)
def nothing_in_particular(scene: Scene, rng: random.Random) -> None:
    holder(scene)
    time.sleep(3.0)


@shows("fence_from_the_clock", lockers=2, styles=("wait",), hold=0.1, clocks=True)
def the_clock_of_a_machine_is_behind(scene: Scene, rng: random.Random) -> None:
    holder(scene)
    clock = scene.lockers[0].clock
    assert clock is not None
    clock.step(-60.0)
    time.sleep(2.0)


@shows("newcomers_overtake", lockers=4, styles=("wait", "try", "try", "wait"), hold=0.1)
def some_wait_and_some_only_try(scene: Scene, rng: random.Random) -> None:
    holder(scene)
    time.sleep(3.0)
