"""Where the CPU of a lock goes: the steps of a locked task, one after the other taken away.

Run: ``python -m benchmarks.anatomy [--rounds 9] [--tasks 200]``

A real worker tells what its main process and its pool processes spend on a task with and without a lock. What happens
in a pool process is then looked at in this one, which traces tasks as Celery's pool processes do: the whole; with a
store that answers at once; without a key; and a lock's two calls on a bare socket. The processor's caches are spoilt
before each task, since in a worker other processes come in between.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import statistics
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery.app import trace

from benchmarks.frame import Benchmark, Measured, Result, alone, option
from benchmarks.rounds import Rounds, turns
from benchmarks.scene import Scene, prepared
from benchmarks.tables import figure, number, table
from celery_distlock import cells
from celery_distlock.lease import new_owner

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What is traced here, and what it is called.
TRACED = {
    "bare": "bare task",
    "floor": "bare task, and a lock's two calls on a bare socket",
    "no_key": "LockedTask without a key",
    "at_once": "LockedTask with a store that answers at once",
    "locked": "LockedTask",
}
#: The same in a worker: what its two kinds of processes spend.
_IN_WORKER = ("bare", "floor", "locked")
_HOST = "bench@here"
#: More than a core's own caches hold.
_SPOILT = 2 << 20
_numbers = itertools.count()


@dataclass(frozen=True)
class Size:
    """How much."""

    rounds: int = option(9, "rounds")
    tasks: int = option(200, "tasks of each kind in a round")


def measure(size: Size) -> Measured:
    """Run and trace, in turns."""
    found = Measured()
    with prepared("benchmarks.tasks", results=True, workers=1) as scene:
        for kind in _IN_WORKER:
            _in_worker(scene, kind, 50)
        for kind in turns(_IN_WORKER, size.rounds):
            found.rounds.add(f"{kind} in a worker", **_in_worker(scene, kind, size.tasks))
        with _as_pool_process(scene) as arena:
            _traced(scene, arena, 50)
            for _ in range(size.rounds):
                for kind, spent in _traced(scene, arena, size.tasks).items():
                    found.rounds.add(kind, child_us=spent)
        found.complaints = scene.complaints()
    return found


def _in_worker(scene: Scene, kind: str, count: int) -> dict[str, float]:
    task = getattr(scene.tasks, kind)
    whole, main = scene.cpu(), scene.main_cpu()
    for result in [task.delay(next(_numbers)) for _ in range(count)]:
        result.get(timeout=60)
    main = scene.main_cpu() - main
    return {"main_us": main / count * 1e6, "children_us": (scene.cpu() - whole - main) / count * 1e6}


@contextmanager
def _as_pool_process(scene: Scene) -> Iterator[cells.Arena]:
    """Trace tasks as a child of the prefork pool does."""
    app, arena = scene.tasks.app, cells.Arena(16)
    cells.install(arena)
    trace.setup_worker_optimizations(app, _HOST)
    try:
        for kind in TRACED:
            task = getattr(scene.tasks, kind)
            task.__trace__ = trace.build_tracer(task.name, task, app.loader, _HOST, app=app)
        yield arena
    finally:
        trace.reset_worker_optimizations(app)
        cells.install(None)


def _traced(scene: Scene, arena: cells.Arena, count: int) -> dict[str, float]:
    """Trace so many of each kind, in random order; return the median CPU of each, in microseconds."""
    spoilt, clean = bytearray(_SPOILT), bytes(_SPOILT)
    spent: dict[str, list[float]] = {kind: [] for kind in TRACED}
    for _ in range(count):
        for kind in random.sample(list(TRACED), len(TRACED)):
            name, request, body, cell = _message(getattr(scene.tasks, kind), arena)
            spoilt[:] = clean
            began = time.thread_time_ns()
            failed, *_ = trace.fast_trace_task(name, request["id"], request, body, "application/json", "utf-8")
            spent[kind].append((time.thread_time_ns() - began) / 1e3)
            assert not failed, f"{kind} failed"
            arena.give(cell)
    return {kind: statistics.median(each) for kind, each in spent.items()}


def _message(task: Any, arena: cells.Arena) -> tuple[str, dict[str, Any], str, cells.Cell]:
    """Return what the main process hands to a pool process."""
    task_id, owner, value = str(uuid.uuid4()), new_owner(), next(_numbers)
    cell = arena.take(owner)
    assert cell is not None
    delivery = {"exchange": "", "routing_key": "celery", "priority": 0, "redelivered": False}
    request: dict[str, Any] = {
        "lang": "py",
        "task": task.name,
        "id": task_id,
        "root_id": task_id,
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": f"({value},)",
        "kwargsrepr": "{}",
        "origin": f"gen{os.getpid()}@here",
        "ignore_result": False,
        "replaced_task_nesting": 0,
        "stamps": {},
        "properties": {"correlation_id": task_id, "distlock": [owner, arena.id, cell.index]},
        "correlation_id": task_id,
        "hostname": _HOST,
        "delivery_info": delivery,
        "args": [value],
        "kwargs": {},
    }
    absent = ("shadow", "eta", "expires", "group", "group_index", "parent_id", "stamped_headers", "reply_to")
    request.update(dict.fromkeys(absent))
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    return task.name, request, json.dumps([[value], {}, embed]), cell


def parts(rounds: Rounds) -> dict[str, list[float]]:
    """Return what each part of a lock costs, in microseconds, one value per round."""

    def difference(more: str, less: str, quantity: str = "child_us") -> list[float]:
        pairs = zip(rounds.of(more, quantity), rounds.of(less, quantity), strict=True)
        return [one - other for one, other in pairs]

    round_trips = difference("floor", "bare")
    calls = difference("locked", "at_once")
    return {
        "main process: fewer results at a time": difference("floor in a worker", "bare in a worker", "main_us"),
        "main process: owner, cell, supervision": difference("locked in a worker", "floor in a worker", "main_us"),
        "pool process: the two calls themselves": round_trips,
        "pool process: building the calls, reading the replies": [
            whole - part for whole, part in zip(calls, round_trips, strict=True)
        ],
        "pool process: options, guards, a call around the body": difference("no_key", "bare"),
        "pool process: key, claim, cell, release at the end": difference("at_once", "no_key"),
    }


def section(result: Result) -> str:
    """Tell it."""
    from benchmarks.rounds import Spread

    size, rounds = result.size, result.rounds
    whole = {
        kind: [sum(pair) for pair in zip(rounds.of(kind, "main_us"), rounds.of(kind, "children_us"), strict=True)]
        for kind in (f"{kind} in a worker" for kind in _IN_WORKER)
    }
    bare = statistics.median(whole["bare in a worker"])
    more, least = (
        [one - other for one, other in zip(whole[f"{kind} in a worker"], whole["bare in a worker"], strict=True)]
        for kind in ("locked", "floor")
    )
    wholes = {"all that a worker spends more": more, "the same of a task that only makes the two calls": least}
    rows = [
        [what, figure(Spread.of(values), "µs"), f"{statistics.median(values) / bare:.1%}"]
        for what, values in {**wholes, **parts(rounds)}.items()
    ]
    return f"""\
