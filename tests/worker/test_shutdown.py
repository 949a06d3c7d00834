"""Whichever way a worker is shut down, the locks of its tasks are released, and none of our threads stays behind."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.support.journal import Journal
from tests.support.process import Process
from tests.support.servers import Databases
from tests.support.workers import POOLS, LoadApp, Pool, Settings, StartWorker
from tests.worker.behind import assert_nothing_left
from tests.worker.watching import Death, assert_free_at_once, first_grant, lock_of, seen_held

ENDINGS = "tests.worker.apps.endings"
MAY_LOG = ["Terminated", "SystemExit", "WorkerLostError"]
#: Seconds. A third of it is the interval of renewals: the rest is what a busy machine may take for one.
TTL = 3.0
#: Seconds after which somebody else would have been granted what nobody renews.
LONGER = TTL + 1.0


@pytest.mark.parametrize(
    "pool",
    # Celery itself takes five seconds to stop a green pool.
    [pytest.param(pool, marks=pytest.mark.slow) if pool in ("gevent", "eventlet") else pool for pool in POOLS],
)
def test_a_warm_shutdown_lets_the_task_end_and_releases_its_lock(
    pool: Pool, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    node = worker(ENDINGS, pool=pool, conf={"distlock_ttl": TTL})
    tasks = load(ENDINGS)
    result = tasks.hold.delay("a")
    journal.wait_for("start", key="a")
    node.stop_warm(wait=False)
    node.wait_for_log("Warm shutdown")
    # Longer than the ttl: a worker that is shutting down goes on renewing.
    seen_held(lock_of(tasks, "a"), LONGER)
    journal.record("go", key="a")
    node.wait_stopped()
    assert result.get(timeout=5) == "a"
    assert_nothing_left(databases.locks)
    assert_free_at_once(tasks, "a", within=0.0)


def test_a_cold_shutdown_releases_the_lock_once_the_body_is_over(
    worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    node = worker(ENDINGS, may_log=MAY_LOG)
    tasks = load(ENDINGS)
    tasks.hold.delay("a")
    (start,) = journal.wait_for("start", key="a")
    death = Death(start["pid"])
    node.stop_cold(wait=False)
    grant = first_grant(lock_of(tasks, "a"), death)
    node.wait_stopped()
    (run,) = journal.runs("a")
    assert grant.at >= run.end or grant.after
    assert grant.at - death.wait() <= 1.0  # the ttl is thirty seconds
    assert_nothing_left(databases.locks)


@pytest.mark.parametrize(
    "in_time", [pytest.param(True, id="in time"), pytest.param(False, id="too late", marks=pytest.mark.slow)]
)
def test_a_soft_shutdown_keeps_the_lock_while_it_waits_and_releases_it_in_the_end(
    in_time: bool, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    conf = {"worker_soft_shutdown_timeout": 7.0, "distlock_ttl": TTL}
    node = worker(ENDINGS, conf=conf, may_log=MAY_LOG)
    tasks = load(ENDINGS)
    tasks.hold.delay("a")
    journal.wait_for("start", key="a")
    node.stop_cold(wait=False)
    node.wait_for_log("Soft Shutdown|soft shutdown")
    # Longer than the ttl, and not nearly as long as it waits.
    seen_held(lock_of(tasks, "a"), LONGER)
    if in_time:
        journal.record("go", key="a")
    first_grant(lock_of(tasks, "a"))
    (run,) = journal.runs("a")
    assert run.error == (None if in_time else "SystemExit")
    node.wait_stopped()
    assert_nothing_left(databases.locks)


def test_a_child_that_dies_in_a_soft_shutdown_is_noticed_although_the_main_thread_sleeps(
    worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    # Of the length of the ttl: neither ends before the test does.
    node = worker(ENDINGS, conf={"worker_soft_shutdown_timeout": 30.0}, may_log=MAY_LOG)
    tasks = load(ENDINGS)
    tasks.hold.delay("a")
    # Keeps the shutdown waiting.
    tasks.hold.delay("b")
    (start,) = journal.wait_for("start", key="a")
    journal.wait_for("start", key="b")
    node.stop_cold(wait=False)
    node.wait_for_log("Soft Shutdown|soft shutdown")
    death = Death(start["pid"])
    os.kill(start["pid"], signal.SIGKILL)
    grant = first_grant(lock_of(tasks, "a"), death)
    assert grant.after
    assert grant.at - death.wait() <= 1.0  # the ttl is thirty seconds
    journal.record("go", key="b")


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_stopped_worker_leaves_no_thread_of_ours_in_its_process(
    pool: Pool, settings: Settings, journal: Journal, databases: Databases, tmp_path: Path
) -> None:
    script = Process(
        [sys.executable, "-m", "tests.worker.apps.endings_embedded", pool],
        name="embedded workers",
        log=tmp_path / "embedded.log",
        env={**settings.env, "PYTHONWARNINGS": None},
    )
    assert script.wait(60) == 0, script.log
    assert all("distlock-warden" in entry["threads"] for entry in journal.wait_for("working", count=2))
    assert [entry["threads"] for entry in journal.entries("stopped")] == [[], []]
    assert_nothing_left(databases.locks)


@pytest.mark.locks_in_redis
def test_pool_processes_have_no_thread_of_ours(worker: StartWorker, load: LoadApp, journal: Journal) -> None:
    node = worker(ENDINGS)
    tasks = load(ENDINGS)
    for key in ("a", "b"):
        assert tasks.succeed.delay(key).get(timeout=20) == key
    for pid in node.children():
        names = [Path(f"/proc/{pid}/task/{tid.name}/comm").read_text() for tid in Path(f"/proc/{pid}/task").iterdir()]
        assert len(names) == 1, names
