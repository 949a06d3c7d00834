"""A lease that is lost is noticed, by the executor or for it, and its task never counts as a success."""

from __future__ import annotations

from typing import Any

import pytest

from celery_distlock import LockLost
from celery_distlock.lease import Lease
from celery_distlock.stores.of_app import store_of
from tests.support.journal import Entry, Journal
from tests.support.workers import POOLS, LoadApp, Pool, StartWorker
from tests.worker.watching import Death, assert_free_at_once, lock_of

ENDINGS = "tests.worker.apps.endings"
MAY_LOG = ["LockLost", "WorkerLostError"]
#: Seconds. A third of it is the interval in which the warden looks at a lease; the rest is for a busy machine.
TTL = 2.0


def _take_away(tasks: Any, start: Entry) -> None:
    """Release a lease over its holder's head."""
    assert store_of(tasks.app).release([Lease.unknown(start["key"], start["owner"], TTL)]) == [True]


def _started(journal: Journal, key: str) -> Entry:
    (start,) = journal.wait_for("start", key=key)
    return start


def test_a_child_that_has_lost_its_lock_is_aborted_and_the_next_task_runs(
    worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    node = worker(ENDINGS, conf={"distlock_ttl": TTL}, may_log=MAY_LOG)
    tasks = load(ENDINGS)
    result = tasks.hold.delay("a")
    other = tasks.hold.delay("b")
    start, bystander = _started(journal, "a"), _started(journal, "b")
    death = Death(start["pid"])
    _take_away(tasks, start)
    # The next look at the lease is a third of its ttl away at most.
    died = death.wait(timeout=TTL)
    with pytest.raises(LockLost, match="given away"):
        result.get(timeout=20)
    assert result.state == "FAILURE"
    node.wait_for_log("aborted: lock 'a'")
    (lost,) = journal.entries("lost")
    assert (lost["task_id"], lost["key"], lost["owner"], lost["fence"]) == (
        result.id,
        "a",
        start["owner"],
        start["fence"],
    )
    assert (lost["pid"], lost["t"] <= died) == (node.pid, True)
    assert tasks.succeed.delay("a").get(timeout=20) == "a"
    # Nobody else was hurt.
    journal.record("go", key="b")
    assert other.get(timeout=20) == "b"
    assert [run.pid for run in journal.runs("b")] == [bystander["pid"]]


def test_a_task_that_only_wants_to_be_warned_of_a_loss_runs_to_its_end(
    worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    node = worker(ENDINGS, conf={"distlock_ttl": TTL})
    tasks = load(ENDINGS)
    result = tasks.hold_although_lost.delay("a")
    _take_away(tasks, _started(journal, "a"))
    journal.wait_for("lost", key="a")
    journal.record("go", key="a, although lost")
    assert result.get(timeout=20) == "a"
    node.wait_for_log("ended without being sure of its lock 'a'")
    assert_free_at_once(tasks, "a")


@pytest.mark.parametrize("pool", POOLS)
def test_check_raises_in_the_body_that_has_lost_its_lock_and_one_that_never_checks_ends_as_lost(
    pool: Pool, worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    # A body that checks must not see its deadline pass before the warden has looked.
    worker(ENDINGS, pool=pool, conf={"distlock_ttl": 2 * TTL}, may_log=MAY_LOG)
    tasks = load(ENDINGS)
    # Aborting would be quicker than the body.
    options = {"on_lost": "warn"} if pool == "prefork" else None
    checking = tasks.hold_and_check.apply_async(("a",), lock=options)
    _take_away(tasks, _started(journal, "a"))
    with pytest.raises(LockLost, match="given away"):
        checking.get(timeout=20)
    assert [run.error for run in journal.runs("a")] == ["LockLost"]
    assert_free_at_once(tasks, "a")
    if pool == "prefork":
        # There it is aborted instead.
        return
    careless = tasks.hold.delay("b")
    _take_away(tasks, _started(journal, "b"))
    journal.wait_for("lost", key="b")
    journal.record("go", key="b")
    with pytest.raises(LockLost, match="given away"):
        careless.get(timeout=20)
    assert [run.error for run in journal.runs("b")] == [None]
    assert tasks.succeed.delay("b").get(timeout=20) == "b"


def test_a_worker_that_was_stopped_past_its_lease_does_not_succeed_beside_its_successor(
    worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    first = worker(ENDINGS, conf={"distlock_ttl": TTL}, queues=["first"], may_log=MAY_LOG)
    worker(ENDINGS, conf={"distlock_ttl": TTL}, queues=["second"])
    tasks = load(ENDINGS)
    # Aborted when it wakes, or stopped by its own check.
    stopped = {
        "careless": tasks.hold.apply_async(("careless",), queue="first"),
        "careful": tasks.hold_and_check.apply_async(("careful",), queue="first"),
    }
    starts = {key: _started(journal, key) for key in stopped}
    first.freeze()
    successors = {key: tasks.hold.apply_async((key,), queue="second") for key in stopped}
    seconds = {key: journal.wait_for("start", count=2, key=key)[1] for key in stopped}
    first.thaw()
    for key, result in stopped.items():
        with pytest.raises(LockLost):
            result.get(timeout=20)
        # The successor's lock has not been touched.
        (holder,) = lock_of(tasks, key).holders()
        assert holder["owner"] == seconds[key]["owner"]
        assert seconds[key]["fence"] > starts[key]["fence"]
    for key, result in successors.items():
        journal.record("go", key=key)
        assert result.get(timeout=20) == key
        assert_free_at_once(tasks, key)


@pytest.mark.locks_in_redis
def test_a_main_process_that_was_stopped_past_its_lease_stops_its_child_when_it_wakes(
    worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    first = worker(ENDINGS, conf={"distlock_ttl": TTL}, queues=["first"], may_log=MAY_LOG)
    worker(ENDINGS, conf={"distlock_ttl": TTL}, queues=["second"])
    tasks = load(ENDINGS)
    stopped = tasks.hold.apply_async(("a",), queue="first")
    start = _started(journal, "a")
    death = Death(start["pid"])
    first.freeze(main_only=True)
    successor = tasks.succeed.apply_async(("a",), queue="second")
    assert successor.get(timeout=20) == "a"
    assert not death.happened
    first.thaw()
    death.wait(timeout=5)
    with pytest.raises(LockLost):
        stopped.get(timeout=20)
    assert_free_at_once(tasks, "a")


@pytest.mark.locks_in_redis
def test_a_child_whose_main_process_is_stopped_finds_out_by_itself(
    worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    first = worker(ENDINGS, conf={"distlock_ttl": TTL}, may_log=MAY_LOG)
    tasks = load(ENDINGS)
    # One body checks, the other ends after its lease was given to somebody else.
    checking, ending = tasks.hold_and_check.delay("a"), tasks.hold.delay("b")
    _started(journal, "a")
    _started(journal, "b")
    first.freeze(main_only=True)
    (end,) = journal.wait_for("end", key="a")
    assert end["error"] == "LockLost"
    lock = lock_of(tasks, "b")
    assert lock.acquire(timeout=5)
    journal.record("go", key="b")
    journal.wait_for("end", key="b")
    # Both results are stored by the children, while the main process sleeps.
    for result in (checking, ending):
        with pytest.raises(LockLost):
            result.get(timeout=10)
    lock.release()
    first.thaw()
    assert tasks.succeed.delay("a").get(timeout=20) == "a"


def test_a_success_that_was_stored_before_the_abort_stays_one(
    worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    node = worker(ENDINGS, conf={"distlock_ttl": TTL}, may_log=MAY_LOG)
    tasks = load(ENDINGS)
    result = tasks.linger_after_success.delay("a")
    start = _started(journal, "a")
    journal.wait_for("stored", key="a")
    assert result.state == "SUCCESS"
    death = Death(start["pid"])
    _take_away(tasks, start)
    # It still held its lock, so it is killed; but its work was done and is known to be.
    death.wait(timeout=TTL)
    node.wait_for_log("had succeeded when it was aborted")
    assert tasks.succeed.delay("a").get(timeout=20) == "a"
    assert result.state == "SUCCESS"
