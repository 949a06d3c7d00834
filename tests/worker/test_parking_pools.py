"""``lock_on_contention="wait"`` on every pool, broker and kind of queue."""

from __future__ import annotations

import pytest

from tests.support.journal import Journal
from tests.support.workers import POOLS, LoadApp, Pool, StartWorker
from tests.worker.faults import PATIENCE

APP = "tests.worker.apps.parking_faults"


@pytest.mark.parametrize("pool", POOLS)
def test_a_saturated_worker_does_not_hold_up_those_who_wait_elsewhere(
    pool: Pool, worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    slots = 1 if pool == "solo" else 2
    worker(APP, pool=pool, concurrency=slots, queues=["first"])
    worker(APP, pool=pool, concurrency=slots, queues=["second"])
    worker(APP, concurrency=1, queues=["third"])
    tasks = load(APP)
    holder = tasks.hold.apply_async(("a",), queue="third")
    journal.wait_for("start", key="a")
    # In this order in line.
    waiters = []
    for queue in ("first", "first", "second", "first", "second", "second"):
        waiters.append((queue, tasks.work.apply_async(("a", 0.01), queue=queue)))
        journal.wait_for("parked", count=len(waiters), key="a")
    for number in range(slots):
        tasks.busy.apply_async((f"slot-{number}",), queue="first")
        journal.wait_for("start", key=f"slot-{number}")
    (entry,) = [journal.record("go", key="a")] and journal.wait_for("end", key="a")
    elsewhere = [result for queue, result in waiters if queue == "second"]
    for result in elsewhere:
        result.get(timeout=PATIENCE)
    runs = journal.runs("a")
    took = max(run.end for run in runs) - entry["t"]
    print(f"{pool}: {took:.3f} s")
    assert {run.id for run in runs} == {holder.id, *(result.id for result in elsewhere)}
    for number in range(slots):
        journal.record("go", key=f"slot-{number}")
    for _, result in waiters:
        result.get(timeout=PATIENCE)
    assert journal.overlaps("a") == []
    assert took < 1.0
