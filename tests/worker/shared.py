"""Workers that the tests of one module share, since starting one costs more than most tests do.

Tests on a shared worker keep apart by their keys: every test asks the fixture ``key`` for one of its own.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from celery_distlock import Lock
from tests.support.apps import close_app, load_app
from tests.support.journal import Journal
from tests.support.redis_server import RedisServer
from tests.support.servers import fresh_databases
from tests.support.waiting import eventually
from tests.support.workers import Settings, Worker

__all__ = ["Shared", "shared_workers"]

#: Seconds that a result may take; a ``get()`` without it could hang for ever.
PATIENCE = 20.0


@dataclass
class Shared:
    """Workers, the test's copy of their application, and where they tell what they do."""

    workers: list[Worker]
    tasks: Any
    journal: Journal
    settings: Settings
    broker: redis.Redis

    @property
    def worker(self) -> Worker:
        """The first of them."""
        return self.workers[0]

    def lock(self, key: str, **options: Any) -> Lock:
        """Return a lock in the workers' store."""
        return Lock(key, url=self.settings.locks, **options)

    @contextlib.contextmanager
    def held_by_a_task(self, key: str) -> Iterator[Any]:
        """Have the application's task ``hold`` keep the key through the block; yield its result."""
        result = self.tasks.hold.apply_async((key,))
        self.journal.wait_for("start", key=key, id=result.id)
        try:
            yield result
        finally:
            self.open_gate(key)
            result.get(timeout=PATIENCE)

    def open_gate(self, key: str, times: int = 1) -> None:
        """Let a task that waits at the gate of this key go on."""
        self.broker.rpush(f"gate:{key}", *["open"] * times)

    def wait_until_free(self, *keys: str) -> None:
        """Wait until nobody holds these keys: a lock is released a moment after the result is there."""
        for key in keys:
            lock = self.lock(key)
            eventually(lambda lock=lock: not lock.locked(), 5.0, f"the release of {key}")  # type: ignore[misc]

    def wait_until_idle(self, but_for: int = 0) -> None:
        """Wait until the broker has no message waiting, and none being worked on but for so many."""
        names = ["celery", *(f"celery\x06\x16{priority}" for priority in (3, 6, 9))]

        def idle() -> bool:
            # All at one time: messages move in both directions.
            with self.broker.pipeline() as pipe:
                for name in names:
                    pipe.llen(name)
                *waiting, unacknowledged = pipe.hlen("unacked").execute()
            return not any(waiting) and unacknowledged == but_for

        eventually(idle, PATIENCE, "an idle broker")


@contextlib.contextmanager
def shared_workers(
    folder: Path,
    server: RedisServer,
    module: str,
    *,
    nodes: int = 1,
    locks: str | None = None,
    results: str | None = None,
    conf: Mapping[str, Any] | None = None,
    **options: Any,
) -> Iterator[Shared]:
    """Run ``nodes`` workers of an application through the block.

    Arguments:
        folder: for logs and the journal.
        server: the run's Redis server.
        module: the application.
        locks: the URL of the store; default: a database of the server.
        results: the URL of the result back end; default: the same.
        conf: further settings.
        options: as for :class:`~tests.support.workers.Worker`.
    """
    databases = fresh_databases(server)
    journal = Journal(folder / "journal.jsonl")
    settings = Settings(
        databases.broker, results or databases.results, locks or databases.locks, journal.path, dict(conf or {})
    )
    tasks = load_app(module, settings.env)
    names = [f"shared{number + 1}" for number in range(nodes)]
    workers = [Worker(module, settings, folder / f"{name}.log", name=name, **options) for name in names]
    broker = redis.Redis.from_url(databases.broker, decode_responses=True)
    try:
        for each in workers:
            each.wait_ready()
        yield Shared(workers, tasks, journal, settings, broker)
    finally:
        for each in workers:
            each.end()
        # Results unsubscribe when they are collected; at the end of the interpreter they could not any more.
        gc.collect()
        close_app(tasks.app)
        broker.close()
    complaints = [record for each in workers for record in each.complaints()]
    assert not complaints, "\n".join(complaints)
