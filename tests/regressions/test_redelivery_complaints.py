"""What users of other libraries complain of: messages that are delivered again, and replies that are lost.

The numbers are those of the project's survey of such complaints; accidents are those of comparable systems.
"""

from __future__ import annotations

from typing import Any

import pytest

from celery_distlock import Lock
from tests.support.journal import Journal
from tests.support.proxy import Proxy
from tests.support.servers import Databases
from tests.support.waiting import eventually
from tests.support.workers import LoadApp, Settings, StartWorker
from tests.worker.behind import assert_nothing_left, records_in
from tests.worker.faults import PATIENCE, RedisBroker, received

APP = "tests.worker.apps.faults_redelivery"


@pytest.mark.parametrize(("name", "starts"), [("hold_bare", 4), ("hold", 1)])
def test_complaint_2_one_id_delivered_four_times_runs_four_times_at_once(
    name: str, starts: int, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    """celery #5935, kombu #337."""
    node = worker(APP, concurrency=4)
    tasks = load(APP)
    broker = RedisBroker(tasks.app)
    result = getattr(tasks, name).delay("a")
    journal.wait_for("start", key="a")
    for again in range(3):
        broker.deliver_again(*broker.wait_for_unacknowledged())
        eventually(lambda count=again + 2: received(result.id, [node]) == count, PATIENCE, "another delivery")
        if starts > 1:
            journal.wait_for("start", count=again + 2, key="a")
    journal.record("go", key="a")
    assert result.get(timeout=PATIENCE) == "a"
    broker.wait_until_idle()
    assert len(journal.entries("start", key="a")) == starts
    assert bool(journal.overlaps("a")) is (starts > 1)
    assert_nothing_left(databases.locks)


@pytest.mark.parametrize(("name", "starts"), [pytest.param("hold_bare", 2, marks=pytest.mark.slow), ("hold", 1)])
def test_complaint_2_a_worker_that_dies_before_it_acknowledges_has_the_work_done_twice(
    name: str, starts: int, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    first = worker(APP, concurrency=1)
    tasks = load(APP)
    result = getattr(tasks, name).delay("a")
    journal.wait_for("start", key="a")
    first.freeze(main_only=True)
    journal.record("go", key="a")
    assert result.get(timeout=PATIENCE) == "a"
    if starts == 1:
        eventually(lambda: records_in(databases.locks), PATIENCE, "a completion record")
    first.kill_all()
    second = worker(APP, concurrency=1)
    second.wait_for_log(rf"\[{result.id}\] received")
    RedisBroker(tasks.app).wait_until_idle()
    assert len(journal.entries("start", key="a")) == starts


def test_accident_a_release_whose_reply_is_lost_keeps_the_key_until_the_ttl(
    worker: StartWorker, load: LoadApp, journal: Journal, settings: Settings, databases: Databases, proxy: Any
) -> None:
    between: Proxy = proxy(databases.server)
    through = Settings(settings.broker, settings.results, between.url(settings.locks), settings.journal)
    node = worker(APP, through, concurrency=1)
    tasks = load(APP)
    # The server must know the script that it is to execute.
    tasks.last.delay("before", 0.0).get(timeout=PATIENCE)
    result = tasks.hold_early.apply_async(("a",), lock={"ttl": 600.0})
    journal.wait_for("start", key="a")
    # The first try is executed and its reply is lost, the second one never arrives.
    faults = [
        between.swallow_reply(lambda data: b":h:a\r\n" in data),
        between.swallow_request(lambda data: b":h:a\r\n" in data),
    ]
    node.freeze(main_only=True)
    journal.record("go", key="a")
    assert result.get(timeout=PATIENCE) == "a"
    for fault in faults:
        fault.wait()
    node.wait_for_log(r"lock 'a' will be released later")
    lock = Lock("a", app=tasks.app, ttl=600.0)
    assert lock.acquire(timeout=5.0)
    fence = lock.fence
    # The release is told again in the background, now that the key is somebody else's.
    node.thaw()
    node.stop_warm()
    assert [holder["fence"] for holder in lock.holders()] == [fence]
    lock.release()
    assert_nothing_left(databases.locks)
