"""``lock_on_contention="wait"`` on every pool, broker and kind of queue, and with what else a worker can be told."""

from __future__ import annotations

import re
import time
from typing import Any

import celery
import pytest

from celery_distlock import Lock
from tests.support.journal import Journal
from tests.support.servers import Databases
from tests.support.waiting import eventually
from tests.support.workers import POOLS, LoadApp, Pool, Settings, StartWorker
from tests.worker.faults import PATIENCE, received
from tests.worker.parked import all_is_well, in_line, some

pytestmark = pytest.mark.also_in_zookeeper

APP = "tests.worker.apps.parking_faults"
WORK = f"{APP}.work"
QUORUM = {"queue_arguments": {"x-queue-type": "quorum"}, "exchange_type": "topic"}


def slots(pool: Pool) -> int:
    """Return how many tasks a worker of these tests runs at once."""
    return 1 if pool == "solo" else 2


@pytest.mark.parametrize("prefetch", [pytest.param(1, marks=pytest.mark.slow), 4])
@some("gevent")
def test_tasks_wait_and_run_with_redis(
    pool: Pool, prefetch: int, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    _wait_and_run(pool, prefetch, worker, load, journal, databases)


@pytest.mark.parametrize("prefetch", [pytest.param(1, marks=pytest.mark.slow), 4])
@some("threads")
def test_tasks_wait_and_run_with_rabbitmq(
    pool: Pool, prefetch: int, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases,
    settings: Settings, rabbitmq_url: str,
) -> None:  # fmt: skip
    settings = settings.with_broker(rabbitmq_url).with_conf({"broker_transport_options": {}})
    _wait_and_run(pool, prefetch, worker, load, journal, databases, settings)


def _wait_and_run(
    pool: Pool, prefetch: int, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases,
    settings: Settings | None = None,
) -> None:  # fmt: skip
    options: dict[str, Any] = {"pool": pool, "conf": {"worker_prefetch_multiplier": prefetch}}
    first = worker(APP, settings, queues=["first"], concurrency=slots(pool), wait=False, **options)
    second = worker(APP, settings, queues=["second"])
    first.wait_ready()
    tasks = load(APP, settings)
    results = [tasks.hold.apply_async(("a",), queue="second")]
    journal.wait_for("start", key="a")
    results += [tasks.work.apply_async(("a", 0.005), queue="first") for _ in range(8)]
    # These lie in the worker before they ask for the first time.
    results += [tasks.work.apply_async(("a", 0.005), queue="first", countdown=0.3) for _ in range(2)]
    in_line(journal, results[1:], databases)
    # The worker is free for others.
    tasks.unrelated.apply_async(queue="first").get(timeout=PATIENCE)
    journal.record("go", key="a")
    all_is_well(tasks, results, journal, databases, (first, second))
    assert received(results[1].id, [first]) == 1


@some("prefork", "solo")
def test_a_saturated_worker_does_not_hold_up_those_who_wait_elsewhere(
    pool: Pool, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    first = worker(APP, pool=pool, concurrency=slots(pool), queues=["first"], wait=False)
    second = worker(APP, queues=["second"])
    first.wait_ready()
    tasks = load(APP)
    results = [tasks.hold.apply_async(("a",), queue="second")]
    journal.wait_for("start", key="a")
    for queue in ("first", "first", "second", "first", "second", "second"):
        results.append(tasks.work.apply_async(("a", 0.01), queue=queue))
        in_line(journal, results[1:], databases)
    for number in range(slots(pool)):
        tasks.busy.apply_async((f"slot-{number}",), queue="first")
        journal.wait_for("start", key=f"slot-{number}")
    journal.record("go", key="a")
    elsewhere = [results[number] for number in (0, 3, 5, 6)]
    for result in elsewhere:
        result.get(timeout=PATIENCE)
    runs = journal.runs("a")
    assert [run.id for run in runs] == [result.id for result in elsewhere]
    assert runs[-1].start - runs[0].end < 1.0
    for number in range(slots(pool)):
        journal.record("go", key=f"slot-{number}")
    all_is_well(tasks, results, journal, databases, (first, second))
    assert [run.id for run in journal.runs("a")[4:]] == [results[number].id for number in (1, 2, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("pool", POOLS)
def test_a_crowd_on_busy_workers(
    pool: Pool, limit: int, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    options: dict[str, Any] = {"pool": pool, "concurrency": slots(pool), "queues": ["first"]}
    conf = {"worker_prefetch_multiplier": 4}
    nodes = [worker(APP, wait=False, conf=conf, **options) for _ in range(2)]
    for node in nodes:
        node.wait_ready()
    tasks = load(APP)
    keys = [f"key-{number}" for number in range(3)]
    locks = [Lock(key, app=tasks.app, limit=limit) for key in keys for _ in range(limit)]
    for lock in locks:
        assert lock.acquire(blocking=False)
    results, others = [], []
    for number in range(60):
        results.append(tasks.work.apply_async((keys[number % 3], 0.005), queue="first", lock={"limit": limit}))
        others.append(tasks.unrelated.apply_async((0.02,), queue="first"))
    journal.wait_for("parked", count=6)
    for lock in locks:
        lock.release()
    for result in others:
        result.get(timeout=3 * PATIENCE)
    all_is_well(tasks, results, journal, databases, nodes, limit=limit, patience=3 * PATIENCE)


@pytest.mark.parametrize("pool", [pytest.param("prefork", marks=pytest.mark.slow), "threads",
                                  pytest.param("solo", marks=pytest.mark.slow)])  # fmt: skip
def test_what_a_busy_consumer_does_not_take_in_time_goes_to_the_next(
    pool: Pool, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    conf = {"worker_prefetch_multiplier": 4}
    first = worker(APP, pool=pool, concurrency=slots(pool), queues=["first"], conf=conf, wait=False)
    second = worker(APP, queues=["second"])
    first.wait_ready()
    tasks = load(APP)
    results = [tasks.hold.apply_async(("a",), queue="second")]
    journal.wait_for("start", key="a")
    for queue in ("first", "second"):
        results.append(tasks.work.apply_async(("a",), queue=queue))
        in_line(journal, results[1:], databases)
    tasks.jam.apply_async(("jam",), queue="first")
    journal.wait_for("jammed", key="jam")
    journal.record("go", key="a")
    results[2].get(timeout=PATIENCE)
    holder, following = journal.runs("a")
    assert following.id == results[2].id
    assert following.start - holder.end < 1.0
    journal.record("go", key="jam")
    all_is_well(tasks, results, journal, databases, (first, second))


@some()
def test_a_message_that_is_parked_for_three_visibility_timeouts_is_delivered_once(
    pool: Pool, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    first = worker(APP, pool=pool, concurrency=slots(pool), queues=["first"], wait=False)
    # Whatever is delivered again goes to either of them.
    second = worker(APP, queues=["first", "second"])
    first.wait_ready()
    tasks = load(APP)
    results = [tasks.hold.apply_async(("a",), queue="second")]
    journal.wait_for("start", key="a")
    results += [tasks.work.apply_async(("a",), queue="first") for _ in range(4)]
    in_line(journal, results[1:], databases)
    # The time itself is the subject: a message is visible again after two seconds.
    time.sleep(6.0)
    journal.record("go", key="a")
    all_is_well(tasks, results, journal, databases, (first, second))
    assert [received(result.id, (first, second)) for result in results] == [1] * 5


@pytest.mark.parametrize("pool", ["prefork", pytest.param("gevent", marks=pytest.mark.slow)])
def test_on_quorum_queues_they_are_published_again_with_their_tickets(
    pool: Pool, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases, settings: Settings,
    rabbitmq_url: str,
) -> None:  # fmt: skip
    queues = {name: {"exchange": name, "binding_key": name, **QUORUM} for name in ("first", "second")}
    conf = {"broker_transport_options": {}, "task_queues": queues, "task_default_exchange_type": "topic"}
    settings = settings.with_broker(rabbitmq_url).with_conf(conf)
    # Both at once want to make the exchanges of Celery's delayed delivery, which nothing here needs.
    may_log = ["delayed delivery"]
    first = worker(APP, settings, pool=pool, queues=["first"], may_log=may_log, wait=False)
    second = worker(APP, settings, queues=["second"], may_log=may_log)
    first.wait_ready()
    tasks = load(APP, settings)
    results = [tasks.hold.apply_async(("a",), queue="second")]
    journal.wait_for("start", key="a")
    tickets = []
    for _ in range(3):
        results.append(tasks.work.apply_async(("a",), queue="first"))
        again = r"cannot be parked here, or not for longer; published again with(?: ticket (\d+)|out a ticket)"
        tickets.append(first.wait_for_log(rf"\[{results[-1].id}\] {again}")[1])
    # In ZooKeeper a number is no place: who has left the line comes back at its end, and has none.
    numbered = databases.locks.startswith("redis:")
    assert tickets == (sorted(set(tickets), key=int) if numbered else [None] * 3)
    tasks.unrelated.apply_async(queue="first").get(timeout=PATIENCE)
    journal.record("go", key="a")
    all_is_well(tasks, results, journal, databases, (first, second))
    assert not journal.entries("parked")
    if numbered:
        said = re.findall(r"\[(\S+)\] cannot be parked here.*with ticket (\d+)", first.log)
        assert len(set(said)) == 3, "they kept their tickets"


#: Where a task that runs leaves the worker time to receive others.
OTHERS = ("threads", "gevent")


class TestTheWorkerIsTold:
    @pytest.mark.slow
    def test_a_rate_limit(self, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases) -> None:
        conf = {"task_annotations": {WORK: {"rate_limit": "10/s"}}}
        node = worker(APP, concurrency=2, queues=["first"], conf=conf)
        tasks = load(APP)
        results = [tasks.hold.apply_async(("a",), queue="first")]
        journal.wait_for("start", key="a")
        results += [tasks.work.apply_async(("a",), queue="first") for _ in range(6)]
        in_line(journal, results[1:], databases)
        journal.record("go", key="a")
        all_is_well(tasks, results, journal, databases, [node])

    @pytest.mark.slow
    def test_priorities(self, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases) -> None:
        node = worker(APP, concurrency=2, queues=["first"])
        tasks = load(APP)
        results = [tasks.hold.apply_async(("a",), queue="first")]
        journal.wait_for("start", key="a")
        for priority in (9, 0, 6, 3):
            results.append(tasks.work.apply_async(("a",), queue="first", priority=priority))
            in_line(journal, results[1:], databases)
        journal.record("go", key="a")
        all_is_well(tasks, results, journal, databases, [node])
        # A priority is for the queue; in line it is first come, first served.
        assert [run.id for run in journal.runs("a")] == [result.id for result in results]

    @pytest.mark.slow
    def test_to_scale_itself(self, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases) -> None:
        node = worker(APP, queues=["first"], options=["--autoscale", "4,1"])
        tasks = load(APP)
        results = [tasks.hold.apply_async(("a",), queue="first")]
        journal.wait_for("start", key="a")
        results += [tasks.work.apply_async(("a", 0.01), queue="first") for _ in range(8)]
        in_line(journal, results[1:], databases)
        journal.record("go", key="a")
        all_is_well(tasks, results, journal, databases, [node])

    @pytest.mark.skipif(celery.VERSION < (5, 6), reason="Celery before 5.6 knows no worker_eta_task_limit")
    @pytest.mark.parametrize("pool", ["prefork", *(pytest.param(pool, marks=pytest.mark.slow) for pool in OTHERS)])
    def test_how_many_messages_it_may_keep(
        self, pool: Pool, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
    ) -> None:
        node = worker(APP, pool=pool, concurrency=2, queues=["first"], conf={"worker_eta_task_limit": 4})
        tasks = load(APP)
        results = [tasks.hold.apply_async(("a",), queue="first")]
        journal.wait_for("start", key="a")
        results += [tasks.work.apply_async(("a",), queue="first") for _ in range(8)]
        eventually(lambda: len(journal.entries("parked")) >= 2, PATIENCE, "two parked")
        node.wait_for_log(r"cannot be parked here, or not for longer; published again with(out a)? ticket")
        # It has room for others still.
        tasks.unrelated.apply_async(queue="first").get(timeout=PATIENCE)
        journal.record("go", key="a")
        all_is_well(tasks, results, journal, databases, [node])
