"""What the tests of parked tasks look at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from tests.support.journal import Journal
from tests.support.servers import Databases
from tests.support.waiting import eventually
from tests.support.workers import POOLS, Pool, Worker
from tests.worker.behind import RECORDS, TOMBSTONES, assert_nothing_left, behind
from tests.worker.faults import PATIENCE

__all__ = ["all_is_well", "consume_also", "in_line", "places", "some"]


def some(*every_run: Pool) -> Any:
    """Repeat a test on all pools: on these in every run."""
    return pytest.mark.parametrize(
        "pool", [pytest.param(pool, marks=[] if pool in every_run else [pytest.mark.slow]) for pool in POOLS]
    )


def places(tasks: Any, workers: Iterable[Worker]) -> list[dict[str, Any]]:
    """Return what these workers keep for locked tasks."""
    names = [f"{worker.name}@" for worker in workers]
    answers = tasks.app.control.inspect(timeout=PATIENCE, limit=len(names))._request("places") or {}
    return [answer for name, answer in answers.items() if name.startswith(tuple(names))]


def in_line(journal: Journal, results: Sequence[Any], databases: Databases, key: str = "a") -> None:
    """Wait until these tasks are parked, and stand in the store's line."""
    for result in results:
        journal.wait_for("parked", id=result.id)
    with behind(databases.locks) as store:
        eventually(lambda: store.waiting(key) >= len(results), PATIENCE, f"{len(results)} in line")


def consume_also(tasks: Any, worker: Worker, queue: str) -> None:
    """Have a worker consume one more queue."""
    host = worker.wait_for_log(rf"({worker.name}@\S+) ready\.")[1]
    assert tasks.app.control.add_consumer(queue, destination=[host], reply=True, timeout=PATIENCE, limit=1)


def all_is_well(
    tasks: Any,
    results: Sequence[Any],
    journal: Journal,
    databases: Databases,
    workers: Sequence[Worker],
    *,
    runs_again: Iterable[Any] = (),
    limit: int = 1,
    patience: float = PATIENCE,
) -> None:
    """Fail unless each task has run to its end once, none beside another, and nothing is left of their waiting.

    Arguments:
        workers: those that are still alive.
        runs_again: results of tasks that were killed in mid-run; they began more than once.
        limit: how many may run at once.
        patience: seconds that each result may take.
    """
    for result in results:
        result.get(timeout=patience)
    twice = {result.id for result in runs_again}
    runs = journal.runs()
    for result in results:
        mine = [run for run in runs if run.id == result.id]
        done = [run for run in mine if run.error is None and run.end != math.inf]
        assert len(done) == 1, f"{result.id}: {mine}"
        assert result.id in twice or len(mine) == 1, f"{result.id}: {mine}"
    for run in runs:
        at_once = [other for other in runs if other.key == run.key and other.start <= run.start < other.end]
        assert len(at_once) <= limit, at_once
    idle = [{"cells": 0, "parked": 0, "called": 0, "climbers": 0}] * len(workers)
    eventually(lambda: places(tasks, workers) == idle, PATIENCE, f"idle workers: {places(tasks, workers)}")
    # Tombstones and completion records stay for their time.
    assert_nothing_left(databases.locks, but=[TOMBSTONES, RECORDS], within=4.0)
