"""Tasks that want one key, each in its own way: ours, other people's locks in task bodies, Celery's retry.

All are acknowledged late and store their results, so that they differ in nothing but the lock.
"""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from typing import Any

import redis

from benchmarks.bodies import FOLDER, Bodies, body, record
from benchmarks.scene import ZOOKEEPER
from celery_distlock import LockedTask
from celery_distlock.signals import lock_parked
from tests.support.apps import make_app

#: Seconds after which Celery's retry asks again; workers read it from the environment.
COUNTDOWN = "BENCH_COUNTDOWN"
_countdown = float(os.environ.get(COUNTDOWN, "1.0"))
#: The file of this name and the key says that nobody is to ask again.
RETRIES_OVER = "no-more-"

# The publisher has no result back end: it would subscribe to every result, and wants none of them.
app = make_app(__name__, distlock_max_parked=60_000, task_acks_late=True, task_ignore_result=False)


@app.task(base=LockedTask, lock_key="{key}", lock_on_contention="wait")
def ours(key: str, seconds: float) -> None:
    """Wait in the main process."""
    _work(key, seconds)


@app.task(base=LockedTask, lock_key="{key}", lock_on_contention="wait")
def gated(key: str, seconds: float, window: int, gate: str) -> None:
    """Wait in the main process. The first one, and each last one of a window, holds its key until the gate is opened.

    It is opened by one more byte in the file ``gate``.
    """
    _work(key, seconds)
    ended = len(Bodies(_folder(), key))
    if (ended - 1) % window == 0:
        file, openings = Path(gate), 1 + (ended - 1) // window
        while not file.exists() or file.stat().st_size < openings:
            time.sleep(0.001)


@lock_parked.connect(weak=False)
def _parked(key: str, **_: Any) -> None:
    _note(f"parked-{key}")


@functools.cache
def _client() -> Any:
    # python-redis-lock waits in one command for longer than redis-py, since 8, waits for an answer.
    return redis.Redis.from_url(app.conf.distlock_url, socket_timeout=None)


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
    if (_folder() / f"{RETRIES_OVER}{key}").exists():
        _note(f"over-{key}")
        return
    if not lock.acquire(blocking=False):
        if not self.request.retries:
            _note(f"tried-{key}")
        raise self.retry(countdown=_countdown)
    try:
        _work(key, seconds)
    finally:
        lock.release()


@app.task
def unrelated(seconds: float) -> None:
    """Want no lock."""
    _work("unrelated", seconds)


def _folder() -> Path:
    return Path(os.environ[FOLDER])


def _note(name: str) -> None:
    now = time.monotonic()
    record(name, now, now)


def _work(key: str, seconds: float) -> None:
    with body(key):
        time.sleep(seconds)