A worker spends more CPU on a locked task than on a bare one; fifteen per cent more were the goal. Where it goes: what
worker and main process spend more is measured in a real worker; what a pool process does is traced in a process of its
own, once as a whole, once with a store that answers at once, once without a key, and once with nothing but the lock's
two calls, which stand ready as bytes. {size["rounds"]} rounds of {size["tasks"]} tasks of each. A bare task costs a
worker {number(bare)} µs.

{table(["", "CPU per task", "of a bare task"], rows)}

The two calls are what a lock at run time cannot do without; for their sake the main process is woken more often, for
fewer results at a time. The rest is Python code that runs once per task with cold caches: each line of it is some
microseconds at most, so there is no single one to take away. To compile the modules that build the calls and write the
cells was tried, and made no difference. What could go further is to have the main process take and give back the locks
of several tasks in one call. It would hold locks for tasks that have not started, and give them back later than their
end; here an executor that runs is the one that asks.
"""


def draw(result: Result) -> Figure:
    """Picture the parts."""
    from benchmarks import plots
    from benchmarks.rounds import Spread

    spreads = {what: Spread.of(values) for what, values in parts(result.rounds).items()}
    return plots.bars({"CPU per task, µs": spreads}, ours=list(spreads))


BENCHMARK = Benchmark(
    "anatomy",
    "Where the CPU of a lock goes",
    Size(),
    Size(rounds=2, tasks=20),
    measure,
    section,
    draw,
    "CPU per task of each part of a lock",
)

if __name__ == "__main__":
    sys.exit(alone(BENCHMARK))
