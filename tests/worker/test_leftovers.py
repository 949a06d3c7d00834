"""Thousands of tasks over thousands of keys leave nothing behind but the shards' meta hashes."""

from __future__ import annotations

from typing import Any

import pytest

from celery_distlock.stores.redis.layout import SHARDS
from tests.support.redis_server import RedisServer
from tests.support.servers import Databases
from tests.support.waiting import eventually
from tests.support.workers import LoadApp, Pool, StartWorker
from tests.worker.faults import PATIENCE, RedisBroker
from tests.worker.watching import assert_nothing_left

APP = "tests.worker.apps.faults_store"

COUNTS = [500, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
CONF = {"task_ignore_result": True, "worker_prefetch_multiplier": 50}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("count", COUNTS)
def test_every_key_is_used_once_and_gone(
    pool: Pool, late: bool, count: int, worker: StartWorker, load: LoadApp, databases: Databases
) -> None:
    worker(APP, pool=pool, conf=CONF)
    tasks = load(APP, conf=CONF)
    task = tasks.plain_late if late else tasks.plain
    server = databases.server
    before = _script_calls(server)
    with tasks.app.producer_pool.acquire(block=True) as producer:
        for number in range(count):
            task.apply_async((f"key-{number}",), producer=producer)
    RedisBroker(tasks.app).wait_until_idle(60 + count / 50)
    # Each was acquired and released.
    eventually(lambda: _script_calls(server) >= before + 2 * count, PATIENCE, "the last release")
    assert_nothing_left(server, databases.locks)
    with server.client(int(databases.locks.rpartition("/")[2])) as client:
        assert 1 <= client.dbsize() <= SHARDS


def _script_calls(server: RedisServer) -> int:
    with server.client() as client:
        stats: dict[str, Any] = client.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {}).get("calls", 0))
