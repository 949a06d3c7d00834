"""What it costs to keep many leases alive: calls of the server, CPU, and threads.

Run: ``python -m benchmarks.renewal [--rounds 7] [--leases 1000] [--ttl 4]``

In turns, so many locks are held by this process, ours by the thread that also renews for a worker's main process, and
python-redis-lock's by a thread each; then this process does nothing for one interval of theirs, which is two of ours.
The other libraries renew nothing.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import psutil
import redis
import redis_lock

from benchmarks.frame import Benchmark, Measured, Result, alone, option
from benchmarks.meter import Meter
from benchmarks.rounds import turns
from benchmarks.scene import cpu_of
from benchmarks.tables import LABELS, figure, number, ratio, table
from celery_distlock import Lock, LockLost
from tests.support.redis_server import RedisServer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS, OTHERS = "ours", "python_redis_lock"
#: Which part of the ttl their intervals are.
INTERVALS = {OURS: 1 / 3, OTHERS: 2 / 3}


@dataclass(frozen=True)
class Size:
    """How much."""

    rounds: int = option(7, "rounds")
    leases: int = option(1000, "locks that are held")
    ttl: float = option(4.0, "seconds, of both; python-redis-lock knows whole ones only")


def measure(size: Size) -> Measured:
    """Hold them, in turns."""
    found = Measured()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        server = RedisServer(folder / "redis")
        stack.callback(server.stop)
        # A connection for each thread: with redis-py's default most of them would not get one, and lose their locks.
        client = stack.enter_context(server.client(decode_responses=False, max_connections=size.leases + 1))
        # They are made now, and not in the first round.
        for one in [client.client() for _ in range(size.leases)]:
            one.close()
        hold = {OURS: lambda: _hold_ours(server, size), OTHERS: lambda: _hold_others(client, size)}
        for kind in turns(list(INTERVALS), size.rounds):
            found.rounds.add(kind, **_watch(server, size, hold[kind], INTERVALS[kind] * size.ttl, kind == OURS))
    return found


def _hold_ours(server: RedisServer, size: Size) -> Callable[[], int]:
    locks = [Lock(f"lease:{number}", url=server.url, ttl=size.ttl) for number in range(size.leases)]
    for lock in locks:
        lock.acquire()
    return lambda: _released([(lock.release, LockLost) for lock in locks])


def _hold_others(client: redis.Redis, size: Size) -> Callable[[], int]:
    locks = [
        redis_lock.Lock(client, f"lease:{number}", expire=int(size.ttl), auto_renewal=True)
        for number in range(size.leases)
    ]
    for lock in locks:
        lock.acquire()
    return lambda: _released([(lock.release, redis_lock.NotAcquired) for lock in locks])


def _released(releases: Sequence[tuple[Callable[[], object], type[Exception]]]) -> int:
    """Give them back, and return how many had been lost."""
    lost = 0
    for release, complaint in releases:
        try:
            release()
        except complaint:
            lost += 1
    return lost


def _renews_ours(thread: threading.Thread) -> bool:
    return thread.name.startswith("distlock")


def _watch(
    server: RedisServer, size: Size, hold: Callable[[], Callable[[], int]], interval: float, ours: bool
) -> dict[str, float]:
    """Return what is done in one interval."""
    release = hold()
    redis_process = psutil.Process(server.process.pid)
    # So that what is watched begins and ends between two renewals.
    time.sleep(size.ttl / 2)
    meter, cpu, worked = Meter(server), time.process_time(), cpu_of(redis_process)
    time.sleep(size.ttl * INTERVALS[OTHERS])
    intervals = meter.seconds() / interval
    told = {
        "calls": meter.calls("evalsha") / intervals,
        # Intervals differ, seconds do not.
        "cpu_ms": (time.process_time() - cpu) / meter.seconds() * 1e3,
        "server_ms": (cpu_of(redis_process) - worked) / meter.seconds() * 1e3,
        "reads": meter.reads() / intervals,
        "threads": float(sum(_renews_ours(thread) == ours for thread in threading.enumerate()[1:])),
    }
    return told | {"lost": float(release())}


def section(result: Result) -> str:
    """Tell it."""
    size, rounds = result.size, result.rounds
    rows = [
        [
            LABELS[kind],
            f"{number(part * size['ttl'])} s",
            figure(rounds.spread(kind, "calls"), ""),
            figure(rounds.spread(kind, "reads"), ""),
            figure(rounds.spread(kind, "cpu_ms"), "ms/s"),
            ratio(rounds.ratio(kind, "cpu_ms", OURS)) if kind != OURS else "1",
            figure(rounds.spread(kind, "server_ms"), "ms/s"),
            f"{rounds.spread(kind, 'threads').median:,.0f}",
            f"{sum(rounds.of(kind, 'lost')):,.0f}",
        ]
        for kind, part in INTERVALS.items()
    ]
    head = [
        "",
        "interval",
        "calls per interval",
        "reads per interval",
        "CPU",
        "CPU, relative",
        "the server's CPU",
        "threads",
        "lost",
    ]
    return f"""\
A process holds {size["leases"]:,} locks with a ttl of {number(size["ttl"])} s. Ours are renewed all in one batch, by
one thread; python-redis-lock's each by a thread of its own, which was given a connection of its own, too.
{size["rounds"]} rounds, each of one of its intervals. *Reads* are how often the server read from a connection: a large
batch comes in several. *Lost* are those that were not renewed in time.

{table(head, rows)}

The locks of redis-py, celery-once, celery-singleton and celery-heimdall are not renewed at all; kazoo's live as long as
the session, for which the client pings.
"""


def draw(result: Result) -> Figure:
    """Picture calls and CPU."""
    from benchmarks import plots

    rounds = result.rounds
    panels = {
        title: {LABELS[kind]: rounds.spread(kind, quantity) for kind in INTERVALS}
        for title, quantity in (
            ("reads per interval", "reads"),
            ("CPU, ms/s", "cpu_ms"),
            ("the server's CPU, ms/s", "server_ms"),
        )
    }
    return plots.bars(panels, ours=[LABELS[OURS]])


BENCHMARK = Benchmark(
    "renewal",
    "What it costs to keep locks",
    Size(),
    Size(rounds=2, leases=20, ttl=1.0),
    measure,
    section,
    draw,
    "Calls, CPU and the server's CPU per second for keeping many leases alive",
)

if __name__ == "__main__":
    sys.exit(alone(BENCHMARK))
