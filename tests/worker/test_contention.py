"""What becomes of a task that does not get its lock, on real workers."""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import celery
import pytest
from celery import group, states

from celery_distlock import Lock, LockConfigError, LockContended, LockTimeout, StoreUnavailable
from celery_distlock.options import LockOptions
from celery_distlock.task.contention import _back_off
from tests.support.journal import Journal
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.servers import fresh_databases
from tests.support.waiting import eventually
from tests.support.workers import LoadApp, StartWorker
from tests.worker.shared import PATIENCE, Shared, shared_workers

pytestmark = pytest.mark.xdist_group("contention")

APP = "tests.worker.apps.contention_policies"

# A task that fails on purpose leaves its traceback in the log.
EXPECTED = [r"LockContended", r"LockTimeout", r"returned 'sulk'"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Shared]:
    """Two workers with two processes each."""
    options: dict[str, Any] = {"nodes": 2, "queues": ["celery", "other"], "may_log": EXPECTED}
    with shared_workers(tmp_path_factory.mktemp("contention"), redis_server, APP, **options) as shared:
        yield shared


@pytest.fixture
def key() -> str:
    """A key that no other test uses."""
    return f"key-{uuid.uuid4().hex[:8]}"


def refusals(shared: Shared, task_id: str, count: int) -> list[dict[str, Any]]:
    """Wait until a task was refused ``count`` times, and return the refusals."""
    return shared.journal.wait_for("contended", count, id=task_id)


def delays(shared: Shared, task_id: str, count: int) -> list[float]:
    """Wait until the workers have told of so many retries of a task; return how long each was put off, sorted."""

    def told() -> list[float]:
        log = "".join(worker.log for worker in shared.workers)
        return sorted(float(delay) for delay in re.findall(rf"\[{task_id}\] retry: Retry in ([\d.e-]+)s", log))

    eventually(lambda: len(told()) == count, PATIENCE, f"{count} retries of {task_id} in the logs")
    return told()


class TestEveryTaskOfAKeyRunsAlone:
    def test_forty_tasks_over_two_workers_all_complete(self, shared: Shared, key: str) -> None:
        with shared.lock(key):
            results = [shared.tasks.retrying.delay(key, 0.005) for _ in range(40)]
            shared.journal.wait_for("contended", key=key)
        assert [result.get(timeout=60) for result in results] == [key] * 40
        self._each_ran_once_and_alone(shared, key, {result.id for result in results})

    def test_forty_tasks_sent_by_name_all_complete(self, shared: Shared, key: str) -> None:
        name = shared.tasks.retrying.name
        with shared.lock(key):
            results = [shared.tasks.app.send_task(name, (key, 0.005)) for _ in range(40)]
            shared.journal.wait_for("contended", key=key)
        assert [result.get(timeout=60) for result in results] == [key] * 40
        self._each_ran_once_and_alone(shared, key, {result.id for result in results})

    @pytest.mark.parametrize("count", [2, pytest.param(40, marks=[pytest.mark.slow, pytest.mark.timeout(240)])])
    def test_a_body_may_outlive_its_ttl(self, shared: Shared, key: str, count: int) -> None:
        results = [shared.tasks.outliving.delay(key, 3.0) for _ in range(count)]
        assert [result.get(timeout=4.0 * count + 10) for result in results] == [key] * count
        runs = self._each_ran_once_and_alone(shared, key, {result.id for result in results})
        assert min(run.end - run.start for run in runs) >= 3.0

    @staticmethod
    def _each_ran_once_and_alone(shared: Shared, key: str, ids: set[str]) -> list[Any]:
        runs = shared.journal.runs(key)
        assert sorted(str(run.id) for run in runs) == sorted(ids)
        assert [run.error for run in runs] == [None] * len(ids)
        assert shared.journal.overlaps(key) == []
        assert shared.journal.entries("contended", key=key), "nobody was ever refused: nothing was tested"
        fences = [run.fence for run in runs]
        assert fences == sorted(set(fences))
        return runs


