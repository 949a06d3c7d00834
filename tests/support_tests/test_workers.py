"""The harness can be trusted: workers and their journal."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from tests.support.apps import close_app
from tests.support.journal import Journal, Run, overlaps, running
from tests.support.process import is_running
from tests.support.redis_server import RedisServer
from tests.support.servers import Databases
from tests.support.waiting import eventually
from tests.support.workers import POOLS, LoadApp, Pool, Settings, StartWorker

BARE = "tests.worker.apps.bare"


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_runs_a_task_on_every_pool(pool: Pool, worker: StartWorker, load: LoadApp, journal: Journal) -> None:
    node = worker(BARE, pool=pool)
    tasks = load(BARE)
    result = tasks.work.delay("a")
    assert result.get(timeout=10) == "a"
    (run,) = journal.runs("a")
    assert run.ended
    assert run.id == result.id
    assert run.pid in (node.children() if pool == "prefork" else [node.pid])


def test_a_warm_stop_lets_the_running_task_end(worker: StartWorker, load: LoadApp, journal: Journal) -> None:
    node = worker(BARE)
    load(BARE).work.delay("a", 0.3)
    journal.wait_for("start", key="a")
    node.stop_warm()
    assert node.process.returncode == 0
    assert [run.error for run in journal.runs() if run.ended] == [None]


def test_a_task_published_with_rabbitmq_as_broker_runs(
    worker: StartWorker, load: LoadApp, settings: Settings, rabbitmq_url: str
) -> None:
    with_rabbitmq = settings.with_broker(rabbitmq_url)
    worker(BARE, with_rabbitmq)
    assert load(BARE, with_rabbitmq).add.delay(1, 2).get(timeout=10) == 3


def test_a_closed_application_keeps_no_connection_to_its_broker(
    load: LoadApp, redis_server: RedisServer, databases: Databases
) -> None:
    # The next test with the same database would be given it, and some of them cut all connections of a server.
    number = databases.broker.rpartition("/")[2]
    with redis_server.client() as client:

        def connections() -> set[str]:
            return {listed["id"] for listed in client.client_list() if listed["db"] == number}

        for _ in range(2):
            others = connections()
            tasks = load(BARE)
            tasks.add.delay(1, 2)
            assert connections() - others
            close_app(tasks.app)
            eventually(lambda others=others: connections() <= others, 5, "their end")  # type: ignore[misc]


def test_a_killed_main_process_takes_its_children_with_it(worker: StartWorker) -> None:
    node = worker(BARE)
    children = [psutil.Process(pid) for pid in node.children()]
    assert len(children) == 2
    node.kill()
    eventually(lambda: not any(is_running(child) for child in children), 10, "the end of the children")


def test_a_killed_run_has_no_end_until_its_death_is_noted(worker: StartWorker, load: LoadApp, journal: Journal) -> None:
    node = worker(BARE)
    load(BARE).work.delay("a", 60)
    (start,) = journal.wait_for("start", key="a")
    node.kill_all()
    assert [run.ended for run in journal.runs()] == [False]
    journal.died(start["pid"])
    assert [run.error for run in journal.runs()] == ["killed"]


def test_a_frozen_worker_runs_nothing_until_it_is_thawed(worker: StartWorker, load: LoadApp) -> None:
    node = worker(BARE)
    node.freeze()
    processes = [psutil.Process(pid) for pid in (node.pid, *node.children())]
    assert len(processes) == 3
    eventually(lambda: all(one.status() == psutil.STATUS_STOPPED for one in processes), 5, "the stop of all three")
    result = load(BARE).add.delay(1, 2)
    assert not result.ready()
    node.thaw()
    assert result.get(timeout=10) == 3


def test_a_traceback_in_the_log_is_a_complaint_unless_it_is_expected(worker: StartWorker, load: LoadApp) -> None:
    node = worker(BARE, may_log=["RuntimeError: on purpose"])
    result = load(BARE).fail.delay()
    with pytest.raises(RuntimeError, match="on purpose"):
        result.get(timeout=10)
    node.wait_for_log("on purpose")
    assert node.complaints() == []
    node.may_log = ("something else",)
    (complaint,) = node.complaints()
    assert "RuntimeError: on purpose" in complaint
    node.may_log = ("RuntimeError",)


def test_a_loaded_application_is_new_each_time(load: LoadApp, settings: Settings) -> None:
    one, two = load(BARE), load(BARE, conf={"task_default_queue": "other"})
    assert one.app is not two.app
    assert one.add.name == two.add.name == f"{BARE}.add"
    assert (one.app.conf.task_default_queue, two.app.conf.task_default_queue) == ("celery", "other")
    assert one.app.conf.broker_url == settings.broker


def test_only_runs_of_one_key_at_one_time_overlap() -> None:
    first, second = Run("a", 1.0, 3.0, 1), Run("a", 2.0, 4.0, 2)
    touching, other = Run("a", 4.0, 5.0, 3), Run("b", 1.0, 5.0, 4)
    assert overlaps([second, touching, other, first]) == [(first, second)]


def test_the_journal_knows_a_run_that_failed(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL", str(journal.path))
    with pytest.raises(ZeroDivisionError), running("a", owner="o", fence=7):
        _ = 1 / 0
    (run,) = journal.runs()
    assert (run.key, run.owner, run.fence, run.error, run.pid) == ("a", "o", 7, "ZeroDivisionError", os.getpid())


def test_waiting_for_what_never_comes_shows_the_journal(journal: Journal, tmp_path: Path) -> None:
    journal.record("hello")
    with pytest.raises(AssertionError, match="hello"):
        journal.wait_for("goodbye", timeout=0.01)
