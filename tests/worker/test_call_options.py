"""``apply_async(lock={…})``: options of one call, on their way through signatures, messages and retries."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from celery import chain, chord, group
from celery.signals import before_task_publish

from celery_distlock import LockConfigError, LockContended, LockTimeout
from tests.support.redis_server import RedisServer
from tests.worker.shared import PATIENCE, Shared, shared_workers

# They are told apart by the leases' ttl, which in ZooKeeper is the session's.
pytestmark = [pytest.mark.xdist_group("call options"), pytest.mark.locks_in_redis]

APP = "tests.worker.apps.contention_options"
EXPECTED = [r"LockContended", r"LockTimeout", r"LockConfigError"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Shared]:
    with shared_workers(tmp_path_factory.mktemp("options"), redis_server, APP, may_log=EXPECTED) as shared:
        yield shared


@pytest.fixture
def key() -> str:
    return f"key-{uuid.uuid4().hex[:8]}"


class TestOneCallOnly:
    def test_they_win_over_the_tasks_own_and_are_gone_with_the_call(self, shared: Shared, key: str) -> None:
        tell = shared.tasks.tell
        assert tell.apply_async((key,), lock={"ttl": 7}).get(timeout=PATIENCE)["ttl"] == 7.0
        shared.wait_until_free(key)
        assert tell.apply_async((key,)).get(timeout=PATIENCE)["ttl"] == 20.0

    def test_a_policy(self, shared: Shared, key: str) -> None:
        with shared.lock(key):
            result = shared.tasks.tell.apply_async((key,), lock={"on_contention": "skip", "skip_result": [1, "x"]})
            assert result.get(timeout=PATIENCE) == [1, "x"]
            with pytest.raises(LockContended):
                shared.tasks.tell.apply_async((key,)).get(timeout=PATIENCE)

    @pytest.mark.parametrize(
        ("spec", "expected"), [("other:{key}", "other:{0}"), (["key"], "{task}:"), ("fixed", "fixed")]
    )
    def test_a_key(self, shared: Shared, key: str, spec: Any, expected: str) -> None:
        told = shared.tasks.tell.apply_async((key,), lock={"key": spec}).get(timeout=PATIENCE)
        assert told["key"].startswith(expected.format(key, task=shared.tasks.tell.name))
        assert told["key"] != key

    def test_a_limit_lets_so_many_in(self, shared: Shared, key: str) -> None:
        with shared.lock(key, limit=2) as lock:
            told = shared.tasks.tell.apply_async((key,), lock={"limit": 2}).get(timeout=PATIENCE)
            assert told["key"] == key
            assert len(lock.holders()) >= 1
            with pytest.raises(LockContended):
                shared.tasks.tell.apply_async((key,)).get(timeout=PATIENCE)

    def test_a_time_out(self, shared: Shared, key: str) -> None:
        options = {"on_contention": "retry", "retry_delay": 0.02, "retry_backoff_max": 0.02, "timeout": 0.2}
        with shared.lock(key), pytest.raises(LockTimeout):
            shared.tasks.tell.apply_async((key,), lock=options).get(timeout=PATIENCE)

    def test_names_may_be_written_with_their_prefix(self, shared: Shared, key: str) -> None:
        told = shared.tasks.tell.apply_async((key,), lock={"lock_ttl": 9}).get(timeout=PATIENCE)
        assert told["ttl"] == 9.0


class TestTheySurvive:
    RETRY = {"on_contention": "retry", "retry_delay": 0.02, "retry_backoff_max": 0.05, "ttl": 7}  # noqa: RUF012

    def test_lock_retries(self, shared: Shared, key: str) -> None:
        with shared.lock(key):
            result = shared.tasks.tell.apply_async((key,), lock=self.RETRY)
            shared.journal.wait_for("contended", 4, id=result.id)
        assert result.get(timeout=PATIENCE)["ttl"] == 7.0
        refusals = shared.journal.entries("contended", id=result.id)
        assert {entry["policy"] for entry in refusals} == {"retry"}

    def test_the_tasks_own_retries(self, shared: Shared, key: str) -> None:
        result = shared.tasks.tell.apply_async((key, 2), lock={"ttl": 7})
        assert result.get(timeout=PATIENCE)["retries"] == 2
        assert [entry["ttl"] for entry in shared.journal.entries("told", id=result.id)] == [7.0] * 3

    def test_both_in_turn(self, shared: Shared, key: str) -> None:
        with shared.lock(key):
            result = shared.tasks.tell.apply_async((key, 2), lock=self.RETRY)
            shared.journal.wait_for("contended", 2, id=result.id)
        result.get(timeout=PATIENCE)
        assert [entry["ttl"] for entry in shared.journal.entries("told", id=result.id)] == [7.0] * 3

    def test_a_users_own_headers_beside_them(self, shared: Shared, key: str) -> None:
        result = shared.tasks.tell.apply_async((key,), lock={"ttl": 7}, headers={"distlock_mine": "1"})
        assert result.get(timeout=PATIENCE)["ttl"] == 7.0


class TestSignatures:
    def test_they_can_be_set_on_one(self, shared: Shared, key: str) -> None:
        assert shared.tasks.tell.s(key).set(lock={"ttl": 7}).apply_async().get(timeout=PATIENCE)["ttl"] == 7.0

    def test_each_link_of_a_chain_has_its_own(self, shared: Shared, key: str) -> None:
        links = [shared.tasks.tell.si(key).set(lock={"ttl": ttl}) for ttl in (6, 7, 8)]
        last = chain(*links).apply_async()
        assert last.get(timeout=PATIENCE)["ttl"] == 8.0
        assert [each.get(timeout=PATIENCE)["ttl"] for each in (last.parent.parent, last.parent)] == [6.0, 7.0]

    def test_members_of_a_group_and_the_body_of_a_chord_have_their_own(self, shared: Shared, key: str) -> None:
        members = [shared.tasks.tell.si(f"{key}-{ttl}").set(lock={"ttl": ttl}) for ttl in (6, 7)]
        told = group(*members).apply_async().get(timeout=PATIENCE)
        assert [each["ttl"] for each in told] == [6.0, 7.0]
        body = shared.tasks.tell.si(f"{key}-8").set(lock={"ttl": 8})
        assert chord(members, body).apply_async().get(timeout=PATIENCE)["ttl"] == 8.0

    def test_a_link_that_waits_for_its_lock_keeps_its_options(self, shared: Shared, key: str) -> None:
        options = TestTheySurvive.RETRY
        with shared.lock(key):
            last = chain(shared.tasks.bare.si(), shared.tasks.tell.si(key).set(lock=options)).apply_async()
            shared.journal.wait_for("contended", 2, id=last.id)
        assert last.get(timeout=PATIENCE)["ttl"] == 7.0


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"tll": 7}, "tll"),
            ({"ttl": -1}, "ttl"),
            ({"ttl": "7"}, "ttl"),
            ({"on_contention": "sulk"}, "sulk"),
            ({"on_contention": lambda task, contention: "skip"}, "callable"),
            ({"key": "{nothing}"}, "nothing"),
            ({"skip_result": object()}, "JSON"),
            ("skip", "lock='skip'"),
        ],
        # The same in every process: a function or an object would be shown with its address.
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_a_wrong_option_is_an_error_of_the_caller_and_nothing_is_published(
        self, shared: Shared, key: str, options: Any, message: str
    ) -> None:
        published: list[str] = []

        def note(sender: str, **_: Any) -> None:
            published.append(sender)

        before_task_publish.connect(note)
        with pytest.raises(LockConfigError, match=message):
            shared.tasks.tell.apply_async((key,), lock=options)
        assert published == []
        shared.tasks.tell.delay(key).get(timeout=PATIENCE)
        assert published == [shared.tasks.tell.name]

    @pytest.mark.parametrize("options", [{"ttl": -1}, {"tll": 7}, ["ttl"], 7, {"key": "{nothing}"}], ids=str)
    def test_wrong_options_from_another_version_or_hand_fail_the_task_and_not_the_worker(
        self, shared: Shared, key: str, options: Any
    ) -> None:
        """A message can come from anywhere: the worker must neither die of it nor run it unlocked."""
        result = shared.tasks.app.send_task(shared.tasks.tell.name, (key,), headers={"distlock": options})
        with pytest.raises(LockConfigError):
            result.get(timeout=PATIENCE)
        assert shared.journal.entries("told", id=result.id) == []
        assert shared.worker.alive
        assert shared.tasks.tell.delay(key).get(timeout=PATIENCE)["key"] == key

    def test_a_wrong_attempt_header_counts_as_none(self, shared: Shared, key: str) -> None:
        headers = {"distlock_attempt": "many"}
        result = shared.tasks.app.send_task(shared.tasks.tell.name, (key,), headers=headers)
        assert result.get(timeout=PATIENCE)["key"] == key


class TestWaitOnAnEarlyAcknowledgedTask:
    def test_it_becomes_retry_and_is_logged_once(self, shared: Shared, key: str) -> None:
        options = {"on_contention": "wait", "retry_delay": 0.02, "retry_backoff_max": 0.05}
        for _ in range(2):
            with shared.lock(key):
                result = shared.tasks.tell.apply_async((key,), lock=options)
                shared.journal.wait_for("contended", 3, id=result.id)
            assert result.get(timeout=PATIENCE)["key"] == key
        # Once per process, and there are two.
        assert 1 <= shared.worker.log.count("the task is retried instead: acks_late is not set") <= 2


class TestACallableKey:
    def test_none_means_no_lock_for_this_call(self, shared: Shared) -> None:
        told = [shared.tasks.computed.delay("none").get(timeout=PATIENCE) for _ in range(2)]
        assert [each["key"] for each in told] == [None, None]

    def test_its_text_is_the_key_however_it_is_called(self, shared: Shared, key: str) -> None:
        calls = [((key,), {}), ((key, 0), {}), ((), {"key": key}), ((key,), {"more": 3})]
        told = [shared.tasks.computed.apply_async(*call).get(timeout=PATIENCE)["key"] for call in calls]
        assert told == [key] * 4