class TestRetry:
    def test_many_lock_retries_cost_none_of_the_tasks_own(self, shared: Shared, key: str) -> None:
        assert shared.tasks.retrying.max_retries == 0
        with shared.lock(key):
            result = shared.tasks.retrying.delay(key)
            refusals(shared, result.id, 5)
        assert result.get(timeout=PATIENCE) == key
        (start,) = shared.journal.entries("start", key=key)
        assert (start["id"], start["retries"]) == (result.id, 0)

    @pytest.mark.parametrize("name", ["own_call", "own_call_with_super"])
    def test_a_class_with_a_call_of_its_own_is_refused_and_retried(self, shared: Shared, key: str, name: str) -> None:
        with shared.lock(key):
            result = getattr(shared.tasks, name).delay(key)
            refusals(shared, result.id, 2)
            assert shared.journal.entries("start", key=key) == []
        assert result.get(timeout=PATIENCE) == key
        (start,) = shared.journal.entries("start", key=key)
        assert (start["id"], bool(start["owner"])) == (result.id, True)

    @pytest.mark.parametrize("queue", ["celery", "other"])
    def test_the_message_carries_everything_through_lock_retries(self, shared: Shared, key: str, queue: str) -> None:
        tasks = shared.tasks

        def send() -> Any:
            signature = tasks.telling.s(key, more=[1, {"a": None}])
            signature.stamp(customer="c1")
            signature.options.update(link=[tasks.after.s(key=key)], link_error=[tasks.on_error_old.s()])
            return signature.apply_async(
                headers={"mine": "1"}, priority=6, expires=60, shadow="other", time_limit=50, soft_time_limit=40,
                queue=queue, root_id="the-root", parent_id="the-parent", ignore_result=False,
            )  # fmt: skip

        alone = send()
        without = alone.get(timeout=PATIENCE)
        with shared.lock(key):
            result = send()
            refusals(shared, result.id, 3)
        after = result.get(timeout=PATIENCE)
        assert (without["id"], after["id"]) == (alone.id, result.id)
        assert after["expires"] > without["expires"]
        own = ("id", "expires", "correlation_id")
        ours = ("distlock_attempt", "distlock_since")
        for each in (without, after):
            assert not any(name in each["headers"] for name in ours)
            # A message gets these when it is consumed, and a retry copies them.
            for name in own:
                each.pop(name)
        assert {name: (without[name], after[name]) for name in without if without[name] != after[name]} == {}
        assert after["headers"]["mine"] == "1"
        assert (after["routing_key"], after["priority"]) == (queue, 6)
        assert after["stamps"] == {"customer": "c1"}
        assert after["timelimit"] == [50, 40]
        shared.journal.wait_for("after", 2, key=key)

    def test_the_last_of_a_chain_and_its_chord_wait_for_a_refused_link(self, shared: Shared, key: str) -> None:
        tasks = shared.tasks
        with shared.lock(key):
            canvas = group(tasks.retrying.si(key) | tasks.after.s(key=key), tasks.after.si("other")) | tasks.after.s()
            result = canvas.apply_async()
            shared.journal.wait_for("contended", 2, key=key)
            assert not result.ready()
        assert result.get(timeout=PATIENCE) == [key, "other"]

    def test_the_state_names_the_holder_meanwhile(self, shared: Shared, key: str) -> None:
        with shared.held_by_a_task(key) as holder:
            result = shared.tasks.retrying.delay(key)
            eventually(lambda: result.state == states.RETRY, PATIENCE, "the state RETRY")
            error = result.result
            assert isinstance(error, LockContended)
            assert error.key == key
            assert error.holder is not None
            assert (error.holder["id"], error.holder["task"]) == (holder.id, shared.tasks.hold.name)
            assert holder.id in str(error)
        assert result.get(timeout=PATIENCE) == key

    def test_its_state_is_stored_before_the_next_attempt_can_store_another_one(
        self, worker: StartWorker, load: LoadApp, journal: Journal
    ) -> None:
        app = "tests.worker.apps.late_retry"
        worker(app, concurrency=1, may_log=EXPECTED)
        tasks = load(app)
        with Lock("k", app=tasks.app):
            result = tasks.work.delay("k")
            journal.wait_for("storing", id=result.id)
            assert journal.entries("published") == []
            journal.record("go", key="store")
            with pytest.raises(LockTimeout):
                result.get(timeout=PATIENCE)
        if celery.VERSION >= (5, 6):
            # Nor is it stored once more, when the next attempt may have been.
            assert len(journal.entries("storing")) == len(journal.entries("published")) > 0

    def test_the_delays_double_up_to_their_limit(self, shared: Shared, key: str) -> None:
        with shared.lock(key):
            result = shared.tasks.backing_off.delay(key)
            times = [entry["t"] for entry in refusals(shared, result.id, 5)]
        result.get(timeout=PATIENCE)
        retries = len(shared.journal.entries("contended", id=result.id))
        assert delays(shared, result.id, retries) == [0.1, 0.2, *[0.4] * (retries - 2)]
        for (earlier, later), least in zip(pairwise(times), (0.1, 0.2, 0.4, 0.4), strict=False):
            # A countdown becomes a time of day with microseconds, and is compared with another clock.
            assert later - earlier >= least - 0.01

    def test_jitter_spreads_the_delays_and_exceeds_no_limit(self) -> None:
        options = LockOptions(retry_delay=1.0, retry_backoff_max=8.0)
        for attempt, most in ((0, 1.0), (1, 2.0), (3, 8.0), (4, 8.0), (10**6, 8.0)):
            delays = [_back_off(options, attempt) for _ in range(50)]
            assert all(most / 2 <= delay <= most for delay in delays)
            assert len(set(delays)) > 1

    def test_lock_timeout_fails_the_task_and_calls_its_errbacks(self, shared: Shared, key: str) -> None:
        with shared.held_by_a_task(key) as holder:
            began = time.monotonic()
            result = shared.tasks.impatient.apply_async((key,), link_error=shared.tasks.on_error_old.s())
            with pytest.raises(LockTimeout) as caught:
                result.get(timeout=PATIENCE)
            ended = time.monotonic()
        assert result.state == states.FAILURE
        assert caught.value.key == key
        assert 0.5 <= caught.value.waited <= ended - began
        # The last try was made when the time was over, and not when its back-off would have been.
        retries = len(shared.journal.entries("contended", id=result.id)) - 1
        assert sum(delays(shared, result.id, retries)) <= 0.5 + 0.01
        assert caught.value.holder is not None
        assert caught.value.holder["id"] == holder.id
        shared.journal.wait_for("errback", style="old", id=result.id)
        assert shared.journal.entries("start", id=result.id) == []

    def test_the_time_out_counts_from_the_first_refusal_not_from_the_last(self, shared: Shared, key: str) -> None:
        with shared.lock(key):
            # A twentieth of a second between two tries, which a busy machine makes a fifth of.
            result = shared.tasks.impatient.apply_async((key,), lock={"timeout": 3.0})
            with pytest.raises(LockTimeout):
                result.get(timeout=PATIENCE)
        assert len(shared.journal.entries("contended", id=result.id)) >= 3

    def test_the_tasks_own_retry_starts_counting_anew(self, shared: Shared, key: str) -> None:
        with shared.lock(key):
            result = shared.tasks.retrying_itself.delay(key)
            refusals(shared, result.id, 3)
        assert result.get(timeout=PATIENCE) == key
        runs = shared.journal.entries("run", id=result.id)
        assert [(run["retries"], run["headers"]) for run in runs] == [(0, {}), (1, {})]

    def test_a_task_that_expires_while_it_is_refused_is_revoked(self, shared: Shared, key: str) -> None:
        with shared.lock(key):
            # Celery stores that a task is retried once its message is out. Where that takes longer than the retry is
            # put off, it overwrites what has become of the task in another process.
            lock = {"retry_delay": 1.0, "retry_backoff_max": 1.0}
            result = shared.tasks.retrying.apply_async((key,), expires=2.0, lock=lock)
            refusals(shared, result.id, 1)
            eventually(lambda: result.state == states.REVOKED, PATIENCE, "the state REVOKED")
        assert shared.journal.entries("start", id=result.id) == []


