"""What the lock costs: CPU and time of a no-op task with and without it, in one interleaved run.

Run: ``python -m benchmarks.overhead [--rounds 9] [--tasks 2000] [--pool prefork]``

One real worker on one real Redis runs batches of both tasks in turn; every figure is the ratio of two neighbouring
batches, so whatever else the machine is doing hits both alike. CPU is that of the worker's main process and its
children (user and system). Prints the median of the rounds and their spread.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import celery
import psutil
import redis

from benchmarks import tasks
from tests.support.redis_server import RedisServer
from tests.support.workers import Pool, Settings, Worker

KINDS = ("bare", "floor", "locked", "locked_keyed", "locked_late", "bare_late")


@contextmanager
def running(pool: str, concurrency: int) -> Iterator[tuple[Any, psutil.Process]]:
    """Start Redis and a worker; yield the publisher's tasks module and the worker's process."""
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder) / "redis")
        settings = Settings(server.url_of(0), server.url_of(1), server.url_of(2), Path(folder) / "journal")
        os.environ.update(settings.env)
        tasks.configure()
        worker = Worker(
            "benchmarks.tasks",
            replace(settings),
            Path(folder) / "worker.log",
            pool=cast(Pool, pool),
            concurrency=concurrency,
            options=["--loglevel", "WARNING"],
            name="bench",
        )
        try:
            # At this log level the worker does not say that it is ready; a result does.
            tasks.bare.delay(0).get(timeout=30)
            yield tasks, psutil.Process(worker.pid)
        finally:
            worker.end()
            server.stop()


def cpu_of(process: psutil.Process) -> float:
    """Return the CPU seconds used so far by a process and its children."""
    return sum(
        times.user + times.system for times in (one.cpu_times() for one in [process, *process.children(recursive=True)])
    )


def batch(module: Any, process: psutil.Process, kind: str, count: int) -> tuple[float, float]:
    """Run ``count`` tasks; return CPU seconds and wall seconds per task."""
    task = getattr(module, kind)
    cpu, started = cpu_of(process), time.perf_counter()
    results = [task.delay(number) for number in range(count)]
    for result in results:
        result.get(timeout=60)
    wall = time.perf_counter() - started
    return (cpu_of(process) - cpu) / count, wall / count


def main() -> int:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--pool", default="prefork", choices=["prefork", "threads", "solo"])
    parser.add_argument("--concurrency", type=int, default=2)
    options = parser.parse_args()
    print(
        f"Python {platform.python_version()}, celery {celery.__version__}, redis-py {redis.__version__}, "
        f"{os.cpu_count()} cores, {options.pool} x {options.concurrency}, "
        f"{options.rounds} rounds of {options.tasks} tasks each"
    )
    cpu: dict[str, list[float]] = {kind: [] for kind in KINDS}
    wall: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with running(options.pool, options.concurrency) as (module, process):
        for kind in KINDS:
            batch(module, process, kind, options.tasks // 4)
        for _ in range(options.rounds):
            for kind in KINDS:
                spent, took = batch(module, process, kind, options.tasks)
                cpu[kind].append(spent)
                wall[kind].append(took)
    for kind in KINDS:
        base = "bare_late" if kind.endswith("_late") else "bare"
        ratios = sorted(a / b for a, b in zip(cpu[kind], cpu[base], strict=True))
        walls = sorted(a / b for a, b in zip(wall[kind], wall[base], strict=True))
        print(
            f"{kind:13} {statistics.median(cpu[kind]) * 1e6:7.0f} us CPU/task   "
            f"CPU x {statistics.median(ratios):.3f} [{ratios[0]:.3f} .. {ratios[-1]:.3f}]   "
            f"time x {statistics.median(walls):.3f} [{walls[0]:.3f} .. {walls[-1]:.3f}]"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
