"""What it costs that many wait: calls, server time and messages per task that got its turn; memory per parked task.

Run: ``python -m benchmarks.waiters [--waiters 10 100 1000 10000] [--window 20] [--rounds 7]``

On one key for each number, so many tasks are parked. In a round as many more as fit the window arrive on one key, and
then the lock passes through as many tasks, so the line is as long as before; then comes the next key's turn. In between
the lock is held by a task that waits for a gate to be opened. What a task costs is its share of all calls but polls,
from its first attempt to its release. Locks live in a Redis server of their own; how long it worked for what is read
from its slow log, which is told to keep every command. How many bytes a poll takes is measured while there is nothing
else.

For comparison, Celery's retry with a countdown: everybody who waits asks once a second.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.bodies import Body, gaps
from benchmarks.contended import COUNTDOWN, RETRIES_OVER
from benchmarks.frame import Benchmark, Measured, Result, alone, option
from benchmarks.meter import Meter, Spent
from benchmarks.rounds import Rounds, percentile, turns
from benchmarks.scene import Scene, prepared, wait_until
from benchmarks.tables import figure, number, ratio, table
from celery_distlock.stores.redis import scripts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RETRY = "retry-"
_CANNOT = "cannot: they wait in bodies, so no more than the pools have slots"
_POLL = scripts.POLL.name


@dataclass(frozen=True)
class Size:
    """How much."""

    rounds: int = option(7, "rounds")
    waiters: tuple[int, ...] = option((10, 100, 1000, 10_000), "how many wait")
    window: int = option(50, "tasks that get their turn in a round")
    body: float = option(0.05, "seconds that a body takes")
    quiet: float = option(0.7, "seconds for which nothing happens but polling, in a round of that")
    quiet_rounds: int = option(7, "rounds of that")
    retry_waiters: tuple[int, ...] = option((10, 100, 1000), "how many wait by Celery's retry")
    retry_window: float = option(1.5, "seconds for which these are watched in a round")
    retry_rounds: int = option(7, "rounds of these")
    countdown: float = option(1.0, "seconds after which Celery's retry asks again")
    patience: float = option(300.0, "seconds for all to be parked")


def measure(size: Size) -> Measured:
    """Measure ours, then Celery's retry."""
    found = Measured()
    # As many gates may be shut as there are keys; the others need slots, too.
    with prepared(separate_locks=True, concurrency=len(size.waiters) + 1) as scene:
        _ours(scene, size, found.rounds)
        found.complaints = scene.complaints()
    with prepared(separate_locks=True, env={COUNTDOWN: str(size.countdown)}) as scene:
        for kind in turns([f"{_RETRY}{waiters}" for waiters in size.retry_waiters], size.retry_rounds):
            _retries(scene, size, kind, int(kind.removeprefix(_RETRY)), found.rounds)
        found.complaints += scene.complaints()
    return found


# -- ours --------------------------------------------------------------------------------------------------------------


def _ours(scene: Scene, size: Size, rounds: Rounds) -> None:
    # What is loaded on first use must not count as memory of the parked.
    _warm_up(scene)
    locks, broker = Meter(scene.locks), Meter(scene.server)
    locks.keep_every_command()
    workers = _resident(scene)
    lines = {str(waiters): Line(scene, f"waited-for-{waiters}", size) for waiters in size.waiters}
    for waiters, line in zip(size.waiters, lines.values(), strict=True):
        line.grow(waiters + 1)
        _quiet(scene, locks, size, f"all-{waiters}", rounds)
    everybody = sum(size.waiters)
    # All lines are there by now, as they are from now on.
    poll_bytes = rounds.spread(f"all-{size.waiters[-1]}", "poll_bytes").median
    rounds.add(
        "memory",
        worker_bytes=(_resident(scene) - workers) / everybody,
        broker_bytes=broker.memory() / everybody,
    )
    for kind in turns(list(lines), size.rounds):
        line = lines[kind]
        locks.reset()
        broker.reset()
        cpu = scene.cpu()
        line.grow(size.window)
        ended = line.pass_on()
        traffic = locks.traffic()
        spent = locks.spent()
        # A poll is made because time passes, not because a task gets its turn.
        polls = spent.pop(_POLL, Spent(0, 0)).calls
        own = spent.values()
        times = gaps(ended)
        cpu = scene.cpu() - cpu
        rounds.add(
            kind,
            calls=sum(each.calls for each in own) / size.window,
            server_us=sum(each.us for each in own) / size.window,
            bytes=(traffic - polls * poll_bytes) / size.window,
            messages=broker.calls("lpush", "rpush") / size.window,
            cpu_ms=cpu / size.window * 1e3,
            p50_ms=percentile(times, 0.5) * 1e3,
        )


