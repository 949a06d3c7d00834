"""What the pool never tells: at a reconnect Celery makes it forget jobs, with neither acceptance nor end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import celery
import pytest

from celery_distlock import Lock, LockedTask
from tests.support.journal import Journal
from tests.support.waiting import eventually
from tests.support.workers import LoadApp, StartWorker, Worker
from tests.worker.faults import PATIENCE, RedisBroker, wait_until_accepted

APP = "tests.worker.apps.faults_redelivery"


def cut_twice(node: Worker, broker: RedisBroker) -> None:
    """Lose the broker twice: the first time the waiting job is written to the busy child, the second time forgotten."""
    for count in (1, 2):

        def lost(count: int = count) -> bool:
            # Again, if it was not listening just then, and made a new connection without a word.
            broker.drop_connections()
            return node.log.count("Connection to broker lost") >= count

        eventually(lost, PATIENCE, f"loss number {count}", every=1.0)
        eventually(lambda: len(broker.listening()) > 0, PATIENCE, "the worker to consume again")


@pytest.mark.parametrize("late", [False, True])
def test_a_task_that_waited_in_the_pool_when_the_connection_was_lost_twice_runs(
    late: bool, worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    tasks = load(APP)
    broker = RedisBroker(tasks.app)
    reserve = {"worker_prefetch_multiplier": 4}
    node = worker(APP, concurrency=1, conf=reserve, may_log=["[Cc]onnection", "acknowledge"])
    first = tasks.hold.delay("a")
    journal.wait_for("start", key="a")
    task = tasks.hold if late else tasks.hold_early
    second = task.delay("b")
    node.wait_for_log(second.id)
    cut_twice(node, broker)
    journal.record("go", key="b")
    journal.record("go", key="a")
    assert first.get(timeout=PATIENCE) == "a"
    assert second.get(timeout=PATIENCE) == "b"
    assert len(journal.entries("start", key="a")) == 1
    assert journal.overlaps() == []
    broker.wait_until_idle()


def test_a_second_message_with_the_same_id_is_no_copy_and_runs_too(
    worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    tasks = load(APP)
    worker(APP, concurrency=2)
    tasks.hold_early.apply_async(("a",), task_id="same")
    journal.wait_for("start", key="a")
    tasks.hold_early.apply_async(("b",), task_id="same")
    journal.wait_for("start", key="b")
    journal.record("go", key="a")
    journal.record("go", key="b")
    journal.wait_for("end", key="a")
    journal.wait_for("end", key="b")


@pytest.mark.xfail(
    celery.VERSION < (5, 7), strict=True, reason="Celery before 5.7 forgets time limits, too, at a reconnect"
)
def test_a_copy_behind_a_run_that_hits_its_hard_limit_runs_when_that_is_dead(
    worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    tasks = load(APP)
    broker = RedisBroker(tasks.app)
    node = worker(APP, concurrency=2, may_log=["TimeLimitExceeded", "[Cc]onnection", "acknowledge"])
    result = tasks.hold.apply_async(("a",), time_limit=4.0)
    journal.wait_for("start", key="a")
    wait_until_accepted(tasks.app, result.id)
    broker.drop_connections()
    node.wait_for_log(r"is a copy of a running task; parked")
    # The copy has the same limit; let it end before.
    journal.wait_for("start", count=2, key="a", timeout=PATIENCE)
    journal.record("go", key="a")
    journal.wait_for("end", key="a")
    eventually(lambda: result.state in ("SUCCESS", "FAILURE"), PATIENCE, "a result")
    assert journal.overlaps() == []
    broker.wait_until_idle()


def test_a_time_limit_between_two_lines_leaves_no_lock_behind_that_later_tasks_run_under(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from celery import Celery

    from celery_distlock.held import frames
    from celery_distlock.task import attempt, ending

    app = Celery("striking", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.distlock_url = redis_url

    @app.task(base=LockedTask, lock_key="k", lock_on_contention="fail", shared=False)
    def work() -> str:
        return "done"

    class Strikes(list[Any]):
        """A stack of frames on which a signal strikes right after the push."""

        def append(self, frame: Any) -> None:
            super().append(frame)
            raise TimeoutError("a soft time limit")

    stack = Strikes()
    with monkeypatch.context() as patch:
        for module in (attempt, ending):
            patch.setattr(module, "frames", lambda: stack)
        assert work.apply().state == "FAILURE"
        assert list(stack) == []
    assert frames() == []
    lock = Lock("k", app=app)
    # In another thread: in this one the task would run under it.
    with ThreadPoolExecutor(1) as other:
        assert other.submit(lock.acquire, timeout=PATIENCE).result(PATIENCE)
        assert work.apply().state == "FAILURE"
        other.submit(lock.release).result(PATIENCE)
    assert work.apply().get() == "done"