class TestSkip:
    def test_it_is_a_success_with_the_result_that_was_chosen(self, shared: Shared, key: str) -> None:
        with shared.lock(key):
            result = shared.tasks.skipping.delay(key)
            assert result.get(timeout=PATIENCE) == "skipped"
            assert result.state == states.SUCCESS
        assert shared.journal.entries("start", key=key) == []

    def test_the_signal_and_the_log_name_the_holder(self, shared: Shared, key: str) -> None:
        with shared.held_by_a_task(key) as holder:
            result = shared.tasks.skipping.delay(key)
            assert result.get(timeout=PATIENCE) == "skipped"
            (skipped,) = shared.journal.wait_for("skipped", id=result.id)
            (contended,) = shared.journal.entries("contended", id=result.id)
        assert (skipped["key"], skipped["holder"]) == (key, holder.id)
        assert (contended["holder"], contended["policy"]) == (holder.id, "skip")
        log = "".join(worker.log for worker in shared.workers)
        (line,) = [line for line in log.splitlines() if result.id in line and "skipped: lock" in line]
        assert holder.id in line
        assert key in line

    def test_it_leaves_the_holders_lock_alone(self, shared: Shared, key: str) -> None:
        with shared.lock(key) as lock:
            for _ in range(3):
                assert shared.tasks.skipping.delay(key).get(timeout=PATIENCE) == "skipped"
            (holder,) = lock.holders()
            assert holder["owner"] == lock.owner
        assert shared.tasks.skipping.delay(key).get(timeout=PATIENCE) == key


