"""However a task ends, on whatever pool, its key is free at once and the store holds nothing of it."""

from __future__ import annotations

from typing import Any

import celery
import pytest
from billiard.exceptions import WorkerLostError
from celery.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import EncodeError

from tests.support.journal import Journal
from tests.support.servers import Databases
from tests.support.workers import POOLS, LoadApp, Pool, StartWorker
from tests.worker.behind import assert_nothing_left
from tests.worker.watching import assert_free_at_once

pytestmark = pytest.mark.also_in_zookeeper

ENDINGS = "tests.worker.apps.endings"

#: Tasks and what their result is: a value, an exception, or None where there is none to wait for.
EVERYWHERE: dict[str, object] = {
    "succeed": "succeed",
    "fail": ValueError,
    "retry_once": 1,
    "autoretry_once": 1,
    "ignore": None,
    "reject": None,
    "succeed_late": "succeed_late",
    "fail_late": ValueError,
    "return_what_cannot_be_stored": EncodeError,
    "call_another": "call_another-inner call_another",
}


def _end(tasks: Any, name: str, expected: object, journal: Journal) -> None:
    result = getattr(tasks, name).delay(name)
    if isinstance(expected, type) and issubclass(expected, BaseException):
        with pytest.raises(expected):
            result.get(timeout=20)
    elif expected is None:
        journal.wait_for("end", key=name)
    else:
        assert result.get(timeout=20) == expected


def _every_grant_was_told_of_and_given_back(journal: Journal) -> None:
    """Compare what the signals said with what the bodies saw of their locks."""
    outer = {(run.key, run.fence) for run in journal.runs()}
    assert {key for key, _ in outer} >= set(EVERYWHERE)
    told: dict[str, set[tuple[str, int]]] = {"acquired": set(), "released": set()}
    for name, seen in told.items():
        # The key is free a moment before its release is told of.
        entries = journal.wait_for(name, count=len(outer))
        seen |= {(entry["key"], entry["fence"]) for entry in entries}
        assert len(seen) == len(entries), f"told twice of one grant: {entries}"
    assert told["released"] == told["acquired"] == outer


@pytest.mark.parametrize("pool", POOLS)
def test_every_ending_frees_the_key_at_once(
    pool: Pool, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    node = worker(
        ENDINGS, pool=pool, may_log=["Reject", "EncodeError", "SystemExit", "WorkerLostError", "ExceptionInfo"]
    )
    tasks = load(ENDINGS)
    for name, expected in EVERYWHERE.items():
        _end(tasks, name, expected, journal)
        assert_free_at_once(tasks, name)
    _every_grant_was_told_of_and_given_back(journal)
    # Last, because Celery's solo worker itself ends then; only prefork stores a result, and only since Celery 5.7.
    result = tasks.exit_process.delay("exit")
    (end,) = journal.wait_for("end", key="exit")
    assert end["error"] == "SystemExit"
    assert_free_at_once(tasks, "exit")
    if pool == "prefork" and celery.VERSION >= (5, 7):
        with pytest.raises(WorkerLostError):
            result.get(timeout=20)
    if pool == "solo":
        node.wait_stopped()
    else:
        assert tasks.succeed.delay("exit").get(timeout=20) == "exit"
    assert_nothing_left(databases.locks)


def test_a_soft_time_limit_frees_the_key_at_once(
    worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    worker(ENDINGS)
    tasks = load(ENDINGS)
    with pytest.raises(SoftTimeLimitExceeded):
        tasks.exceed_soft_limit.delay("a").get(timeout=20)
    assert_free_at_once(tasks, "a")
    assert [run.error for run in journal.runs("a")] == ["SoftTimeLimitExceeded"]
    assert_nothing_left(databases.locks)


@pytest.mark.parametrize("pool", ["gevent", pytest.param("eventlet", marks=pytest.mark.slow)])
def test_a_terminated_greenlet_frees_the_key_at_once(
    pool: Pool, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    worker(ENDINGS, pool=pool, may_log=["Greenlet", "Terminated", "ExceptionInfo"])
    tasks = load(ENDINGS)
    result = tasks.hold.delay("a")
    journal.wait_for("start", key="a")
    tasks.app.control.revoke(result.id, terminate=True)
    (end,) = journal.wait_for("end", key="a")
    assert end["error"] == "GreenletExit"
    assert_free_at_once(tasks, "a")
    assert tasks.succeed.delay("a").get(timeout=20) == "a"
    assert_nothing_left(databases.locks)


def test_a_time_limit_of_the_gevent_pool_frees_the_key_at_once(
    worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    worker(ENDINGS, pool="gevent", may_log=["TimeLimitExceeded", "Hard time limit", "Timeout"])
    tasks = load(ENDINGS)
    tasks.hold.apply_async(("a",), time_limit=1.5)
    journal.wait_for("end", key="a")
    assert_free_at_once(tasks, "a")
    assert tasks.succeed.delay("a").get(timeout=20) == "a"
    assert_nothing_left(databases.locks)
