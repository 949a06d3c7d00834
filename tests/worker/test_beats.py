"""Three real beats, each killed and restarted: every tick is published once."""

from __future__ import annotations

import math
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from celery_distlock.stores import open_store
from tests.support.journal import Journal
from tests.support.process import Process
from tests.support.servers import Databases
from tests.support.waiting import eventually
from tests.support.workers import Settings

pytestmark = pytest.mark.also_in_zookeeper

APP = "tests.worker.apps.beats"
ROOT = Path(__file__).parents[2]

StartBeat = Callable[..., Process]

ENVIRONMENT: dict[str, str | None] = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": None}


@pytest.fixture
def beat(settings: Settings, tmp_path: Path) -> Iterator[StartBeat]:
    """A factory of beats, by the name of their scheduler."""
    started: list[Process] = []

    def start(scheduler: str, wait: bool = True, app: str = APP, loglevel: str = "INFO", **more: str) -> Process:
        name = f"beat{len(started) + 1}"
        argv = [sys.executable, "-m", "celery", "-A", app, "beat", "-S", scheduler, "--pidfile="]
        argv += ["--loglevel", loglevel]
        env = {**ENVIRONMENT, **settings.env, **more}
        process = Process(argv, name=name, log=tmp_path / f"{name}.log", env=env, cwd=tmp_path)
        started.append(process)
        if wait:
            process.wait_for_log(r"beat: Starting", 30)
        return process

    yield start
    for each in started:
        each.end(0.0)
    for each in started:
        assert "Traceback" not in each.log, each.log[-3000:]


def leader(settings: Settings, app: str = APP) -> int | None:
    """Return the pid of the beat that leads."""
    with closing(open_store(settings.locks)) as store:
        holders = store.holders(f"beat:{app}")
    return int(holders[0]["identifier"].rpartition("pid ")[2].rstrip(")")) if holders else None


@pytest.mark.parametrize(
    ("scheduler", "name", "witness"),
    [
        ("celery_distlock.beat:LeaderScheduler", "led", r"beat: (stands by|leads)"),
        ("celery.beat:Scheduler", "unique", r"Sending due task unique"),
    ],
    ids=["leader", "unique tick"],
)
@pytest.mark.parametrize("seconds", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_each_tick_is_published_once_though_beats_are_killed(
    beat: StartBeat, journal: Journal, scheduler: str, name: str, witness: str, seconds: int
) -> None:
    beats = [beat(scheduler, loglevel="DEBUG") for _ in range(3)]
    for one in beats:
        one.wait_for_log(witness, 30)
    dead: list[Process] = []
    dice = random.Random(seconds)
    began = time.time()
    for index in dice.sample(range(3), 3):
        _wait_until(time.time() + dice.uniform(0.3, seconds / 3 - 1))
        beats[index].kill()
        dead.append(beats[index])
        beats[index] = beat(scheduler, loglevel="DEBUG")
        # One that knows of nothing that was due cannot make up for another one that dies.
        beats[index].wait_for_log(witness, 30)
    # The last one that was killed may have led.
    _wait_until(max(time.time() + 4.5, began + seconds))
    # What became due in the last second may be on its way still.
    due = set(range(math.ceil(began), math.floor(time.time() - 1)))
    for one in beats:
        one.kill()
    told = "".join(one.log for one in dead + beats)
    entered = [int(moment) for moment in re.findall(rf"this beat publishes tick beat:\S+:{name}:(\d+)\.000", told)]
    assert len(entered) == len(set(entered)), sorted(entered)
    lost = len(entered) - len(journal.entries("published", name=name))
    assert lost >= 0, "more messages than ticks"
    assert lost + len(due - set(entered)) <= 1, (lost, due - set(entered), told)


def _wait_until(moment: float) -> None:
    eventually(lambda: time.time() > moment, 120.0, "the time to pass")


def test_another_one_leads_within_the_ttl_and_a_second(beat: StartBeat, journal: Journal, settings: Settings) -> None:
    beats = {one.pid: one for one in (beat("celery_distlock.beat:LeaderScheduler") for _ in range(2))}
    journal.wait_for("published", 2, name="led")
    first = leader(settings)
    assert first in beats
    assert {entry["pid"] for entry in journal.entries("published")} == {first}
    beats.pop(first).kill()
    died = time.monotonic()
    (other,) = beats
    eventually(lambda: leader(settings) == other, 5.0, "another leader")
    assert time.monotonic() - died <= 2.0 + 1.0
    journal.wait_for("published", pid=other)


def test_a_leader_that_is_stopped_publishes_nothing_when_it_goes_on(
    beat: StartBeat, journal: Journal, settings: Settings
) -> None:
    beats = {one.pid: one for one in (beat("celery_distlock.beat:LeaderScheduler") for _ in range(2))}
    journal.wait_for("published", 2, name="led")
    first = leader(settings)
    assert first is not None
    stopped = beats.pop(first)
    (other,) = beats
    stopped.freeze()
    journal.wait_for("published", 2, name="led", pid=other)
    before = len(stopped.log)
    stopped.thaw()
    stopped.wait_for_log("leads no longer", 20)
    assert "Sending due task" not in stopped.log[before:].partition("leads no longer")[0]


LED = "tests.worker.apps.led_beats"


@pytest.mark.parametrize("scheduler", ["django_celery_beat.schedulers:DatabaseScheduler", "redbeat.RedBeatScheduler"])
def test_schedulers_of_others_are_led(
    beat: StartBeat, journal: Journal, settings: Settings, databases: Databases, tmp_path: Path, scheduler: str
) -> None:
    at = str(tmp_path / "schedule.sqlite") if scheduler.startswith("django") else databases.results
    env = {"LED_SCHEDULER": scheduler, "LED_DATABASE": at}
    if scheduler.startswith("django"):
        # Its database must be there before its beats are.
        migrate = [sys.executable, "-m", LED]
        environment = {**os.environ, **{k: v for k, v in (ENVIRONMENT | settings.env | env).items() if v is not None}}
        subprocess.run(migrate, env=environment, cwd=tmp_path, check=True, timeout=60)
    beats = {one.pid: one for one in (beat("celery_distlock.beat:LeaderScheduler", app=LED, **env) for _ in range(3))}
    journal.wait_for("published", 3, name="led")
    first = leader(settings, LED)
    assert {entry["pid"] for entry in journal.entries("published")} == {first}
    beats.pop(first).kill()
    died = time.monotonic()
    eventually(lambda: leader(settings, LED) in beats, 5.0, "another leader")
    assert time.monotonic() - died <= 2.0 + 1.0
    second = leader(settings, LED)
    journal.wait_for("published", 3, name="led", pid=second)
    # Who stood by had noted nothing, and what the dead one had not saved is in the store.
    moments = [entry["wall"] for entry in journal.entries("published")]
    assert len(moments) <= int(moments[-1]) - int(moments[0]) + 2, moments
