"""Servers, two workers, and a publisher that keeps so many tasks waiting."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from benchmarks.bodies import FOLDER, Bodies
from celery_distlock import Lock
from tests.support.apps import close_app, load_app
from tests.support.rabbitmq_server import RabbitMQServer
from tests.support.redis_server import RedisServer
from tests.support.workers import Settings, Worker

__all__ = ["Scene", "prepared"]

_BROKER, _RESULTS, _LOCKS = range(3)


@dataclass
class Scene:
    """What there is to measure with.

    Attributes:
        server: the Redis that keeps locks and results, and messages unless the broker is another.
        locks: the Redis that keeps locks; the same as ``server``, or one of its own.
        tasks: the publisher's :mod:`benchmarks.contended`.
        zookeeper: whether there is one.
    """

    server: RedisServer
    locks: RedisServer
    tasks: Any
    workers: list[Worker]
    folder: Path
    zookeeper: bool

    def bodies(self, key: str) -> Bodies:
        """Return the bodies of the tasks that wanted this key."""
        return Bodies(self.folder, key)

    def parked(self, key: str) -> int:
        """Return how many tasks have been parked for this key, those that have gone on included."""
        return len(self.bodies(f"parked-{key}"))

    @contextmanager
    def held(self, key: str) -> Iterator[None]:
        """Hold the key against our own tasks."""
        with Lock(key, url=self.locks.url_of(_LOCKS), ttl=60.0):
            yield

    def processes(self) -> list[psutil.Process]:
        """Return the workers' main processes."""
        return [psutil.Process(worker.pid) for worker in self.workers]

    def cpu(self) -> float:
        """Return the CPU seconds used so far by the workers and their children."""
        every = [one for main in self.processes() for one in (main, *main.children(recursive=True))]
        return sum(times.user + times.system for times in (one.cpu_times() for one in every))

    def main_cpu(self) -> float:
        """Return the CPU seconds used so far by the workers' main processes."""
        return sum(times.user + times.system for times in (one.cpu_times() for one in self.processes()))

    def complaints(self) -> list[str]:
        """Return what the workers complain of in their logs."""
        return [complaint for worker in self.workers for complaint in worker.complaints()]


@contextmanager
def prepared(
    *, broker: str = "redis", separate_locks: bool = False, workers: int = 2, concurrency: int = 2
) -> Iterator[Scene]:
    """Start everything, and end it.

    Arguments:
        broker: ``"redis"`` or ``"rabbitmq"``.
        separate_locks: keep the locks in a Redis server of their own.
        workers: how many.
        concurrency: pool processes of each.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = _redis(stack, folder / "redis")
        locks = _redis(stack, folder / "locks") if separate_locks else server
        messages = server.url_of(_BROKER)
        if broker == "rabbitmq":
            rabbit = RabbitMQServer(folder / "rabbitmq")
            stack.callback(rabbit.stop)
            messages = rabbit.url
        settings = Settings(messages, server.url_of(_RESULTS), locks.url_of(_LOCKS), folder / "journal")
        env = {FOLDER: str(folder)}
        zookeeper = _zookeeper(stack, folder / "zookeeper")
        if zookeeper is not None:
            env["BENCH_ZOOKEEPER"] = zookeeper
        started = []
        for number in range(workers):
            worker = Worker(
                "benchmarks.contended",
                settings,
                folder / f"worker{number}.log",
                concurrency=concurrency,
                options=["--loglevel", "WARNING"],
                env=env,
                name=f"bench{number}",
            )
            stack.callback(worker.end)
            started.append(worker)
        tasks = load_app("benchmarks.contended", {"BROKER_URL": settings.broker, "DISTLOCK_URL": settings.locks})
        stack.callback(close_app, tasks.app)
        scene = Scene(server, locks, tasks, started, folder, zookeeper is not None)
        _wait_ready(scene)
        yield scene


def _redis(stack: ExitStack, folder: Path) -> RedisServer:
    server = RedisServer(folder)
    stack.callback(server.stop)
    return server


def _zookeeper(stack: ExitStack, folder: Path) -> str | None:
    try:
        support = import_module("tests.support.zookeeper_server")
    except ImportError:
        return None
    if support.executable() is None:
        return None
    server = support.ZooKeeperServer(folder)
    stack.callback(server.stop)
    hosts: str = server.hosts
    return hosts


def _wait_ready(scene: Scene) -> None:
    # At this log level a worker does not say that it is ready; to a ping it answers.
    wait_until(lambda: len(scene.tasks.app.control.ping(timeout=0.5)) == len(scene.workers), 60, "the workers")


def wait_until(predicate: Callable[[], bool], patience: float, what: str, every: float = 0.002) -> None:
    """Wait for something to be so.

    Raises:
        TimeoutError: it was not after ``patience`` seconds.
    """
    give_up = time.monotonic() + patience
    while not predicate():
        if time.monotonic() > give_up:
            raise TimeoutError(f"{what}: not within {patience:.0f} s")
        time.sleep(every)