class TestFail:
    def test_the_exception_comes_back_with_key_and_holder(self, shared: Shared, key: str) -> None:
        with shared.held_by_a_task(key) as holder:
            result = shared.tasks.failing.delay(key)
            with pytest.raises(LockContended) as caught:
                result.get(timeout=PATIENCE)
        assert result.state == states.FAILURE
        assert caught.value.key == key
        assert caught.value.holder is not None
        assert caught.value.holder["id"] == holder.id
        assert holder.id in str(caught.value)
        assert shared.journal.entries("start", id=result.id) == []

    def test_errbacks_of_both_styles_are_called(self, shared: Shared, key: str) -> None:
        tasks = shared.tasks
        with shared.lock(key, identifier="the test"):
            result = tasks.failing.apply_async((key,), link_error=[tasks.on_error_old.s(), tasks.on_error_new.s()])
            with pytest.raises(LockContended):
                result.get(timeout=PATIENCE)
            (new,) = shared.journal.wait_for("errback", style="new", id=result.id)
            shared.journal.wait_for("errback", style="old", id=result.id)
        assert new["error"] == "LockContended"
        assert "'the test'" in new["text"]

    def test_link_callbacks_do_not_run(self, shared: Shared, key: str) -> None:
        with shared.lock(key):
            result = shared.tasks.failing.apply_async((key,), link=shared.tasks.after.s(key=key))
            with pytest.raises(LockContended):
                result.get(timeout=PATIENCE)
            shared.wait_until_idle()
        assert shared.journal.entries("after", key=key) == []


class TestACallablePolicy:
    def test_it_is_told_what_happened_and_decides_each_time(self, shared: Shared, key: str) -> None:
        with shared.lock(key):
            result = shared.tasks.choosing.delay(key)
            with pytest.raises(LockContended):
                result.get(timeout=PATIENCE)
        told = shared.journal.entries("choosing", key=key)
        assert [entry["attempt"] for entry in told] == [0, 1, 2]
        assert told[0]["waited"] == 0.0 < told[1]["waited"] < told[2]["waited"]
        assert {entry["name"] for entry in told} == {shared.tasks.choosing.name}

    def test_an_answer_that_is_no_policy_fails_the_task(self, shared: Shared, key: str) -> None:
        with shared.lock(key):
            result = shared.tasks.sulking.delay(key)
            with pytest.raises(LockConfigError, match=r"returned 'sulk'; allowed: retry, wait, skip, fail"):
                result.get(timeout=PATIENCE)


class TestMapsOfALockedTask:
    """The task behind ``xmap``, ``xstarmap`` and ``chunks`` calls ours as a function, once per item."""

    def test_each_item_runs_under_its_own_lock(self, shared: Shared, key: str) -> None:
        keys = [f"{key}-{number}" for number in range(4)]
        tasks = shared.tasks
        results = [
            tasks.retrying.map(keys).apply_async().get(timeout=PATIENCE),
            tasks.retrying.starmap([(each,) for each in keys]).apply_async().get(timeout=PATIENCE),
            tasks.retrying.chunks([(each,) for each in keys], 4).apply_async().get(timeout=PATIENCE)[0],
        ]
        assert results == [keys] * 3
        for each in keys:
            assert len(shared.journal.runs(each)) == 3
        shared.wait_until_free(*keys)

    def test_an_item_waits_for_its_lock_and_can_give_up(self, shared: Shared, key: str) -> None:
        with shared.lock(key):
            waiting = shared.tasks.retrying.map([key]).apply_async()
            shared.journal.wait_for("contended", key=key)
            failing = shared.tasks.failing.map([key]).apply_async()
            with pytest.raises(LockContended):
                failing.get(timeout=PATIENCE)
            assert shared.journal.entries("start", key=key) == []
        assert waiting.get(timeout=PATIENCE) == [key]


