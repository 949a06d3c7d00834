"""Workers whose locks live in ZooKeeper: what is different from others. ``--locks zookeeper`` runs all the rest."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.support.journal import Journal
from tests.support.waiting import eventually
from tests.support.workers import LoadApp, Settings, StartWorker
from tests.support.zookeeper_server import ZooKeeperServer
from tests.worker.watching import excluded_until_its_end, lock_of

ENDINGS = "tests.worker.apps.endings"
#: Seconds.
SESSION = 2.0


@pytest.fixture
def settings(settings: Settings, zookeeper_url: str) -> Settings:
    """Locks in ZooKeeper."""
    return replace(settings, locks=f"{zookeeper_url}?session_timeout={SESSION}")


def test_a_body_that_keeps_the_gil_longer_than_a_session_keeps_its_lock(
    worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    """The session is the main process's from the first renewal on."""
    worker(ENDINGS)
    tasks = load(ENDINGS)
    result = tasks.keep_the_gil.delay("a", 2.5 * SESSION)
    excluded_until_its_end(tasks, journal, "a")
    assert result.get(timeout=20) == "a"
    assert journal.entries("lost") == journal.entries("unsure") == []


def test_a_killed_childs_lock_is_free_at_once_and_not_after_its_session(
    worker: StartWorker, load: LoadApp, journal: Journal, settings: Settings, zookeeper_url: str
) -> None:
    slow = replace(settings, locks=f"{zookeeper_url}?session_timeout=30")
    worker(ENDINGS, settings=slow, may_log=["WorkerLostError"])
    tasks = load(ENDINGS, slow)
    tasks.last.delay("a", 60.0)
    (start,) = journal.wait_for("start", key="a")
    os.kill(start["pid"], signal.SIGKILL)
    lock = lock_of(tasks, "a")
    assert lock.acquire(timeout=10)
    lock.release()


def test_a_worker_that_stops_leaves_no_session(
    worker: StartWorker, load: LoadApp, private_zookeeper: Callable[..., ZooKeeperServer], settings: Settings
) -> None:
    server = private_zookeeper()
    own = replace(settings, locks=f"{server.fresh_chroot()}?session_timeout=60")
    running = worker(ENDINGS, settings=own)
    tasks = load(ENDINGS, own)
    assert [tasks.succeed.delay(str(number)).get(timeout=20) for number in range(4)]
    assert "zk_global_sessions\t0" not in server.command("mntr", timeout=10)
    running.stop_warm()
    eventually(lambda: "zk_global_sessions\t0" in server.command("mntr", timeout=10), 10, "the end of all sessions")
