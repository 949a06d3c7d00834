"""How soon the next task runs when one ends: from the end of one body to the start of the next, on one key.

Run: ``python -m benchmarks.handover [--handovers 2000] [--rounds 7] [--broker redis|rabbitmq]``

Two workers with two prefork processes each run short tasks that all want one key: ours wait in the workers' main
processes; other people's locks wait in the task's body and so in a pool process; Celery's retry comes back later.

``parked``     ours, all parked before the first begins: nothing else happens
``arriving``   ours, while more of them arrive: the publisher keeps ``--waiting`` tasks that want the key
``full``       the same, while both workers are also kept full of unrelated tasks
the others     as many tasks want the key as in ``arriving``

The others' locks are released in the body, ours after the result is stored: that is part of the time.

Besides, the time that some unrelated tasks take which are published behind many that wait for a key.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.bodies import gaps, overlaps
from benchmarks.contended import COUNTDOWN
from benchmarks.frame import Benchmark, Measured, Result, alone, option
from benchmarks.rounds import percentile, turns
from benchmarks.scene import NO_ZOOKEEPER, Scene, prepared, wait_until
from benchmarks.tables import LABELS, figure, number, ratio, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Our own tasks: all parked before the first begins; arriving while others run; the same in full workers.
PARKED, ARRIVING, FULL = OURS = ("parked", "arriving", "full")
PEERS = ("python_redis_lock", "kazoo", "redis_py", "celery_retry")
#: Which of them are looked at while others want to pass.
BEHIND = (PARKED, *PEERS)
#: How many unrelated tasks are kept waiting for a slot, where both workers are to be full.
_FULL = 24
#: Seconds without an end after which a system is given up.
_PATIENCE = 30.0
#: So many values tell a distribution.
_STEPS = 200

_CANNOT = "cannot wait: a task whose key is taken is not published"

_keys = itertools.count()


@dataclass(frozen=True)
class Size:
    """How much."""

    rounds: int = option(7, "rounds")
    handovers: int = option(2000, "hand-overs of each of ours, in all rounds together")
    peer_handovers: int = option(280, "hand-overs of each of the others, in all rounds together")
    waiting: int = option(8, "how many tasks want the key at any time")
    body: float = option(0.01, "seconds that a body takes")
    passing: int = option(6, "unrelated tasks that are published behind waiters")
    waiters: int = option(60, "the waiters that these are published behind")
    patience: float = option(0.5, "seconds for which the waiters have to wait then")
    countdown: float = option(1.0, "seconds after which Celery's retry asks again")
    broker: str = option("redis", "redis or rabbitmq")
    concurrency: int = option(2, "pool processes of each of the two workers")


def measure(size: Size) -> Measured:
    """Hand keys over, in turns."""
    found, times = Measured(), defaultdict[str, list[float]](list)
    env = {COUNTDOWN: str(size.countdown)}
    with prepared(broker=size.broker, concurrency=size.concurrency, zookeeper=True, env=env) as scene:
        kinds = [*OURS, *PEERS]
        if scene.zookeeper is None:
            kinds.remove("kazoo")
            found.missing["kazoo"] = NO_ZOOKEEPER
        for kind in kinds:
            # Connections, scripts, imports.
            hand_over(scene, kind, 4 * size.concurrency, size)
        for kind in turns(kinds, size.rounds):
            count = size.handovers if kind in OURS else size.peer_handovers
            took, quantities = hand_over(scene, kind, max(1, count // size.rounds), size)
            times[kind] += took
            found.rounds.add(kind, **quantities)
        for kind in turns([kind for kind in kinds if kind in BEHIND], size.rounds):
            found.rounds.add(kind, behind_s=behind_waiters(scene, kind, size))
        found.complaints = scene.complaints()
    found.curves = {
        kind: [round(percentile(took, step / _STEPS) * 1e3, 4) for step in range(_STEPS + 1)]
        for kind, took in times.items()
    }
    return found


def hand_over(scene: Scene, kind: str, count: int, size: Size) -> tuple[list[float], dict[str, float]]:
    """Hand one key from task to task ``count`` times; return the seconds of each, and what is told of all.

    Raises:
        TimeoutError: nothing has ended for half a minute.
    """
    key = f"{kind}-{next(_keys)}"
    task = scene.tasks.ours if kind in OURS else getattr(scene.tasks, kind)
    done, unrelated = scene.bodies(key), scene.bodies("unrelated")
    others = len(unrelated)
    ended = published = 0
    if kind == PARKED:
        with scene.held(key):
            for _ in range(count + 1):
                task.delay(key, size.body)
            published = count + 1
            wait_until(lambda: scene.parked(key) > count, 120, "the waiters")
    cpu, moved_at = scene.cpu(), time.monotonic()
    while ended <= count:
        while kind == FULL and others < len(unrelated) + _FULL:
            scene.tasks.unrelated.delay(size.body)
            others += 1
        while published <= count and published < ended + size.waiting:
            task.delay(key, size.body)
            published += 1
        time.sleep(0.002)
        now = len(done)
        if now > ended:
            moved_at, ended = time.monotonic(), now
        elif time.monotonic() > moved_at + _PATIENCE:
            raise TimeoutError(f"{kind}: {ended} of {count} done, and no more for {_PATIENCE:.0f} s")
    cpu = scene.cpu() - cpu
    wait_until(lambda: len(unrelated) >= others, _PATIENCE, "the unrelated tasks")
    bodies = done.since()
    times = gaps(bodies)
    told = {
        "p50_ms": percentile(times, 0.5) * 1e3,
        "p99_ms": percentile(times, 0.99) * 1e3,
        "overlaps": overlaps(bodies),
        "cpu_ms": cpu / len(bodies) * 1e3,
    }
    return times, told


def behind_waiters(scene: Scene, kind: str, size: Size) -> float:
    """Return the seconds that some unrelated tasks take behind others that wait."""
    key, unrelated = f"{kind}-{next(_keys)}", scene.bodies("unrelated")
    task, before = scene.tasks.ours if kind in OURS else getattr(scene.tasks, kind), len(unrelated)
    with ExitStack() as held:
        if kind in OURS:
            held.enter_context(scene.held(key))
        else:
            # Whoever comes first holds the key for that long.
            task.delay(key, size.patience)
        for _ in range(size.waiters):
            task.delay(key, 0.0)
        if kind in OURS:
            wait_until(lambda: scene.parked(key) >= size.waiters, 60, "the waiters")
        started = time.monotonic()
        for _ in range(size.passing):
            scene.tasks.unrelated.delay(size.body)
        wait_until(lambda: len(unrelated) >= before + size.passing, 120, "the unrelated tasks")
        took = unrelated.since(before)[-1].end - started
    wait_until(lambda: len(scene.bodies(key)) >= size.waiters, 240, "the waiters", every=0.02)
    return took


def section(result: Result) -> str:
    """Tell it."""
    size, rounds = result.size, result.rounds
    kinds = [kind for kind in (*OURS, *PEERS) if kind in rounds]
    rows = [
        [
            LABELS[kind],
            figure(rounds.spread(kind, "p50_ms"), "ms"),
            figure(rounds.spread(kind, "p99_ms"), "ms"),
            "1" if kind == ARRIVING else ratio(rounds.ratio(kind, "p50_ms", ARRIVING)),
            figure(rounds.spread(kind, "cpu_ms"), "ms"),
            f"{sum(rounds.of(kind, 'overlaps')):.0f}",
        ]
        for kind in kinds
    ]
    rows.append(["celery-once, celery-singleton, celery-heimdall", _CANNOT, *["–"] * 4])
    passing = [
        [LABELS[kind], f"{number(spread.median)} s ({number(spread.low)} … {number(spread.high)})"]
        for kind in kinds
        if kind in BEHIND
        for spread in [rounds.spread(kind, "behind_s")]
    ]
    without = "".join(f"\n{LABELS[kind]} is not in it: {why}.\n" for kind, why in result.measured.missing.items())
    return f"""\
