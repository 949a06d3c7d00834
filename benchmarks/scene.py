"""Servers, workers, and a publisher."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil
import redis

from benchmarks.bodies import FOLDER, Bodies
from celery_distlock import Lock
from tests.support import zookeeper_server
from tests.support.apps import close_app, load_app
from tests.support.rabbitmq_server import RabbitMQServer
from tests.support.redis_server import RedisServer
from tests.support.workers import Pool, Settings, Worker
from tests.support.zookeeper_server import ZooKeeperServer

__all__ = ["ZOOKEEPER", "Scene", "cpu_of", "prepared", "wait_until", "zookeeper_of"]

#: The environment variable that tells tasks where ZooKeeper is (``host:port``), if there is one.
ZOOKEEPER = "BENCH_ZOOKEEPER"
NO_ZOOKEEPER = "there is no ZooKeeper here (Debian package: zookeeper)"
_BROKER, _RESULTS, _LOCKS = range(3)


@dataclass
class Scene:
    """What there is to measure with.

    Attributes:
        server: the Redis that keeps locks and results, and messages unless the broker is another.
        locks: the Redis that keeps locks; the same as ``server``, or one of its own.
        app: the module with the tasks, of which ``tasks`` is the publisher's own copy.
        zookeeper: the address of a ZooKeeper, if one was asked for and there is one.
    """

    server: RedisServer
    locks: RedisServer
    settings: Settings
    app: str
    tasks: Any
    workers: list[Worker]
    folder: Path
    zookeeper: str | None
    _env: dict[str, str | None]
    _stack: ExitStack

    def start(self, name: str, *, pool: str = "prefork", concurrency: int = 2, queues: Sequence[str] = ()) -> Worker:
        """Start a worker, which is ready some seconds later (:meth:`wait_ready`)."""
        worker = Worker(
            self.app,
            self.settings,
            self.folder / f"{name}.log",
            pool=cast(Pool, pool),
            concurrency=concurrency,
            queues=queues,
            options=["--loglevel", "WARNING"],
            env=self._env,
            name=name,
        )
        self._stack.callback(worker.end)
        self.workers.append(worker)
        return worker

    def wait_ready(self, *workers: Worker) -> None:
        """Wait until these workers take tasks."""
        # At this log level a worker does not say that it is ready; to a ping it answers.
        names = {worker.name for worker in workers}

        def all_answer() -> bool:
            answers = self.tasks.app.control.ping(timeout=0.5)
            return names <= {name.partition("@")[0] for answer in answers for name in answer}

        wait_until(all_answer, 60, "the workers")

    def bodies(self, key: str) -> Bodies:
        """Return the bodies of the tasks that wanted this key."""
        return Bodies(self.folder, key)

    def parked(self, key: str) -> int:
        """Return how many tasks have been parked for this key, those that have gone on included."""
        return len(self.bodies(f"parked-{key}"))

    @property
    def locks_url(self) -> str:
        """Where locks live in Redis."""
        return self.locks.url_of(_LOCKS)

    def locks_client(self) -> redis.Redis:
        """Return a client of the database where locks live."""
        return self.locks.client(_LOCKS)

    @contextmanager
    def held(self, key: str) -> Iterator[None]:
        """Hold the key against our own tasks."""
        with Lock(key, url=self.locks_url, ttl=60.0):
            yield

    def processes(self) -> list[psutil.Process]:
        """Return the workers' main processes."""
        return [psutil.Process(worker.pid) for worker in self.workers]

    def cpu(self) -> float:
        """Return the CPU seconds used so far by the workers and their children."""
        return sum(cpu_of(one) for main in self.processes() for one in (main, *main.children(recursive=True)))

    def main_cpu(self) -> float:
        """Return the CPU seconds used so far by the workers' main processes."""
        return sum(cpu_of(one) for one in self.processes())

    def complaints(self) -> list[str]:
        """Return what the workers complain of in their logs: of each record the first line, and the last."""
        told = [complaint.strip().splitlines() for worker in self.workers for complaint in worker.complaints()]
        return [" … ".join(dict.fromkeys((lines[0], lines[-1]))) for lines in told if lines]


@contextmanager
def prepared(
    app: str = "benchmarks.contended",
    *,
    broker: str = "redis",
    results: bool = False,
    separate_locks: bool = False,
    zookeeper: bool = False,
    workers: int = 2,
    pool: str = "prefork",
    concurrency: int = 2,
    env: Mapping[str, str] | None = None,
) -> Iterator[Scene]:
    """Start everything, and end it.

    Arguments:
        app: the module with the tasks.
        broker: ``"redis"`` or ``"rabbitmq"``.
        results: whether the publisher reads results. It would subscribe to every one otherwise, and want none.
        separate_locks: keep the locks in a Redis server of their own.
        zookeeper: start a ZooKeeper, too, where it is installed.
        workers: how many.
        pool: of each.
        concurrency: slots of each.
        env: further environment variables, of the workers and of the publisher's tasks.
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
        known = Settings(messages, server.url_of(_RESULTS), locks.url_of(_LOCKS), folder / "journal")
        extra = {FOLDER: str(folder), **(env or {})}
        hosts = None
        if zookeeper and (running := zookeeper_of(stack, folder / "zookeeper")):
            extra[ZOOKEEPER] = hosts = running.hosts
        publisher = {"BROKER_URL": known.broker, "DISTLOCK_URL": known.locks, **extra}
        if results:
            publisher["RESULT_BACKEND"] = known.results
        tasks = load_app(app, publisher)
        stack.callback(close_app, tasks.app)
        scene = Scene(server, locks, known, app, tasks, [], folder, hosts, dict(extra), stack)
        for number in range(workers):
            scene.start(f"bench{number}", pool=pool, concurrency=concurrency)
        if workers:
            scene.wait_ready(*scene.workers)
        yield scene


def cpu_of(process: psutil.Process) -> float:
    """Return the CPU seconds (user and system) that one process has used so far; none if it is gone."""
    try:
        # The number of its CPU clock, see clock_getcpuclockid(3): in nanoseconds, where /proc counts in hundredths of
        # a second.
        return time.clock_gettime((~process.pid << 3) | 2)
    except OSError:
        return 0.0


def _redis(stack: ExitStack, folder: Path) -> RedisServer:
    server = RedisServer(folder)
    stack.callback(server.stop)
    return server


def zookeeper_of(stack: ExitStack, folder: Path) -> ZooKeeperServer | None:
    """Start a ZooKeeper that the stack ends, if it is installed."""
    if zookeeper_server.executable() is None:
        return None
    server = ZooKeeperServer(folder)
    stack.callback(server.stop)
    return server


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
