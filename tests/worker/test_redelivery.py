"""A message that is delivered more than once runs once: prevented where possible, noticed where not."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from tests.support.journal import Journal
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.servers import Databases
from tests.support.workers import LoadApp, Pool, Settings, StartWorker
from tests.worker.behind import assert_nothing_left
from tests.worker.faults import PATIENCE, RedisBroker, kill_child, received

APP = "tests.worker.apps.faults_redelivery"

PARKED = r"is a copy of a running task; parked"
DONE = r"this delivery has already done its work"


def test_a_message_held_longer_than_its_visibility_is_delivered_once(
    worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    wide = [worker(APP, concurrency=3) for _ in range(2)]
    narrow = worker(APP, concurrency=1, queues=["narrow"], conf={"worker_prefetch_multiplier": 4})
    tasks = load(APP)

    running = tasks.last.delay("running", 6.0)
    bare = tasks.bare.delay("bare", 6.0)
    scheduled = tasks.last.apply_async(("scheduled", 0.0), countdown=5.0)
    first = tasks.last.apply_async(("first", 4.0), queue="narrow")
    reserved = tasks.last.apply_async(("reserved", 0.0), queue="narrow")

    for result in (running, scheduled, first, reserved, bare):
        result.get(timeout=PATIENCE)
    for key, result in (("running", running), ("scheduled", scheduled), ("first", first), ("reserved", reserved)):
        assert received(result.id, [*wide, narrow]) == 1, key
        assert [run.id for run in journal.runs(key)] == [result.id]
    # What the same situation does to a task without a lock.
    assert len(journal.entries("start", key="bare")) > 1
    assert journal.overlaps("bare")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_forty_contenders_that_outlive_their_visibility_all_run_once_and_alone(
    worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    worker(APP)
    worker(APP)
    tasks = load(APP)
    results = [tasks.last.delay("a", 6.0) for _ in range(40)]
    assert [result.get(timeout=500) for result in results] == ["a"] * 40
    assert sorted(str(run.id) for run in journal.runs("a")) == sorted(result.id for result in results)
    assert journal.overlaps("a") == []
    RedisBroker(tasks.app).wait_until_idle()


class TestACopyInTheSameWorker:
    """The broker gives it back to the very worker that runs the original."""

    @pytest.mark.parametrize("pool", ["prefork", "threads", pytest.param("gevent", marks=pytest.mark.slow)])
    def test_is_acknowledged_with_the_original_and_never_runs(
        self, pool: Pool, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
    ) -> None:
        node = worker(APP, pool=pool, concurrency=2)
        tasks = load(APP)
        broker = RedisBroker(tasks.app)
        result = tasks.hold.delay("a")
        journal.wait_for("start", key="a")
        (tag,) = broker.wait_for_unacknowledged()
        broker.deliver_again(tag)
        node.wait_for_log(PARKED)
        assert received(result.id, [node]) == 2
        assert broker.unacknowledged() == [tag]
        # The copy occupies neither a slot nor the worker's prefetch window.
        for number in range(3):
            assert tasks.unrelated.delay(str(number)).get(timeout=PATIENCE) == str(number)
        journal.record("go", key="a")
        assert result.get(timeout=PATIENCE) == "a"
        broker.wait_until_idle()
        assert len(journal.entries("start", key="a")) == 1
        assert_nothing_left(databases.locks)

    def test_finds_the_work_done_when_it_had_to_wait_for_the_only_slot(
        self, worker: StartWorker, load: LoadApp, journal: Journal
    ) -> None:
        node = worker(APP, concurrency=1, conf={"worker_prefetch_multiplier": 4})
        tasks = load(APP)
        broker = RedisBroker(tasks.app)
        result = tasks.hold.delay("a")
        journal.wait_for("start", key="a")
        (tag,) = broker.wait_for_unacknowledged()
        broker.deliver_again(tag)
        node.wait_for_log(rf"\[{result.id}\] received(?s:.*)\[{result.id}\] received")
        journal.record("go", key="a")
        assert result.get(timeout=PATIENCE) == "a"
        broker.wait_until_idle()
        assert len(journal.entries("start", key="a")) == 1

    @pytest.mark.parametrize("concurrency", [1, 2], ids=["for the only slot", "parked"])
    def test_does_not_hide_the_original_from_who_terminates_it(
        self, concurrency: int, worker: StartWorker, load: LoadApp, journal: Journal
    ) -> None:
        node = worker(APP, concurrency=concurrency, conf={"worker_prefetch_multiplier": 4})
        tasks = load(APP)
        broker = RedisBroker(tasks.app)
        result = tasks.hold.delay("a")
        journal.wait_for("start", key="a")
        (tag,) = broker.wait_for_unacknowledged()
        broker.deliver_again(tag)
        node.wait_for_log(rf"\[{result.id}\] received(?s:.*)\[{result.id}\] received")
        # Whatever the worker does in the same round of its loop is done when this has run through it.
        tasks.app.control.ping(destination=[f"{node.name}@{socket.gethostname()}"], timeout=PATIENCE, limit=1)
        result.revoke(terminate=True)
        journal.wait_for("end", key="a")
        broker.wait_until_idle()
        assert [run.error for run in journal.runs("a")] == ["SystemExit"]
        assert result.state == "REVOKED"

    @pytest.mark.slow
    @pytest.mark.parametrize("stop", ["warm", "cold"])
    def test_is_settled_by_a_shutdown(self, stop: str, worker: StartWorker, load: LoadApp, journal: Journal) -> None:
        node = worker(APP, concurrency=2)
        tasks = load(APP)
        broker = RedisBroker(tasks.app)
        result = tasks.hold.delay("a")
        journal.wait_for("start", key="a")
        (tag,) = broker.wait_for_unacknowledged()
        broker.deliver_again(tag)
        node.wait_for_log(PARKED)
        if stop == "warm":
            node.stop_warm(wait=False)
            node.wait_for_log("Warm shutdown")
            journal.record("go", key="a")
            node.wait_stopped()
            assert broker.is_idle()
        else:
            node.stop_cold()
        worker(APP, concurrency=1)
        journal.wait_for("start", count=1 if stop == "warm" else 2, key="a")
        journal.record("go", key="a")
        assert result.get(timeout=PATIENCE) == "a"
        broker.wait_until_idle()
        errors = [run.error for run in journal.runs("a")]
        assert errors == ([None] if stop == "warm" else ["SystemExit", None])
        assert journal.overlaps("a") == []

    def test_runs_once_when_the_original_is_killed(self, worker: StartWorker, load: LoadApp, journal: Journal) -> None:
        node = worker(APP, concurrency=2, may_log=["WorkerLostError"])
        tasks = load(APP)
        broker = RedisBroker(tasks.app)
        result = tasks.hold.delay("a")
        (start,) = journal.wait_for("start", key="a")
        (tag,) = broker.wait_for_unacknowledged()
        broker.deliver_again(tag)
        node.wait_for_log(PARKED)
        kill_child(start["pid"], journal)
        journal.wait_for("start", count=2, key="a")
        journal.record("go", key="a")
        broker.wait_until_idle()
        killed, again = journal.runs("a")
        assert (killed.error, again.error) == ("killed", None)
        assert {killed.id, again.id} == {result.id}

    def test_is_dropped_if_the_original_was_acknowledged_early(
        self, worker: StartWorker, load: LoadApp, journal: Journal
    ) -> None:
        tasks = load(APP)
        result = tasks.hold_early.delay("a")
        copy = RedisBroker(tasks.app).copy_of_waiting()
        node = worker(APP, concurrency=2, queues=["celery", "second"])
        # A copy never comes before its original.
        journal.wait_for("start", key="a")
        RedisBroker(tasks.app, "second").deliver(copy)
        node.wait_for_log(r"this copy is dropped")
        RedisBroker(tasks.app).wait_until_idle()
        RedisBroker(tasks.app, "second").wait_until_idle()
        journal.record("go", key="a")
        assert result.get(timeout=PATIENCE) == "a"
        assert received(result.id, [node]) == 2
        assert len(journal.entries("start", key="a")) == 1


class TestACopyInAnotherWorker:
    """The original's worker was out of sight for longer than the visibility timeout."""

    @pytest.mark.parametrize("pool", ["prefork", pytest.param("threads", marks=pytest.mark.slow)])
    @pytest.mark.locks_in_redis
    def test_waits_beside_its_workers_other_tasks_and_finds_the_work_done(
        self, pool: Pool, worker: StartWorker, load: LoadApp, journal: Journal
    ) -> None:
        first = worker(APP, concurrency=1)
        tasks = load(APP)
        broker = RedisBroker(tasks.app)
        result = tasks.hold.delay("a")
        journal.wait_for("start", key="a")
        second = worker(APP, pool=pool, concurrency=1)
        first.freeze(main_only=True)
        second.wait_for_log(PARKED)
        assert tasks.unrelated.delay("b").get(timeout=PATIENCE) == "b"
        first.thaw()
        # It has asked again meanwhile, more than once, and went on waiting.
        second.wait_for_log(rf"(?s)(?:{PARKED}.*){{3}}")
        assert len(broker.unacknowledged()) == 1
        journal.record("go", key="a")
        assert result.get(timeout=PATIENCE) == "a"
        second.wait_for_log(DONE)
        broker.wait_until_idle()
        assert len(journal.entries("start", key="a")) == 1
        assert result.state == "SUCCESS"

    def test_runs_once_when_the_originals_worker_is_killed(
        self, worker: StartWorker, load: LoadApp, journal: Journal
    ) -> None:
        first = worker(APP, concurrency=1)
        tasks = load(APP)
        broker = RedisBroker(tasks.app)
        result = tasks.hold_briefly.apply_async(("a",), lock={"ttl": 3.0})
        (start,) = journal.wait_for("start", key="a")
        (tag,) = broker.wait_for_unacknowledged()
        # The first one's prefetch window is full: only the second can receive the copy.
        second = worker(APP, concurrency=1)
        broker.deliver_again(tag)
        second.wait_for_log(PARKED)
        first.kill_all()
        journal.died(start["pid"])
        journal.wait_for("start", count=2, key="a")
        journal.record("go", key="a")
        assert result.get(timeout=PATIENCE) == "a"
        broker.wait_until_idle()
        assert [run.error for run in journal.runs("a")] == ["killed", None]
        assert journal.overlaps("a") == []

    def test_is_not_granted_the_second_place_of_a_limit(
        self, worker: StartWorker, load: LoadApp, journal: Journal
    ) -> None:
        worker(APP, concurrency=1)
        tasks = load(APP)
        broker = RedisBroker(tasks.app)
        result = tasks.hold_one_of_two.delay("a")
        journal.wait_for("start", key="a")
        (tag,) = broker.wait_for_unacknowledged()
        second = worker(APP, concurrency=1)
        broker.deliver_again(tag)
        second.wait_for_log(PARKED)
        other = tasks.hold_one_of_two.delay("a")
        journal.wait_for("start", count=2, key="a")
        journal.record("go", key="a")
        assert [each.get(timeout=PATIENCE) for each in (result, other)] == ["a", "a"]
        broker.wait_until_idle()
        assert sorted(str(run.id) for run in journal.runs("a")) == sorted([result.id, other.id])

    def test_waits_in_place_where_the_task_has_a_request_class_of_its_own(
        self, worker: StartWorker, load: LoadApp, journal: Journal
    ) -> None:
        first = worker(APP, concurrency=1)
        tasks = load(APP)
        broker = RedisBroker(tasks.app)
        result = tasks.hold_with_own_request.delay("a")
        journal.wait_for("start", key="a")
        second = worker(APP, concurrency=1)
        # Nobody refreshes its visibility.
        second.wait_for_log(rf"\[{result.id}\] received")
        journal.record("go", key="a")
        assert result.get(timeout=PATIENCE) == "a"
        second.wait_for_log(DONE)
        broker.wait_until_idle()
        assert len(journal.entries("start", key="a")) == 1
        assert first.alive

    def test_is_dropped_if_the_original_was_acknowledged_early(
        self, worker: StartWorker, load: LoadApp, journal: Journal
    ) -> None:
        tasks = load(APP)
        result = tasks.hold_early.delay("a")
        RedisBroker(tasks.app, "second").deliver(RedisBroker(tasks.app).copy_of_waiting())
        worker(APP, concurrency=1)
        journal.wait_for("start", key="a")
        second = worker(APP, concurrency=1, queues=["second"])
        second.wait_for_log(r"this copy is dropped")
        RedisBroker(tasks.app, "second").wait_until_idle()
        journal.record("go", key="a")
        assert result.get(timeout=PATIENCE) == "a"
        assert len(journal.entries("start", key="a")) == 1


