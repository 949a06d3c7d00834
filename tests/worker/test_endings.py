"""However a task ends, on whatever pool, its key is free at once and the store holds nothing of it."""

from __future__ import annotations

from typing import Any

import pytest
from billiard.exceptions import WorkerLostError
from celery.exceptions import SoftTimeLimitExceeded

from tests.support.journal import Journal
from tests.support.servers import Databases
from tests.support.workers import POOLS, LoadApp, Pool, StartWorker
from tests.worker.watching import assert_free_at_once, assert_nothing_left

ENDINGS = "tests.worker.apps.endings"

#: Tasks and what their result is: a value, an exception, or None where there is none to wait for.
EVERYWHERE: dict[str, object] = {
    "succeed": "succeed",
    "fail": ValueError,
    "retry_once": 1,
    "autoretry_once": 1,
    "ignore": None,
    "reject": None,
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


@pytest.mark.parametrize("pool", POOLS)
def test_every_ending_frees_the_key_at_once(
    pool: Pool, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    worker(ENDINGS, pool=pool, may_log=["Traceback.*Reject", "Reject"])
    tasks = load(ENDINGS)
    for name, expected in EVERYWHERE.items():
        _end(tasks, name, expected, journal)
        assert_free_at_once(tasks, name)
    for name in EVERYWHERE:
        assert journal.entries("acquired", key=name), f"{name} ran without its lock"
    assert_nothing_left(databases.server, databases.locks)


@pytest.mark.parametrize("pool", POOLS)
def test_a_body_that_exits_frees_the_key_at_once(
    pool: Pool, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    node = worker(ENDINGS, pool=pool, may_log=["SystemExit", "WorkerLostError", "ExceptionInfo"])
    tasks = load(ENDINGS)
    result = tasks.exit_process.delay("a")
    journal.wait_for("end", key="a")
    if pool == "prefork":
        # On the other pools Celery leaves the result pending.
        with pytest.raises(WorkerLostError):
            result.get(timeout=20)
    assert_free_at_once(tasks, "a")
    if pool == "solo":
        # Celery itself ends then.
        node.process.wait()
        node = worker(ENDINGS, pool=pool)
    assert tasks.succeed.delay("a").get(timeout=20) == "a"
    assert [run.error for run in journal.runs("a")] == ["SystemExit", None]
    assert_nothing_left(databases.server, databases.locks)


def test_a_soft_time_limit_frees_the_key_at_once(
    worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    worker(ENDINGS)
    tasks = load(ENDINGS)
    with pytest.raises(SoftTimeLimitExceeded):
        tasks.exceed_soft_limit.delay("a").get(timeout=20)
    assert_free_at_once(tasks, "a")
    assert [run.error for run in journal.runs("a")] == ["SoftTimeLimitExceeded"]
    assert_nothing_left(databases.server, databases.locks)
