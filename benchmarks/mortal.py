"""Tasks that hold a lock until they die, each with another library, and what would like to have that lock next.

The other libraries' time-outs are their defaults, where they have one, and else what suits a task whose length nobody
knows.
"""

from __future__ import annotations

import functools
import os
import signal
import time
from typing import Any

import redis
import redis_lock
from celery_heimdall import HeimdallTask
from celery_heimdall.errors import AlreadyQueuedError
from celery_once import AlreadyQueued, QueueOnce
from celery_singleton import DuplicateTaskError, Singleton
from kazoo.client import KazooClient

from benchmarks.bodies import record
from benchmarks.scene import ZOOKEEPER
from benchmarks.timeouts import HOUR, TIMEOUT
from celery_distlock import LockedTask
from celery_distlock.signals import lock_parked
from tests.support.apps import make_app

#: Seconds: our leases, python-redis-lock's (renewed by a thread in the child), and kazoo's sessions.
TTL = float(os.environ.get("BENCH_TTL", "5"))
_hosts = os.environ.get(ZOOKEEPER)
#: What a library raises that does not publish, since the key is taken.
REFUSED = (AlreadyQueued, DuplicateTaskError, AlreadyQueuedError)
#: The signal at which a body ends its process without any clean-up.
EXIT = signal.SIGUSR2

app = make_app(__name__, worker_prefetch_multiplier=1, task_acks_late=True)
_locks = app.conf.get("distlock_url", "redis://localhost")
app.conf.update(
    ONCE={"backend": "celery_once.backends.Redis", "settings": {"url": _locks, "default_timeout": int(HOUR)}},
    singleton_backend_url=_locks,
    singleton_raise_on_duplicate=True,
    heimdall_unique_lock_blocking=False,
    heimdall_unique_raises=True,
)


class Heimdall(HeimdallTask):
    """Keep the locks where the others' are; by default they are beside the results."""

    abstract = True

    def setup_redis(self) -> redis.Redis:
        return redis.Redis.from_url(_locks)


def _live(key: str, seconds: float) -> None:
    """Note the process that holds the key, and go on until it dies."""
    signal.signal(EXIT, lambda *_: os._exit(137))
    pid = float(os.getpid())
    record(f"holds-{key}", time.monotonic(), pid)
    try:
        time.sleep(seconds)
    finally:
        record(f"interrupted-{key}", time.monotonic(), pid)


@app.task(base=LockedTask, lock_key="{key}", lock_on_contention="wait", lock_ttl=TTL, acks_late=True)
def ours(key: str, seconds: float) -> None:
    """Hold our lock."""
    _live(key, seconds)


@lock_parked.connect(weak=False)
def _parked(key: str, **_: Any) -> None:
    record(f"parked-{key}", time.monotonic(), 0.0)


@app.task(base=QueueOnce, once={"keys": ["key"]})
def celery_once(key: str, seconds: float) -> None:
    """Hold celery-once's lock."""
    _live(key, seconds)


@app.task(base=Singleton, unique_on=["key"])
def celery_singleton(key: str, seconds: float) -> None:
    """Hold celery-singleton's lock."""
    _live(key, seconds)


@app.task(base=Heimdall, heimdall={"unique": True, "key": lambda args, kwargs: args[0]})
def celery_heimdall(key: str, seconds: float) -> None:
    """Hold celery-heimdall's lock."""
    _live(key, seconds)


@app.task
def redis_py(key: str, seconds: float) -> None:
    """Hold redis-py's lock."""
    with lock_of("redis_py", key):
        _live(key, seconds)


@app.task
def python_redis_lock(key: str, seconds: float) -> None:
    """Hold python-redis-lock's lock, which a thread renews."""
    with lock_of("python_redis_lock", key):
        _live(key, seconds)


@app.task
def kazoo(key: str, seconds: float) -> None:
    """Hold kazoo's lock, in a session of this process."""
    with lock_of("kazoo", key):
        _live(key, seconds)


@functools.cache
def _client() -> redis.Redis:
    # python-redis-lock waits in one command for longer than redis-py, since 8, waits for an answer.
    return redis.Redis.from_url(_locks, socket_timeout=None)


@functools.cache
def _zookeeper() -> Any:
    client = KazooClient(_hosts, timeout=TTL)
    client.start()
    return client


def close() -> None:
    """End the session in ZooKeeper, if there is one."""
    if _zookeeper.cache_info().currsize:
        _zookeeper().stop()
        _zookeeper().close()


def lock_of(library: str, key: str) -> Any:
    """Return a lock that is taken in bodies, as a context manager with ``acquire``."""
    if library == "redis_py":
        return _client().lock(f"redis-py:{key}", timeout=TIMEOUT)
    if library == "python_redis_lock":
        return redis_lock.Lock(_client(), key, expire=int(TTL), auto_renewal=True)
    return _zookeeper().Lock(f"/{key}")