class TestAMessageThatAnotherWorkerHasFinishedMeanwhile:
    """It was in reserve when its worker lost sight of the broker. Nothing in it says that it has a copy."""

    def test_is_not_run_by_a_worker_that_was_stopped(
        self, worker: StartWorker, load: LoadApp, journal: Journal
    ) -> None:
        reserve = {"worker_prefetch_multiplier": 4}
        first = worker(APP, concurrency=1, conf=reserve)
        tasks = load(APP)
        running = tasks.hold.delay("running")
        journal.wait_for("start", key="running")
        reserved = tasks.last.delay("reserved", 0.0)
        first.wait_for_log(rf"\[{reserved.id}\] received")
        first.freeze(main_only=True)
        second = worker(APP, concurrency=2)
        assert reserved.get(timeout=PATIENCE) == "reserved"
        second.wait_for_log(PARKED)
        first.thaw()
        journal.record("go", key="running")
        assert running.get(timeout=PATIENCE) == "running"
        first.wait_for_log(rf"\[{reserved.id}\]: {DONE}")
        RedisBroker(tasks.app).wait_until_idle()
        assert len(journal.entries("start", key="reserved")) == 1
        assert len(journal.entries("start", key="running")) == 1

    def test_is_not_run_by_a_thread_pool_that_still_has_it_in_line(
        self,
        worker: StartWorker,
        load: LoadApp,
        journal: Journal,
        settings: Settings,
        databases: Databases,
        proxy: Callable[[RedisServer], Proxy],
    ) -> None:
        between = proxy(databases.server)
        first = worker(
            APP,
            settings.with_broker(between.url(settings.broker)),
            pool="threads",
            concurrency=1,
            # Two are all it may hold. With room for more, Celery 5.7 would be reading from the broker, and would not
            # survive that it is refused the connection.
            conf={"worker_prefetch_multiplier": 2},
            may_log=["Connection to broker lost", "Error 111", "Couldn't ack"],
        )
        tasks = load(APP)
        running = tasks.hold.delay("running")
        journal.wait_for("start", key="running")
        reserved = tasks.last.delay("reserved", 0.0)
        first.wait_for_log(rf"\[{reserved.id}\] received")
        between.refuse()
        between.cut()
        second = worker(APP, concurrency=2)
        assert reserved.get(timeout=PATIENCE) == "reserved"
        second.wait_for_log(PARKED)
        journal.record("go", key="running")
        first.wait_for_log(rf"\[{reserved.id}\]: {DONE}")
        assert running.get(timeout=PATIENCE) == "running"
        RedisBroker(tasks.app).wait_until_idle()
        assert len(journal.entries("start", key="reserved")) == 1
        assert len(journal.entries("start", key="running")) == 1
