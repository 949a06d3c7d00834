"""Tasks that want one key, each in its own way: ours, other people's locks in task bodies, Celery's retry.

All are acknowledged late and store their results, so that they differ in nothing but the lock.
"""

from __future__ import annotations

import functools
import os
import time
from typing import Any

import redis

from benchmarks.bodies import body, record
from celery_distlock import LockedTask
from celery_distlock.signals import lock_parked
from tests.support.apps import make_app

#: Where kazoo finds ZooKeeper (``host:port``), if there is one.
ZOOKEEPER = "BENCH_ZOOKEEPER"
#: Seconds after which Celery's retry asks again.
COUNTDOWN = 1.0

# The publisher has no result back end: it would subscribe to every result, and wants none of them.
app = make_app(__name__, distlock_max_parked=60_000, task_acks_late=True, task_ignore_result=False)


@app.task(base=LockedTask, lock_key="{key}", lock_on_contention="wait")
def ours(key: str, seconds: float) -> None:
    """Wait in the main process."""
    _work(key, seconds)


@lock_parked.connect(weak=False)
def _parked(key: str, **_: Any) -> None:
    now = time.monotonic()
    record(f"parked-{key}", now, now)


@functools.cache
def _client() -> Any:
    return redis.Redis.from_url(app.conf.distlock_url)


@app.task
def redis_py(key: str, seconds: float) -> None:
    """Wait in the body: redis-py's Lock, which asks ten times a second."""
    with _client().lock(f"redis-py:{key}", timeout=30):
        _work(key, seconds)


@app.task
def python_redis_lock(key: str, seconds: float) -> None:
    """Wait in the body: python-redis-lock, which is woken."""
    import redis_lock

    with redis_lock.Lock(_client(), key, expire=30):
        _work(key, seconds)


@functools.cache
def _kazoo() -> Any:
    from kazoo.client import KazooClient

    client = KazooClient(os.environ[ZOOKEEPER])
    client.start()
    return client


@app.task
def kazoo(key: str, seconds: float) -> None:
    """Wait in the body: kazoo's Lock, which is woken."""
    with _kazoo().Lock(f"/{key}"):
        _work(key, seconds)


@app.task(bind=True, max_retries=None)
def celery_retry(self: Any, key: str, seconds: float) -> None:
    """Ask, and otherwise come back later: redis-py's Lock without waiting, and Celery's retry with a countdown."""
    lock = _client().lock(f"celery-retry:{key}", timeout=30)
    if not lock.acquire(blocking=False):
        raise self.retry(countdown=COUNTDOWN)
    try:
        _work(key, seconds)
    finally:
        lock.release()


@app.task
def unrelated(seconds: float) -> None:
    """Want no lock."""
    _work("unrelated", seconds)


def _work(key: str, seconds: float) -> None:
    with body(key):
        time.sleep(seconds)