class Line:
    """Tasks that wait for one key, behind one that waits for a gate to be opened.

    Arguments:
        scene: where they run.
        key: the key.
        size: how long a body takes, and how many are let through at a time.
    """

    def __init__(self, scene: Scene, key: str, size: Size) -> None:
        self._scene, self._key, self._size = scene, key, size
        self._bodies, self._gate = scene.bodies(key), scene.folder / f"gate-{key}"
        self._published = 0
        # The first one's body ends before its gate, and is nobody's turn.
        self._ended = 1

    def grow(self, count: int) -> None:
        """Have so many more tasks come, and be parked; the very first one gets the lock."""
        for _ in range(count):
            self._scene.tasks.gated.delay(self._key, self._size.body, self._size.window, str(self._gate))
        self._published += count
        parked = self._published - 1
        wait_until(lambda: self._scene.parked(self._key) >= parked, self._size.patience, f"{count} waiters")
        wait_until(lambda: len(self._bodies) >= self._ended, 30, "the one at the gate")

    def pass_on(self) -> list[Body]:
        """Let one window of tasks have their turn, and return their bodies."""
        with self._gate.open("ab") as gate:
            gate.write(b"!")
        before, self._ended = self._ended, self._ended + self._size.window
        wait_until(lambda: len(self._bodies) >= self._ended, 60, "the turns", every=0.001)
        return self._bodies.since(before)


def _quiet(scene: Scene, locks: Meter, size: Size, kind: str, rounds: Rounds) -> None:
    """Watch what is done while nothing happens."""
    for _ in range(size.quiet_rounds):
        locks.reset()
        cpu = scene.main_cpu()
        time.sleep(size.quiet)
        seconds, traffic = locks.seconds(), locks.traffic()
        spent = locks.spent().values()
        rounds.add(
            kind,
            cpu_ms=(scene.main_cpu() - cpu) / seconds * 1e3,
            calls=sum(one.calls for one in spent) / seconds,
            server_us=sum(one.us for one in spent) / seconds,
            poll_bytes=traffic / max(1, sum(one.calls for one in spent)),
        )


def _warm_up(scene: Scene) -> None:
    key, count = "warm-up", 20
    for _ in range(count):
        scene.tasks.ours.delay(key, 0.01)
    wait_until(lambda: len(scene.bodies(key)) >= count, 60, f"{count} tasks")


def _resident(scene: Scene) -> int:
    return sum(process.memory_info().rss for process in scene.processes())


# -- Celery's retry ----------------------------------------------------------------------------------------------------


def _retries(scene: Scene, size: Size, kind: str, waiters: int, rounds: Rounds) -> None:
    """Keep so many waiting for some seconds, while one after the other gets its turn."""
    key = f"{kind}-{time.monotonic_ns()}"
    done, tried = scene.bodies(key), scene.bodies(f"tried-{key}")
    locks, broker = Meter(scene.locks), Meter(scene.server)
    published = 0

    def keep(count: int) -> None:
        nonlocal published
        while published < count:
            scene.tasks.celery_retry.delay(key, size.body)
            published += 1

    with scene.locks_client().lock(f"celery-retry:{key}", timeout=60):
        keep(waiters)
        wait_until(lambda: len(tried) >= waiters, 60, "everybody's first try")
        locks.reset()
        broker.reset()
        cpu = scene.cpu()
        end = time.monotonic() + size.retry_window
    while time.monotonic() < end or not len(done):
        keep(waiters + len(done))
        time.sleep(0.002)
    ended, cpu = len(done), scene.cpu() - cpu
    rounds.add(
        kind,
        # What else calls the server of the locks is this program.
        calls=locks.calls("set", "evalsha") / ended,
        messages=broker.calls("lpush", "rpush") / ended,
        cpu_ms=cpu / ended * 1e3,
    )
    (scene.folder / f"{RETRIES_OVER}{key}").touch()
    wait_until(lambda: len(scene.bodies(f"over-{key}")) + len(done) >= published, 60, "the end of all retries")