class Breakable:
    """A worker whose store stands behind a proxy."""

    def __init__(self, shared: Shared, proxy: Proxy, direct: str) -> None:
        self.shared = shared
        self.proxy = proxy
        self.direct = direct

    def lock(self, key: str) -> Lock:
        """Return a lock that does not go through the proxy."""
        return Lock(key, url=self.direct)

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Let nobody reach the store through the block."""
        self.proxy.refuse()
        self.proxy.cut()
        try:
            yield
        finally:
            self.proxy.accept()


@pytest.fixture(scope="module")
def breakable(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Breakable]:
    direct = fresh_databases(redis_server).locks
    where = urlsplit(direct)
    assert where.hostname
    assert where.port
    proxy = Proxy(where.hostname, where.port)
    expected = [*EXPECTED, r"StoreUnavailable", r"is unavailable"]
    try:
        with shared_workers(
            tmp_path_factory.mktemp("breakable"), redis_server, APP, locks=proxy.url(direct), may_log=expected
        ) as shared:
            yield Breakable(shared, proxy, direct)
    finally:
        proxy.close()


class TestTheStoreCannotBeAsked:
    """That is no answer: neither "taken" nor "free"."""

    def test_retry_publishes_the_task_again_until_the_store_answers(self, breakable: Breakable, key: str) -> None:
        tasks, journal = breakable.shared.tasks, breakable.shared.journal
        with breakable.down():
            result = tasks.store_retry.delay(key)
            eventually(lambda: result.state == states.RETRY, PATIENCE, "the state RETRY")
            assert isinstance(result.result, StoreUnavailable)
            breakable.shared.worker.wait_for_log(
                rf"\[{result.id}\] retry: .*StoreUnavailable(?s:.*)\[{result.id}\] retry: "
            )
            assert journal.entries("start", key=key) == []
        assert result.get(timeout=PATIENCE) == key
        (start,) = journal.entries("start", key=key)
        assert start["owner"]
        assert journal.entries("contended", key=key) == []

    def test_fail_is_a_failure_that_says_why(self, breakable: Breakable, key: str) -> None:
        tasks, journal = breakable.shared.tasks, breakable.shared.journal
        with breakable.down():
            result = tasks.store_fail.delay(key)
            with pytest.raises(StoreUnavailable) as caught:
                result.get(timeout=PATIENCE)
        assert not isinstance(caught.value, LockContended)
        assert str(breakable.proxy.port) in caught.value.store
        assert caught.value.reason
        assert journal.entries("contended", key=key) == journal.entries("start", key=key) == []
        assert tasks.store_fail.delay(key).get(timeout=PATIENCE) == key

    def test_run_runs_without_a_lock_and_says_so(self, breakable: Breakable, key: str) -> None:
        tasks, journal = breakable.shared.tasks, breakable.shared.journal
        with breakable.down():
            result = tasks.store_run.delay(key)
            assert result.get(timeout=PATIENCE) is None
        assert [entry["event"] for entry in journal.entries(id=result.id)] == ["unlocked"]
        breakable.shared.worker.wait_for_log(rf"WARNING.*\[{result.id}\] runs without its lock '{key}'")
        assert tasks.store_run.delay(key).get(timeout=PATIENCE) == key

    def test_run_does_not_mean_running_beside_a_holder_that_is_known(self, breakable: Breakable, key: str) -> None:
        with breakable.lock(key), pytest.raises(LockContended):
            breakable.shared.tasks.store_run.delay(key).get(timeout=PATIENCE)

    def test_a_task_that_was_retried_meets_the_holder_once_the_store_is_back(
        self, breakable: Breakable, key: str
    ) -> None:
        with breakable.lock(key):
            with breakable.down():
                result = breakable.shared.tasks.store_retry.delay(key)
                eventually(lambda: result.state == states.RETRY, PATIENCE, "the state RETRY")
            with pytest.raises(LockContended):
                result.get(timeout=PATIENCE)
        assert breakable.shared.journal.entries("start", key=key) == []

    def test_lock_timeout_bounds_the_silence_too(self, breakable: Breakable, key: str) -> None:
        with breakable.down():
            result = breakable.shared.tasks.store_impatient.delay(key)
            with pytest.raises(LockTimeout):
                result.get(timeout=PATIENCE)

    def test_a_grant_whose_reply_was_lost_does_not_refuse_its_own_task(self, breakable: Breakable, key: str) -> None:
        tasks = breakable.shared.tasks
        for _ in range(8):
            # Both processes have loaded the scripts and hold a connection. Each on a key of its own: one that is
            # published as soon as the result of another is there can meet its lock.
            tasks.store_retry.delay(uuid.uuid4().hex).get(timeout=PATIENCE)
        # The client asks once more on its own; with both replies gone nobody knows what was granted.
        faults = [breakable.proxy.swallow_reply(key.encode()) for _ in range(2)]
        result = tasks.store_retry.delay(key)
        assert result.get(timeout=PATIENCE) == key
        for fault in faults:
            fault.wait()
        if breakable.direct.startswith("redis:"):
            # In ZooKeeper the next connection is of the same session, which finds what it was granted.
            breakable.shared.worker.wait_for_log(rf"\[{result.id}\] retry: .*StoreUnavailable")
        assert breakable.shared.journal.entries("contended", key=key) == []
        eventually(lambda: not breakable.lock(key).locked(), 5.0, "the release")
