"""A worker that dies between the work and the late acknowledgement does not have the work done twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import celery
import pytest
import redis
from celery import states
from celery.result import AsyncResult

from tests.support.apps import close_app, load_app
from tests.support.journal import Journal
from tests.support.redis_server import RedisServer
from tests.support.servers import Databases, fresh_databases
from tests.support.waiting import eventually
from tests.support.workers import LoadApp, Settings, StartWorker, Worker
from tests.worker.behind import assert_nothing_left, behind, left_in, records_in
from tests.worker.faults import PATIENCE, RedisBroker, received

pytestmark = [pytest.mark.xdist_group("completion"), pytest.mark.also_in_zookeeper]

APP = "tests.worker.apps.faults_redelivery"

DONE = "this delivery has already done its work"

#: What ends with a completion record: the task's name, and the state it leaves.
COMPLETED = {
    "hold": states.SUCCESS,
    "fail": states.FAILURE,
    "retry_once": states.RETRY,
    "ignore": states.STARTED,
}
#: What does not, and must run again: to be put back, to be rejected, because it was killed in mid-body.
UNFINISHED = {
    "put_back": states.SUCCESS,
    "fail_unacknowledged": states.SUCCESS,
    # Celery before 5.7 stores nothing for what is rejected.
    "drop": states.FAILURE if celery.VERSION >= (5, 7) else states.STARTED,
    "hold_briefly": states.SUCCESS,
}
# What the logs of these endings show.
EXPECTED = [r"celery\.exceptions\.Reject"]


@dataclass
class Aftermath:
    """A worker has died after these endings, before it could acknowledge any; another one has got the messages."""

    journal: Journal
    survivor: Worker
    results: dict[str, AsyncResult]
    #: What was stored when the first worker died.
    stored: dict[str, dict[str, Any]]
    #: The task names of the completion records it left.
    records: list[str]
    #: Tasks that were started again, oldest first, by name.
    again: list[dict[str, Any]]


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Aftermath]:
    """Let every ending happen in a worker whose main process is stopped; kill it; let another worker take over."""
    folder = tmp_path_factory.mktemp("completion")
    databases = fresh_databases(redis_server)
    journal = Journal(folder / "journal.jsonl")
    # With track_started, Celery's tracer stores STARTED for whatever is delivered.
    conf = {"task_track_started": True}
    settings = Settings(databases.broker, databases.results, databases.locks, journal.path, conf)
    tasks = load_app(APP, settings.env)
    broker = RedisBroker(tasks.app)
    names = [*COMPLETED, *UNFINISHED]
    first = Worker(APP, settings, folder / "first.log", name="first", concurrency=len(names), may_log=EXPECTED)
    survivor = None
    try:
        first.wait_ready()
        results = {name: getattr(tasks, name).delay(name) for name in names}
        starts = {name: journal.wait_for("start", key=name)[0] for name in names}
        broker.wait_for_unacknowledged(len(names))
        first.freeze(main_only=True)
        # One of them is killed in mid-body.
        assert names[-1] == "hold_briefly"
        for name in names[:-1]:
            journal.record("go", key=name)
            journal.wait_for("end", key=name)
        eventually(lambda: len(records_in(databases.locks)) == len(COMPLETED), PATIENCE, "the completion records")
        # The release comes after the result, and after it everything is said.
        with behind(databases.locks) as store:
            eventually(lambda: store.held() == ["hold_briefly"], PATIENCE, "the releases")
            records = store.records()
        stored = {name: tasks.app.backend.get_task_meta(result.id, cache=False) for name, result in results.items()}
        first.kill_all()
        journal.died(starts["hold_briefly"]["pid"])
        already = len(journal.entries("start"))

        for name in UNFINISHED:
            journal.record("enough", key=name)
        journal.record("go", key="hold_briefly")
        survivor = Worker(
            APP, settings, folder / "survivor.log", name="survivor", concurrency=len(names), may_log=EXPECTED
        ).wait_ready()
        broker.wait_until_idle()
        assert not first.complaints()
        assert not survivor.complaints()
        yield Aftermath(journal, survivor, results, stored, records, journal.entries("start")[already:])
    finally:
        for worker in filter(None, (first, survivor)):
            worker.end()
        close_app(tasks.app)


@pytest.mark.parametrize("name", COMPLETED)
def test_what_had_ended_left_a_record(name: str, aftermath: Aftermath) -> None:
    assert aftermath.records.count(name) == 1
    assert len(aftermath.records) == len(COMPLETED)


@pytest.mark.parametrize("name", COMPLETED)
def test_what_had_ended_is_acknowledged_and_not_run_again(name: str, aftermath: Aftermath) -> None:
    task_id = aftermath.results[name].id
    # Delivered again: else there would be nothing to see.
    assert received(task_id, [aftermath.survivor]) >= 1
    assert f"[{task_id}]: {DONE}" in aftermath.survivor.log
    assert len(aftermath.journal.entries("start", key=name, retries=0)) == 1


@pytest.mark.parametrize("name", [name for name in COMPLETED if name != "retry_once"])
def test_the_result_of_what_had_ended_is_untouched(name: str, aftermath: Aftermath) -> None:
    assert aftermath.stored[name]["status"] == COMPLETED[name]
    result = aftermath.results[name]
    now = result.backend.get_task_meta(result.id, cache=False)
    assert {field: str(value) for field, value in now.items()} == {
        field: str(value) for field, value in aftermath.stored[name].items()
    }


def test_a_retry_published_before_the_death_runs_once(aftermath: Aftermath) -> None:
    assert aftermath.stored["retry_once"]["status"] == states.RETRY
    starts = aftermath.journal.entries("start", key="retry_once")
    assert [start["retries"] for start in starts] == [0, 1]
    assert aftermath.results["retry_once"].get(timeout=PATIENCE) == "retry_once"


@pytest.mark.parametrize("name", UNFINISHED)
def test_what_had_not_ended_runs_again_once(name: str, aftermath: Aftermath) -> None:
    assert [entry["key"] for entry in aftermath.again].count(name) == 1
    result = aftermath.results[name]
    eventually(lambda: result.state == UNFINISHED[name], PATIENCE, UNFINISHED[name])
    assert aftermath.journal.overlaps(name) == []


class TestARecord:
    @pytest.mark.locks_in_redis
    def test_is_erased_soon_after_the_acknowledgement(
        self, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
    ) -> None:
        node = worker(APP, concurrency=1)
        tasks = load(APP)
        result = tasks.hold.delay("a")
        journal.wait_for("start", key="a")
        node.freeze(main_only=True)
        journal.record("go", key="a")
        assert result.get(timeout=PATIENCE) == "a"
        # It was there: what is seen below is an erasure.
        eventually(lambda: records_in(databases.locks), PATIENCE, "a completion record")
        node.thaw()
        RedisBroker(tasks.app).wait_until_idle()
        assert_nothing_left(databases.locks)

    def test_is_erased_by_a_warm_shutdown(
        self, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
    ) -> None:
        node = worker(APP, concurrency=1)
        tasks = load(APP)
        journal.record("go", key="a")
        assert tasks.hold.delay("a").get(timeout=PATIENCE) == "a"
        node.stop_warm()
        assert left_in(databases.locks) == []

    @pytest.mark.locks_in_redis
    def test_stays_while_copies_of_the_message_may_be_about(
        self, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
    ) -> None:
        first = worker(APP, concurrency=1)
        tasks = load(APP)
        broker = RedisBroker(tasks.app)
        result = tasks.hold.delay("a")
        journal.wait_for("start", key="a")
        broker.wait_for_unacknowledged()
        first.freeze(main_only=True)
        # It gives the message back to its queue, and does not consume it: a copy is about that nobody looks at.
        passer_by = worker(APP, concurrency=1, queues=["other"])
        eventually(lambda: not broker.unacknowledged(), PATIENCE, "a message out of sight for too long")
        passer_by.stop_warm()
        journal.record("go", key="a")
        assert result.get(timeout=PATIENCE) == "a"
        first.thaw()
        first.wait_for_log(DONE)
        broker.wait_until_idle()
        assert len(journal.entries("start", key="a")) == 1
        # Another task's record is erased, which is no earlier than this one's would have been.
        tasks.last.delay("b", 0.0).get(timeout=PATIENCE)
        broker.wait_until_idle()
        eventually(lambda: records_in(databases.locks) == ["a"], PATIENCE, "an erasure of one record")
        with redis.Redis.from_url(databases.locks) as client:
            [record] = client.scan_iter("*:c:*", count=1000)
            # Longer than any redelivery takes, though the visibility timeout is two seconds.
            assert client.pttl(record) > 3_600_000
