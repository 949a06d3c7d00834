"""What the lock costs: CPU and time of a no-op task with and without it, and under other libraries' locks.

Run: ``python -m benchmarks.overhead [--rounds 18] [--tasks 500] [--pool prefork]``

One real worker on one real Redis runs batches of each kind of task in turn. CPU is that of the publisher, which is
where the other libraries take their locks, of the worker's main process and its children, and of the Redis server,
which is broker, result store and lock store for all. Every key is a new one.
"""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.frame import Benchmark, Measured, Result, alone, option
from benchmarks.rounds import turns
from benchmarks.scene import Scene, cpu_of, prepared
from benchmarks.tables import LABELS, figure, ratio, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What is measured, and what it is divided by.
KINDS = {
    "bare": "bare",
    "floor": "bare",
    "locked": "bare",
    "locked_keyed": "bare",
    "unique": "bare",
    "celery_once": "bare",
    "celery_singleton": "bare",
    "celery_heimdall": "bare",
    "bare_late": "bare_late",
    "locked_late": "bare_late",
}
_numbers = itertools.count()


@dataclass(frozen=True)
class Size:
    """How much."""

    rounds: int = option(18, "rounds")
    tasks: int = option(500, "tasks of each kind in a round")
    pool: str = option("prefork", "prefork, threads, solo, gevent or eventlet")
    concurrency: int = option(2, "slots of the pool")


def measure(size: Size) -> Measured:
    """Run batches of each kind in turn."""
    found = Measured()
    with prepared("benchmarks.tasks", results=True, workers=1, pool=size.pool, concurrency=size.concurrency) as scene:
        for kind in KINDS:
            batch(scene, kind, max(10, size.tasks // 4))
        for kind in turns(list(KINDS), size.rounds):
            found.rounds.add(kind, **batch(scene, kind, size.tasks))
        found.complaints = scene.complaints()
    return found


def batch(scene: Scene, kind: str, count: int) -> dict[str, float]:
    """Run ``count`` tasks; return microseconds per task."""
    task: Any = getattr(scene.tasks, kind)
    redis = psutil.Process(scene.server.process.pid)
    worker, server, publisher, began = scene.cpu(), cpu_of(redis), time.process_time(), time.perf_counter()
    for result in [task.delay(next(_numbers)) for _ in range(count)]:
        result.get(timeout=60)
    spent = {
        "time": time.perf_counter() - began,
        "publisher": time.process_time() - publisher,
        "worker": scene.cpu() - worker,
        "server": cpu_of(redis) - server,
    }
    spent["cpu"] = spent["publisher"] + spent["worker"]
    return {f"{name}_us": seconds / count * 1e6 for name, seconds in spent.items()}


def section(result: Result) -> str:
    """Tell it."""
    size, rounds = result.size, result.rounds
    rows = [
        [
            LABELS[kind],
            figure(rounds.spread(kind, "cpu_us"), "µs"),
            *(
                "1" if kind == base else ratio(rounds.ratio(kind, quantity, base))
                for quantity in ("cpu_us", "worker_us", "time_us", "server_us")
            ),
        ]
        for kind, base in KINDS.items()
        if kind in rounds
    ]
    head = ["", "CPU per task", *(f"{each}, relative" for each in ("CPU", "worker's CPU", "time", "server's CPU"))]
    return f"""\
How much more does a task cost that takes a lock, of a key that nobody else wants? One worker ({size["pool"]},
{size["concurrency"]} slots) runs {size["rounds"]} rounds of {size["tasks"]:,} tasks of each kind, which do nothing. CPU
is that of the publisher and the worker together. What is acknowledged late is compared with the bare task that is
acknowledged late, everything else with the bare task.

{table(head, rows)}

The other libraries take their lock when they publish, celery-heimdall once more when it runs, and delete it at the end
without looking whose it is; nothing is kept alive, and nothing stands in the way of a message that the broker delivers
twice. *Two calls, bare socket* is a task that takes and gives back such a lock with commands that stand ready: less a
lock of this kind, which is taken and given back at run time, cannot cost.
"""


def draw(result: Result) -> Figure:
    """Picture the ratios."""
    from benchmarks import plots

    rounds = result.rounds
    kinds = [kind for kind, base in KINDS.items() if kind != base and kind in rounds]
    labels = [LABELS[kind] for kind in kinds]
    return plots.dots(
        labels,
        {
            "CPU, publisher and worker": [rounds.ratio(kind, "cpu_us", KINDS[kind]) for kind in kinds],
            "time": [rounds.ratio(kind, "time_us", KINDS[kind]) for kind in kinds],
        },
        "relative to the same task without a lock (1 = no cost)",
        ours=[not kind.startswith("celery") and kind != "floor" for kind in kinds],
        mark=1.0,
    )


BENCHMARK = Benchmark(
    "overhead",
    "What a lock costs a task",
    Size(),
    Size(rounds=2, tasks=20),
    measure,
    section,
    draw,
    "CPU and time per task relative to the task without a lock, for each kind of lock",
)

if __name__ == "__main__":
    sys.exit(alone(BENCHMARK))
