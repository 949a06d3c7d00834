"""``lock_min_hold`` and ``lock_max_hold``: a lock is held for no shorter, and for no longer."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest
from celery import Celery

from celery_distlock import Lock, LockConfigError, LockedTask, LockLost
from celery_distlock.signals import lock_lost
from celery_distlock.stores.base import LockStore
from celery_distlock.stores.of_app import forget_store, use_store
from tests.support.journal import Journal, Run
from tests.support.redis_server import RedisServer
from tests.support.waiting import eventually
from tests.support.workers import LoadApp, Pool, StartWorker
from tests.worker.shared import PATIENCE, Shared, shared_workers

pytestmark = [pytest.mark.xdist_group("holding times"), pytest.mark.also_in_zookeeper]

APP = "tests.worker.apps.holding"
EXPECTED = [r"LockLost", r"ValueError"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Shared]:
    with shared_workers(tmp_path_factory.mktemp("holding"), redis_server, APP, nodes=2, may_log=EXPECTED) as shared:
        yield shared


@pytest.fixture
def key() -> str:
    return f"key-{uuid.uuid4().hex[:8]}"


def asked_for(journal: Journal, run: Run) -> float:
    """Return when a run's lock was asked for: it was granted after that, and a moment before the body began."""
    asked = [entry["t"] for entry in journal.entries("asking", key=run.key, pid=run.pid)]
    return max(t for t in asked if t <= run.start)


def quick() -> None:
    """Do nothing."""


