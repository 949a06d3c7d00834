"""What it costs to publish a task that must not be queued twice: the first one, and a duplicate.

Run: ``python -m benchmarks.publish [--rounds 15] [--messages 300]``

No worker runs. In turns, so many messages with new arguments are published as tasks of each kind, and then the same
ones again, which are duplicates; then everything is deleted. CPU is this program's, which publishes.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.frame import Benchmark, Measured, Result, alone, option
from benchmarks.rounds import Spread, turns
from benchmarks.scene import prepared
from benchmarks.tables import LABELS, figure, ratio, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARE = "bare"
KINDS = (BARE, "locked", "unique", "celery_once", "celery_singleton", "celery_heimdall")
#: Those that know a duplicate when they publish.
UNIQUE = ("unique", "celery_once", "celery_singleton", "celery_heimdall")

_numbers = itertools.count()


@dataclass(frozen=True)
class Size:
    """How much."""

    rounds: int = option(15, "rounds")
    messages: int = option(300, "messages of each kind in a round")


def measure(size: Size) -> Measured:
    """Publish, in turns."""
    found = Measured()
    with prepared("benchmarks.tasks", workers=0, results=True) as scene:
        for kind in KINDS:
            _publish(getattr(scene.tasks, kind), range(10), scene.tasks.REFUSED)
        for kind in turns(KINDS, size.rounds):
            task = getattr(scene.tasks, kind)
            arguments = [next(_numbers) + 10 for _ in range(size.messages)]
            cpu, took = _publish(task, arguments, scene.tasks.REFUSED)
            found.rounds.add(kind, first_cpu_us=cpu, first_us=took)
            if kind in UNIQUE:
                cpu, took = _publish(task, arguments, scene.tasks.REFUSED)
                found.rounds.add(kind, again_cpu_us=cpu, again_us=took)
            with scene.server.client() as client:
                client.flushall()
    return found


def _publish(task: Any, arguments: Sequence[int], refused: type[Exception]) -> tuple[float, float]:
    """Return the microseconds of CPU, and of time, per message."""
    call: Callable[[int], Any] = task.delay
    cpu, began = time.process_time(), time.perf_counter()
    for number in arguments:
        with contextlib.suppress(refused):
            call(number)
    took = time.perf_counter() - began
    return (time.process_time() - cpu) / len(arguments) * 1e6, took / len(arguments) * 1e6


def section(result: Result) -> str:
    """Tell it."""
    size, rounds = result.size, result.rounds
    for_bare = [LABELS[BARE], figure(rounds.spread(BARE, "first_us"), "µs"), "1", "1", "–"]
    rows = [for_bare] + [
        [
            LABELS[kind],
            figure(rounds.spread(kind, "first_us"), "µs"),
            ratio(rounds.ratio(kind, "first_us", BARE)),
            ratio(rounds.ratio(kind, "first_cpu_us", BARE)),
            _again(result, kind),
        ]
        for kind in KINDS
        if kind != BARE
    ]
    return f"""\
What does it cost to call `delay()`? {size["rounds"]} rounds of {size["messages"]:,} messages of each kind, without a
worker; then the same ones once more, which are duplicates by now, and are not published. *Unique* is
`unique_while="queued_or_running"`; a `LockedTask` without it asks nobody when it is published.

{table(["", "the first", "time, relative", "CPU, relative", "a duplicate, relative to a bare task's message"], rows)}
"""


def _again(result: Result, kind: str) -> str:
    again, base = result.rounds.of(kind, "again_us"), result.rounds.of(BARE, "first_us")
    if not again:
        return "published, too"
    return ratio(Spread.of([one / other for one, other in zip(again, base, strict=True)]))


def draw(result: Result) -> Figure:
    """Picture the ratios."""
    from benchmarks import plots

    rounds, kinds = result.rounds, [kind for kind in KINDS if kind != BARE]
    return plots.dots(
        [LABELS[kind] for kind in kinds],
        {
            "CPU": [rounds.ratio(kind, "first_cpu_us", BARE) for kind in kinds],
            "time": [rounds.ratio(kind, "first_us", BARE) for kind in kinds],
        },
        "delay() of a new message, relative to a bare task's (1 = no cost)",
        ours=[not kind.startswith("celery") for kind in kinds],
        mark=1.0,
    )


BENCHMARK = Benchmark(
    "publish",
    "What it costs to publish",
    Size(),
    Size(rounds=2, messages=10),
    measure,
    section,
    draw,
    "CPU and time of delay() relative to a bare task, for each library",
)

if __name__ == "__main__":
    sys.exit(alone(BENCHMARK))
