"""Thousands of tasks over thousands of keys leave nothing behind; in Redis, nothing but the shards' meta hashes."""

from __future__ import annotations

import pytest
import redis

from celery_distlock.stores.redis.layout import SHARDS
from tests.support.servers import Databases
from tests.support.waiting import eventually
from tests.support.workers import LoadApp, Pool, StartWorker
from tests.worker.behind import assert_nothing_left, behind
from tests.worker.faults import PATIENCE, RedisBroker

pytestmark = pytest.mark.also_in_zookeeper

APP = "tests.worker.apps.faults_store"

COUNTS = [500, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
CONF = {"task_ignore_result": True, "worker_prefetch_multiplier": 50}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("count", COUNTS)
def test_every_key_is_used_once_and_gone(
    pool: Pool, late: bool, count: int, worker: StartWorker, load: LoadApp, databases: Databases
) -> None:
    node = worker(APP, pool=pool, conf=CONF)
    tasks = load(APP, conf=CONF)
    task = tasks.plain_late if late else tasks.plain
    with tasks.app.producer_pool.acquire(block=True) as producer:
        for number in range(count):
            task.apply_async((f"key-{number}",), producer=producer)
    RedisBroker(tasks.app).wait_until_idle(60 + count / 50)
    inspect = tasks.app.control.inspect(timeout=PATIENCE, limit=1)

    def all_ended() -> bool:
        # What is acknowledged has been active, and a task's release comes before its worker knows of its end.
        [active] = (inspect.active() or {"": ["no answer"]}).values()
        return not active

    eventually(all_ended, PATIENCE, "the last release", every=0.1)
    # Celery's own count is not exact in a pool of threads: they count without a lock.
    assert node.log.count(" succeeded in ") == count
    assert_nothing_left(databases.locks)
    if databases.locks.startswith("redis:"):
        with redis.Redis.from_url(databases.locks) as client:
            assert 1 <= client.dbsize() <= SHARDS
    else:
        with behind(databases.locks) as store:
            assert store.about("key-") == []
