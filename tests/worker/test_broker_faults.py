"""The broker goes away while tasks run; what it delivers again does not run beside, or after, the original."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import celery
import pytest
from celery import states

from tests.support.journal import Journal
from tests.support.proxy import Proxy
from tests.support.rabbitmq_server import RabbitMQServer
from tests.support.redis_server import RedisServer
from tests.support.servers import Databases
from tests.support.waiting import eventually
from tests.support.workers import LoadApp, Settings, StartWorker
from tests.worker.behind import records_in
from tests.worker.faults import KNOWS_WHO_IS_BUSY, PATIENCE, RedisBroker, received, wait_until_accepted

APP = "tests.worker.apps.faults_redelivery"

PARKED = r"is a copy of a running task; parked"
DONE = r"this delivery has already done its work"
READY_AGAIN = r"(?s)Connected to .*Connected to "
# What Celery logs of a broken connection.
LOST = [r"consumer: Cannot connect", r"Couldn't ack", r"Connection to broker lost", r"Error 111", r"ConnectionError"]

CANCEL = {"worker_cancel_long_running_tasks_on_connection_loss": True}

StartProxy = Callable[[RedisServer | RabbitMQServer], Proxy]
StartRedis = Callable[..., RedisServer]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_message_delivered_again_on_a_new_connection_waits_for_the_original(
    pool: Any, worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    node = worker(APP, pool=pool, concurrency=2, may_log=LOST)
    tasks = load(APP)
    broker = RedisBroker(tasks.app)
    result = tasks.hold.delay("a")
    journal.wait_for("start", key="a")
    wait_until_accepted(tasks.app, result.id)
    broker.drop_connections()
    node.wait_for_log(PARKED)
    assert received(result.id, [node]) == 2
    if pool != "prefork" or KNOWS_WHO_IS_BUSY:
        assert tasks.unrelated.delay("b").get(timeout=PATIENCE) == "b"
    journal.record("go", key="a")
    assert result.get(timeout=PATIENCE) == "a"
    broker.wait_until_idle()
    assert len(journal.entries("start", key="a")) == 1


def test_a_message_delivered_again_to_another_worker_waits_for_the_original(
    worker: StartWorker, load: LoadApp, journal: Journal, settings: Settings, databases: Databases, proxy: StartProxy
) -> None:
    between = proxy(databases.server)
    first = worker(APP, settings.with_broker(between.url(settings.broker)), concurrency=1, may_log=LOST)
    tasks = load(APP)
    broker = RedisBroker(tasks.app)
    result = tasks.hold.delay("a")
    journal.wait_for("start", key="a")
    second = worker(APP, concurrency=1)
    between.refuse()
    between.cut()
    second.wait_for_log(PARKED)
    journal.record("go", key="a")
    assert result.get(timeout=PATIENCE) == "a"
    second.wait_for_log(DONE)
    broker.wait_until_idle()
    between.accept()
    first.wait_for_log(READY_AGAIN)
    assert tasks.unrelated.delay("b").get(timeout=PATIENCE) == "b"
    broker.wait_until_idle()
    assert len(journal.entries("start", key="a")) == 1


def test_a_task_that_is_cancelled_with_its_connection_runs_again_after_its_end(
    worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    node = worker(APP, concurrency=2, may_log=LOST, conf=CANCEL)
    tasks = load(APP, conf=CANCEL)
    broker = RedisBroker(tasks.app)
    result = tasks.hold.delay("a")
    journal.wait_for("start", key="a")
    wait_until_accepted(tasks.app, result.id)
    broker.drop_connections()
    journal.wait_for("start", count=2, key="a")
    journal.record("go", key="a")
    broker.wait_until_idle()
    assert received(result.id, [node]) == 2
    cancelled, again = journal.runs("a")
    assert (cancelled.error, again.error) == ("SystemExit", None)
    assert journal.overlaps("a") == []
    assert result.get(timeout=PATIENCE) == "a"


def test_work_whose_acknowledgement_did_not_arrive_is_not_done_again(
    worker: StartWorker, load: LoadApp, journal: Journal, settings: Settings, databases: Databases, proxy: StartProxy
) -> None:
    between = proxy(databases.server)
    first = worker(APP, settings.with_broker(between.url(settings.broker)), concurrency=1, may_log=LOST)
    tasks = load(APP)
    broker = RedisBroker(tasks.app)
    result = tasks.hold.delay("a")
    journal.wait_for("start", key="a")
    first.freeze(main_only=True)
    journal.record("go", key="a")
    assert result.get(timeout=PATIENCE) == "a"
    eventually(lambda: records_in(databases.locks), PATIENCE, "a completion record")
    between.refuse()
    between.cut()
    first.thaw()
    # The broker stays out of reach for longer than records are collected before they are erased.
    first.wait_for_log(r"(?s)(?:Cannot connect.*){2}")
    between.accept()
    first.wait_for_log(DONE)
    broker.wait_until_idle()
    assert received(result.id, [first]) == 2
    assert len(journal.entries("start", key="a")) == 1
    assert result.state == states.SUCCESS


def test_work_whose_acknowledgement_alone_is_lost_is_not_done_again(
    worker: StartWorker, load: LoadApp, journal: Journal, settings: Settings, databases: Databases, proxy: StartProxy
) -> None:
    between = proxy(databases.server)
    # For kombu the lost one fills a place in the prefetch window for ever.
    reserve = {"worker_prefetch_multiplier": 4}
    through = settings.with_broker(between.url(settings.broker))
    node = worker(APP, through, concurrency=1, conf=reserve, may_log=LOST)
    tasks = load(APP)
    broker = RedisBroker(tasks.app)
    result = tasks.hold.delay("a")
    journal.wait_for("start", key="a")
    # An acknowledgement; giving a message back pushes it, too. As many as redis-py tries.
    faults = [between.swallow_request(lambda data: b"ZREM" in data and b"PUSH" not in data) for _ in range(4)]
    journal.record("go", key="a")
    assert result.get(timeout=PATIENCE) == "a"
    # Celery takes the message for acknowledged, and its connection for sound.
    node.wait_for_log(r"Couldn't ack")
    node.wait_for_log(DONE)
    for fault in faults:
        fault.wait()
    broker.wait_until_idle()
    assert "Connection to broker lost" not in node.log
    assert len(journal.entries("start", key="a")) == 1


def test_broker_and_store_in_one_redis_that_loses_everything(
    worker: StartWorker, load: LoadApp, journal: Journal, settings: Settings, private_redis: StartRedis
) -> None:
    # Acknowledged early: with a message in hand Celery 5.7 does not survive a Redis broker that refuses connections,
    # locks or not.
    server = private_redis()
    settings = Settings(server.url_of(1), settings.results, server.url_of(2), journal.path)
    node = worker(APP, settings, concurrency=2, may_log=LOST)
    tasks = load(APP, settings)
    lock = {"ttl": 2.0, "retry_delay": 0.1}
    result = tasks.hold_early.apply_async(("a",), lock=lock)
    (start,) = journal.wait_for("start", key="a")
    wait_until_accepted(tasks.app, result.id)
    server.restart()
    node.wait_for_log(READY_AGAIN)
    node.wait_for_log(r"was entered again")
    other = tasks.hold_early.apply_async(("a",), lock=lock)
    if KNOWS_WHO_IS_BUSY:
        node.wait_for_log(rf"{other.id}\] retry")
    journal.record("go", key="a")
    assert [each.get(timeout=PATIENCE) for each in (result, other)] == ["a", "a"]
    assert [run.id for run in journal.runs("a")] == [result.id, other.id]
    assert journal.entries("start", key="a")[1]["fence"] > start["fence"]
    assert journal.overlaps("a") == []
    RedisBroker(tasks.app).wait_until_idle()


class TestRabbitMQ:
    """It delivers what a connection held again as soon as that connection is gone."""

    def test_a_message_delivered_again_waits_for_the_original(
        self,
        worker: StartWorker,
        load: LoadApp,
        journal: Journal,
        settings: Settings,
        rabbitmq: RabbitMQServer,
        rabbitmq_url: str,
        proxy: StartProxy,
    ) -> None:
        between = proxy(rabbitmq)
        conf = {"broker_transport_options": {}}
        direct = settings.with_broker(rabbitmq_url)
        node = worker(
            APP, settings.with_broker(between.url(rabbitmq_url)), concurrency=2, may_log=[*LOST, "reset"], conf=conf
        )
        tasks = load(APP, direct, conf=conf)
        result = tasks.hold.delay("a")
        journal.wait_for("start", key="a")
        wait_until_accepted(tasks.app, result.id)
        between.cut()
        node.wait_for_log(PARKED)
        if KNOWS_WHO_IS_BUSY:
            assert tasks.unrelated.delay("b").get(timeout=PATIENCE) == "b"
        journal.record("go", key="a")
        assert result.get(timeout=PATIENCE) == "a"
        # The original's message cannot be acknowledged any more: the copy's is. (5.5 has forgotten the task.)
        if celery.VERSION >= (5, 6):
            node.wait_for_log(r"Couldn't ack")
        assert tasks.unrelated.delay("c").get(timeout=PATIENCE) == "c"
        _wait_until_empty(rabbitmq, rabbitmq_url)
        assert len(journal.entries("start", key="a")) == 1
        assert received(result.id, [node]) == 2

    @pytest.mark.slow
    def test_a_thread_pool_does_not_run_what_another_worker_has_finished(
        self,
        worker: StartWorker,
        load: LoadApp,
        journal: Journal,
        settings: Settings,
        rabbitmq: RabbitMQServer,
        rabbitmq_url: str,
        proxy: StartProxy,
    ) -> None:
        between = proxy(rabbitmq)
        conf = {"broker_transport_options": {}, "worker_prefetch_multiplier": 4}
        direct = settings.with_broker(rabbitmq_url)
        through = settings.with_broker(between.url(rabbitmq_url))
        first = worker(APP, through, pool="threads", concurrency=1, conf=conf, may_log=[*LOST, "reset"])
        tasks = load(APP, direct, conf=conf)
        running = tasks.hold.delay("running")
        journal.wait_for("start", key="running")
        reserved = tasks.last.delay("reserved", 0.0)
        first.wait_for_log(rf"\[{reserved.id}\] received")
        second = worker(APP, direct, concurrency=2, conf=conf)
        between.refuse()
        between.cut()
        assert reserved.get(timeout=PATIENCE) == "reserved"
        second.wait_for_log(PARKED)
        journal.record("go", key="running")
        # It has the message in line still, from before it lost the broker, which it does not reach again.
        first.wait_for_log(rf"\[{reserved.id}\]: {DONE}")
        assert running.get(timeout=PATIENCE) == "running"
        second.wait_for_log(rf"\[{running.id}\]: {DONE}")
        _wait_until_empty(rabbitmq, rabbitmq_url)
        assert len(journal.entries("start", key="reserved")) == 1
        assert len(journal.entries("start", key="running")) == 1

    def test_work_whose_worker_died_before_the_acknowledgement_is_not_done_again(
        self,
        worker: StartWorker,
        load: LoadApp,
        journal: Journal,
        settings: Settings,
        databases: Databases,
        rabbitmq: RabbitMQServer,
        rabbitmq_url: str,
    ) -> None:
        conf = {"broker_transport_options": {}}
        settings = settings.with_broker(rabbitmq_url)
        first = worker(APP, settings, concurrency=1, conf=conf)
        tasks = load(APP, settings, conf=conf)
        result = tasks.hold.delay("a")
        journal.wait_for("start", key="a")
        first.freeze(main_only=True)
        journal.record("go", key="a")
        assert result.get(timeout=PATIENCE) == "a"
        eventually(lambda: records_in(databases.locks), PATIENCE, "a completion record")
        first.kill_all()
        second = worker(APP, settings, concurrency=1, conf=conf)
        second.wait_for_log(DONE)
        _wait_until_empty(rabbitmq, rabbitmq_url)
        assert len(journal.entries("start", key="a")) == 1


def _wait_until_empty(server: RabbitMQServer, url: str) -> None:
    """Wait until every message is acknowledged.

    Not by stopping the worker, which would give back what it holds: after a reconnect that can take half a minute, in
    which billiard's processes wait for their last results to be read.
    """
    eventually(lambda: not server.messages(url), PATIENCE, "a broker without messages", every=0.1)
