"""``lock_hold_on_retry``: a task that retries itself keeps its lock until its next attempt, if it wants to."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest
import redis
from celery import states

from celery_distlock import Lock
from tests.support.journal import Journal
from tests.support.redis_server import RedisServer
from tests.support.servers import Databases
from tests.support.waiting import eventually
from tests.support.workers import LoadApp, StartWorker
from tests.worker.faults import RedisBroker
from tests.worker.shared import PATIENCE, Shared, shared_workers

pytestmark = [pytest.mark.xdist_group("inheriting"), pytest.mark.also_in_zookeeper]

APP = "tests.worker.apps.inheriting"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Shared]:
    """Two workers, so that the next attempt may run in another one."""
    with shared_workers(tmp_path_factory.mktemp("inheriting"), redis_server, APP, nodes=2) as shared:
        yield shared


@pytest.fixture
def key() -> str:
    """A key that no other test uses."""
    return f"key-{uuid.uuid4().hex[:8]}"


def test_nobody_comes_between_two_attempts(shared: Shared, key: str) -> None:
    result = shared.tasks.keeping.delay(key, 1, 2.0)
    eventually(lambda: result.state == states.RETRY, PATIENCE, "the retry")
    # Longer than the ttl: the retry's delay counts, too.
    for _ in range(3):
        assert shared.tasks.other.delay(key).get(timeout=PATIENCE) is None
    assert not shared.lock(key).acquire(blocking=False)
    assert result.get(timeout=PATIENCE) == "done"
    shared.wait_until_free(key)
    assert shared.journal.entries("other", key=key) == []


def test_every_attempt_has_a_lease_and_a_fence_of_its_own(shared: Shared, key: str) -> None:
    assert shared.tasks.keeping.delay(key, 3, 0.0).get(timeout=PATIENCE) == "done"
    runs = shared.journal.runs(key)
    assert len(runs) == 4
    assert len({run.owner for run in runs}) == 4
    fences = [run.fence for run in runs]
    assert fences == sorted(set(fences))


def test_by_default_others_may_come_in_between(shared: Shared, key: str) -> None:
    result = shared.tasks.releasing.delay(key, 1, 1.0)
    eventually(lambda: result.state == states.RETRY, PATIENCE, "the retry")
    shared.wait_until_free(key)
    assert shared.tasks.other.delay(key).get(timeout=PATIENCE) == "ran"
    assert result.get(timeout=PATIENCE) == "done"


def test_a_retry_that_never_comes_keeps_the_lock_for_its_delay_and_a_ttl(shared: Shared, key: str) -> None:
    # Longer than the ttl alone.
    result = shared.tasks.keeping.delay(key, 1, 2.0)
    eventually(lambda: result.state == states.RETRY, PATIENCE, "the retry")
    began = time.monotonic()
    shared.tasks.app.control.revoke(result.id)
    with shared.lock(key, timeout=PATIENCE):
        waited = time.monotonic() - began
    assert 2.0 < waited < 2.0 + 1.0 + 1.0 + 1.0


def test_an_attempt_that_is_delivered_again_does_not_take_what_it_left_to_the_next(
    worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    first = worker(APP, concurrency=1)
    tasks = load(APP)
    broker = RedisBroker(tasks.app)
    result = tasks.gated.delay("k")
    (start,) = journal.wait_for("start", key="k", retries=1)
    (tag,) = broker.wait_for_unacknowledged()
    # It ends as it should, and is never acknowledged.
    first.freeze(main_only=True)
    with redis.Redis.from_url(databases.broker) as client:
        client.rpush("gate:k", "open")
    lock = Lock("k", app=tasks.app)
    eventually(lambda: {each["owner"] for each in lock.holders()} - {start["owner"]}, PATIENCE, "its heir")
    first.kill_all()
    second = worker(APP, concurrency=1, queues=["celery", "later"])
    broker.deliver_again(tag)
    second.wait_for_log("this delivery has already done its work")
    assert result.get(timeout=PATIENCE) == "done"
    assert [entry["retries"] for entry in journal.entries("start", key="k")] == [0, 1, 2]
