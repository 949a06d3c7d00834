"""What breaks while tasks are parked: nothing is lost, nothing runs twice, nobody is stuck."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.journal import Journal
from tests.support.proxy import Proxy
from tests.support.rabbitmq_server import RabbitMQServer
from tests.support.redis_server import RedisServer
from tests.support.servers import Databases
from tests.support.waiting import eventually
from tests.support.workers import LoadApp, Pool, Settings, StartWorker
from tests.worker.faults import PATIENCE, RedisBroker
from tests.worker.watching import assert_nothing_left

APP = "tests.worker.apps.parking_faults"

# What Celery logs of a broken connection.
LOST = [r"consumer: Cannot connect", r"Couldn't ack", r"Connection to broker lost", r"Error 111", r"ConnectionError"]

StartProxy = Callable[[RedisServer | RabbitMQServer], Proxy]


@pytest.mark.parametrize("pool", ["prefork", pytest.param("threads", marks=pytest.mark.slow)])
def test_a_turn_that_comes_while_the_consumer_is_busy_for_long_is_not_the_last_one(
    pool: Pool, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    worker(APP, pool=pool, queues=["first"], conf={"worker_prefetch_multiplier": 4})
    worker(APP, concurrency=1, queues=["second"])
    tasks = load(APP)
    holder = tasks.hold.apply_async(("a",), queue="second")
    journal.wait_for("start", key="a")
    waiter = tasks.work.apply_async(("a",), queue="first")
    journal.wait_for("parked", key="a")
    jam = tasks.jam.apply_async(("jam",), queue="first")
    journal.wait_for("jammed", key="jam")
    journal.record("go", key="a")
    holder.get(timeout=PATIENCE)
    # Nobody of this worker is in the store's line any more, and so it stops to listen.
    eventually(lambda: not listeners(databases), PATIENCE, "a closed line")
    journal.record("go", key="jam")
    assert jam.get(timeout=PATIENCE) == "jam"
    assert waiter.get(timeout=PATIENCE) == "a"
    assert len(journal.runs("a")) == 2


def test_what_was_handed_over_and_is_not_begun_when_the_broker_is_lost_is_given_to_the_next(
    worker: StartWorker, load: LoadApp, journal: Journal, settings: Settings, databases: Databases, proxy: StartProxy
) -> None:
    between = proxy(databases.server)
    first = worker(
        APP, settings.with_broker(between.url(settings.broker)), concurrency=1, queues=["first"], may_log=LOST
    )
    worker(APP, concurrency=1, queues=["second"])
    tasks = load(APP, conf={"distlock_ttl": 600.0})
    # Nobody is to wait for this ttl.
    holder = tasks.hold.apply_async(("a",), queue="second")
    journal.wait_for("start", key="a")
    handed = tasks.work.apply_async(("a",), queue="first", lock={"ttl": 600.0})
    journal.wait_for("parked", key="a", id=handed.id)
    following = tasks.work.apply_async(("a",), queue="second")
    (child,) = first.children()
    os.kill(child, signal.SIGSTOP)
    try:
        journal.record("go", key="a")
        (woken,) = journal.wait_for("woken", key="a", id=handed.id)
        between.cut()
        following.get(timeout=PATIENCE)
    finally:
        os.kill(child, signal.SIGCONT)
    handed.get(timeout=PATIENCE)
    RedisBroker(tasks.app, "first").wait_until_idle()
    runs = journal.runs("a")
    print([(r.id, r.start-woken["t"], r.end-woken["t"]) for r in runs])
    assert [run.id for run in runs] == [holder.id, following.id, handed.id]
    assert journal.overlaps("a") == []
    assert runs[1].start - woken["t"] < 3.0
    assert_nothing_left(databases.server, databases.locks, but=["}:t:", "}:c:"])


def listeners(databases: Databases) -> list[Any]:
    """Return the connections that listen for offers of places."""
    with databases.server.client() as client:
        database = databases.locks.rpartition("/")[2]
        return [one for one in client.client_list(_type="pubsub") if one["db"] == database]