A task ends; how long is it until the next one that wants its key is in its body? Two workers with
{size["concurrency"]} pool processes each, broker {size["broker"]}; bodies take {number(size["body"] * 1e3)} ms.
{size["waiting"]} tasks want the key at any time; in the line *all parked* they were there before the first began,
and in *workers full* all slots are kept busy with unrelated tasks, so that a slot has to be had, too. Celery's retry
comes back after {number(size["countdown"])} s. {size["handovers"]:,} hand-overs of ours and
{size["peer_handovers"]:,} of each other kind, in {size["rounds"]} rounds.

{table(["", "median", "99 %", "median, relative", "workers' CPU per task", "overlaps"], rows)}
{without}
Ours are handed over after the result was stored; the others' locks are given back in the body, before that.

Locks that wait in the body of a task keep a slot of the pool meanwhile. {size["passing"]} unrelated tasks, published
behind {size["waiters"]} tasks that have to wait for their key for {number(size["patience"])} s, have ended after:

{table(["waiting", "the unrelated tasks took"], passing)}
"""


def draw(result: Result) -> Figure:
    """Picture the distributions."""
    from benchmarks import plots

    shown = {LABELS[kind]: result.measured.curves[kind] for kind in (*OURS, *PEERS) if kind in result.measured.curves}
    return plots.curves(
        shown, "ms from the end of a body to the start of the next", ours=[LABELS[kind] for kind in OURS]
    )


BENCHMARK = Benchmark(
    "handover",
    "How soon the next task runs",
    Size(),
    Size(rounds=2, handovers=20, peer_handovers=8, waiting=4, waiters=6, passing=2, patience=0.2, countdown=0.2),
    measure,
    section,
    draw,
    "Cumulative distributions of the time from the end of one body to the start of the next, for each kind of lock",
)

if __name__ == "__main__":
    sys.exit(alone(BENCHMARK))