class TestShortest:
    def test_a_job_that_ended_at_once_is_not_run_again_before(self, shared: Shared, key: str) -> None:
        for _ in range(3):
            shared.tasks.quick.delay(key)
        shared.journal.wait_for("end", 3, key=key)
        runs = shared.journal.runs(key)
        assert len(runs) == 3
        for earlier, later in itertools.pairwise(runs):
            assert later.start - asked_for(shared.journal, earlier) >= 0.95

    def test_however_it_ended(self, shared: Shared, key: str) -> None:
        shared.tasks.quick.delay(key, "fail")
        shared.journal.wait_for("end", key=key)
        shared.tasks.plain.delay(key).get(timeout=PATIENCE)
        first, second = shared.journal.runs(key)
        assert second.start - asked_for(shared.journal, first) >= 0.95

    def test_its_own_retry_does_not_wait(self, shared: Shared, key: str) -> None:
        result = shared.tasks.quick.apply_async((key, "retry"), lock={"min_hold": 2 * PATIENCE})
        assert result.get(timeout=PATIENCE) == 1
        assert len(shared.journal.runs(key)) == 2

    def test_the_next_one_starts_as_soon_as_it_may(self, shared: Shared, key: str) -> None:
        shared.tasks.quick.delay(key).get(timeout=PATIENCE)
        (run,) = shared.journal.runs(key)
        with shared.lock(key):
            granted = time.monotonic()
        assert granted - asked_for(shared.journal, run) >= 0.95
        assert granted - run.start < 2.0

    def test_the_store_is_told_to_keep_it_from_the_grant_on(self, shared: Shared, key: str) -> None:
        shared.tasks.quick.apply_async((key,), lock={"min_hold": 30.0}).get(timeout=PATIENCE)
        (run,) = shared.journal.runs(key)

        def rests_until() -> list[float]:
            now = time.monotonic()
            return [now + float(holder["remaining"]) for holder in shared.lock(key).holders() if "resting" in holder]

        (end,) = eventually(rests_until, PATIENCE, "its rest")
        assert end - asked_for(shared.journal, run) >= 30.0 - 0.05
        assert end - run.start < 30.0 + 1.0

    def test_a_call_may_have_none(self, shared: Shared, key: str) -> None:
        shared.tasks.resting.apply_async((key,), lock={"min_hold": 0}).get(timeout=PATIENCE)
        shared.wait_until_free(key)
        # As it would have been without.
        shared.tasks.resting.apply_async((key,)).get(timeout=PATIENCE)
        assert not shared.lock(key).acquire(timeout=1.0)

    def test_direct_calls_keep_it_too(self, load: LoadApp, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
        tasks = load(APP)
        monkeypatch.setenv("JOURNAL", str(journal.path))
        began = time.monotonic()
        tasks.quick("k")
        tasks.quick("k")
        assert 0.95 <= time.monotonic() - began < 3.0

    def test_a_store_that_cannot_keep_it_is_named(self) -> None:
        store = MagicMock(spec=LockStore, rests=False)
        store.name = "plain://"
        with Celery("proj", set_as_current=False) as app:
            use_store(app, store)
            task: Any = app.task(base=LockedTask, shared=False, lock_min_hold=1)(quick)
            with pytest.raises(LockConfigError, match="lock_min_hold needs a store that can keep it, which plain://"):
                task()
            forget_store(app)


class TestLongest:
    def test_a_stuck_child_is_killed_and_the_result_says_why(self, shared: Shared, key: str) -> None:
        # By far longer than the longest time: that nobody renews it is not what frees the key.
        result = shared.tasks.stuck.apply_async((key,), lock={"ttl": 30.0})
        shared.journal.wait_for("start", key=key)
        with pytest.raises(LockLost, match="lock_max_hold") as caught:
            result.get(timeout=PATIENCE)
        assert caught.value.key == key
        (run,) = shared.journal.runs(key)
        assert not run.ended  # nobody told the body
        (lost,) = shared.journal.wait_for("lost", key=key)
        assert lost["t"] - asked_for(shared.journal, run) >= 0.9
        assert lost["t"] - run.start <= 2.0
        assert shared.tasks.plain.delay(key).get(timeout=PATIENCE) == key
        assert shared.journal.runs(key)[1].start - lost["t"] < 1.0

    def test_one_that_ends_in_time_is_left_alone(self, shared: Shared, key: str) -> None:
        # Long enough for the warden to look at it.
        result = shared.tasks.stuck.apply_async((key, 0.5), lock={"max_hold": 10.0})
        assert result.get(timeout=PATIENCE) is None
        assert shared.journal.entries("lost", key=key) == []

    def test_a_body_that_checks_learns_it_in_time(self, shared: Shared, key: str) -> None:
        # Longer than the warden would wait: here the body is faster, or is killed in its sleep.
        # With its ttl of a second it would notice a machine that is held up for as long.
        result = shared.tasks.stuck.apply_async((key, 30.0, True), lock={"ttl": 30.0})
        with pytest.raises(LockLost, match="lock_max_hold"):
            result.get(timeout=PATIENCE)

    @pytest.mark.parametrize("pool", ["threads", "gevent", "solo"])
    def test_where_nobody_can_be_killed_check_raises_and_the_lease_runs_out(
        self, worker: StartWorker, load: LoadApp, journal: Journal, pool: Pool
    ) -> None:
        worker(APP, pool=pool, may_log=EXPECTED)
        tasks = load(APP)
        # Held up for longer than its ttl of a second, it would notice that first.
        checking = tasks.stuck.apply_async(("a", 30.0, True), lock={"ttl": 30.0})
        (noticed,) = journal.wait_for("noticed", key="a")
        assert (noticed["reason"], noticed["held"]) == ("it has been held for longer than lock_max_hold", False)
        with pytest.raises(LockLost, match="lock_max_hold"):
            checking.get(timeout=PATIENCE)
        if pool == "solo":
            return
        silent = tasks.stuck.apply_async(("b", 4.0))
        journal.wait_for("lost", key="b")
        # Not another task, whose back-off would be measured along.
        with Lock("b", app=tasks.app):
            granted = time.monotonic()
        with pytest.raises(LockLost, match="lock_max_hold"):
            silent.get(timeout=PATIENCE)
        (stuck,) = journal.runs("b")
        # max_hold, and the ttl after the last renewal before it.
        assert 1.0 <= granted - stuck.start <= 1.0 + 1.0 + 1.0

    def test_direct_calls_are_not_renewed_any_longer(
        self, load: LoadApp, journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tasks = load(APP)
        monkeypatch.setenv("JOURNAL", str(journal.path))
        lost: list[float] = []

        def note(sender: Any, key: str, **_: Any) -> None:
            lost.append(time.monotonic())

        lock_lost.connect(note, sender=tasks.stuck)
        with pytest.raises(LockLost, match="lock_max_hold"):
            tasks.stuck("k", 2.0)
        (run,) = journal.runs("k")
        assert len(lost) == 1
        assert lost[0] < run.end