# -- the page ----------------------------------------------------------------------------------------------------------


def section(result: Result) -> str:
    """Tell it."""
    size, rounds = result.size, result.rounds
    fewest = str(size["waiters"][0])
    rows = [
        [
            f"LockedTask, {waiters:,}",
            figure(rounds.spread(kind, "calls"), ""),
            figure(rounds.spread(kind, "bytes"), ""),
            figure(rounds.spread(kind, "messages"), ""),
            figure(rounds.spread(kind, "cpu_ms"), "ms"),
            "1" if kind == fewest else ratio(rounds.ratio(kind, "cpu_ms", fewest)),
            figure(rounds.spread(kind, "server_us"), "µs"),
            figure(rounds.spread(kind, "p50_ms"), "ms"),
        ]
        for waiters in size["waiters"]
        for kind in [str(waiters)]
    ]
    least = f"{_RETRY}{size['retry_waiters'][0]}"
    rows += [
        [
            f"Celery's retry, {waiters:,}",
            figure(rounds.spread(kind, "calls"), ""),
            "–",
            figure(rounds.spread(kind, "messages"), ""),
            figure(rounds.spread(kind, "cpu_ms"), "ms"),
            "1" if kind == least else ratio(rounds.ratio(kind, "cpu_ms", least)),
            "–",
            "–",
        ]
        for waiters in size["retry_waiters"]
        for kind in [f"{_RETRY}{waiters}"]
    ]
    rows.append(["redis-py's Lock, python-redis-lock, kazoo's Lock", _CANNOT, *["–"] * 6])
    together = 0
    quiet = []
    for waiters in size["waiters"]:
        together += waiters
        kind = f"all-{waiters}"
        quiet.append(
            [
                f"{together:,}",
                figure(rounds.spread(kind, "cpu_ms"), "ms/s"),
                figure(rounds.spread(kind, "server_us"), "µs/s"),
                figure(rounds.spread(kind, "calls"), "per s"),
            ]
        )
    head = [
        "waiting",
        "calls of the store",
        "bytes to and from it",
        "messages",
        "workers' CPU",
        "CPU, relative",
        "store's time in scripts",
        "hand-over, median",
    ]
    memory = {where: number(rounds.spread("memory", f"{where}_bytes").median) for where in ("worker", "broker")}
    return f"""\
So many tasks wait for one key. What does one more of them cost, from its first try to its release? Two workers; bodies
take {number(size["body"] * 1e3)} ms; in each of {size["rounds"]} rounds {size["window"]} tasks come and as many
have their turn, on one key after the other. Ours wait by `"wait"`; Celery's retry asks again after
{number(size["countdown"])} s, without a line. Per task:

{table(head, rows)}

While nothing happens but that they wait, {len(size["waiters"])} keys together:

{table(["waiting", "main processes' CPU", "store's time in scripts", "calls of the store"], quiet)}

A parked task takes {memory["worker"]} bytes of its worker, and {memory["broker"]} of the broker, which keeps its
message, and the result back end.
"""


def draw(result: Result) -> Figure:
    """Picture what a task costs."""
    from benchmarks import plots

    size, rounds = result.size, result.rounds

    def line(numbers: list[int], prefix: str, quantity: str) -> plots.Line:
        return numbers, [rounds.spread(f"{prefix}{one}", quantity) for one in numbers]

    panels = {
        title: {
            "LockedTask": line(size["waiters"], "", quantity),
            "Celery's retry": line(size["retry_waiters"], _RETRY, quantity),
        }
        for title, quantity in (
            ("calls of the store per task", "calls"),
            ("messages per task", "messages"),
            ("workers' CPU per task, ms", "cpu_ms"),
        )
    }
    return plots.lines(panels, "tasks that wait for the key", ours=["LockedTask"])


BENCHMARK = Benchmark(
    "waiters",
    "What it costs that many wait",
    Size(),
    Size(
        rounds=2,
        waiters=(3, 6),
        window=3,
        body=0.01,
        quiet=0.2,
        quiet_rounds=2,
        retry_waiters=(3, 6),
        retry_rounds=2,
        retry_window=0.3,
        countdown=0.2,
    ),
    measure,
    section,
    draw,
    "Calls, messages and CPU per completed task over the number of tasks that wait for the same key",
)

if __name__ == "__main__":
    sys.exit(alone(BENCHMARK))
