"""``lock_on_contention="wait"``: parked tasks, first in first out, and how each of them ends."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import states
from celery.exceptions import TaskRevokedError

from celery_distlock import LockTimeout
from celery_distlock.worker.row import MOST
from tests.support.journal import Journal
from tests.support.redis_server import RedisServer
from tests.support.waiting import eventually
from tests.support.workers import LoadApp, Settings, StartWorker
from tests.worker.behind import behind
from tests.worker.shared import PATIENCE, Shared, shared_workers

pytestmark = [pytest.mark.xdist_group("parking"), pytest.mark.also_in_zookeeper]

APP = "tests.worker.apps.parking"

#: A revoke or an expiry is acted upon at once; a busy machine takes a moment all the same.
AT_ONCE = 2.0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Shared]:
    """Two workers with two processes each."""
    options: dict[str, Any] = {"nodes": 2, "may_log": [r"LockTimeout"]}
    with shared_workers(tmp_path_factory.mktemp("parking"), redis_server, APP, **options) as shared:
        yield shared


@pytest.fixture
def key() -> str:
    """A key that no other test uses."""
    return f"key-{uuid.uuid4().hex[:8]}"


def locks(shared: Shared, what: str, key: str) -> list[dict[str, Any]]:
    """Return what the workers say of this key, together."""
    answers = shared.tasks.app.control.inspect(timeout=PATIENCE, limit=len(shared.workers))._request("locks") or {}
    return [entry for answer in answers.values() for entry in answer[what] if entry["key"] == key]


def parked(shared: Shared, key: str, count: int) -> list[dict[str, Any]]:
    """Wait until so many tasks of this key are parked and have their tickets; return them in the line's order."""

    def found() -> list[dict[str, Any]] | None:
        entries = locks(shared, "parked", key)
        return entries if len(entries) == count and all(entry["position"] is not None for entry in entries) else None

    entries = eventually(found, PATIENCE, f"{count} tasks parked for {key}")
    assert entries is not None
    return sorted(entries, key=lambda entry: int(entry["ticket"]))


class TestTheLine:
    def test_parked_tasks_run_one_by_one_and_all_complete(self, shared: Shared, key: str) -> None:
        with shared.held_by_a_task(key) as holder:
            results = [shared.tasks.work.delay(key, 0.005, number) for number in range(40)]
            shared.journal.wait_for("parked", key=key)
        assert [result.get(timeout=PATIENCE) for result in results] == list(range(40))
        runs = shared.journal.runs(key)
        assert sorted(str(run.id) for run in runs) == sorted(result.id for result in (holder, *results))
        assert shared.journal.overlaps(key) == []
        fences = [run.fence for run in runs]
        assert fences == sorted(set(fences))

    @pytest.mark.parametrize("trial", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 20))])
    def test_they_start_in_the_order_of_their_tickets_also_when_others_are_revoked(
        self, shared: Shared, key: str, trial: int
    ) -> None:
        with shared.held_by_a_task(key):
            results = {result.id: result for result in (shared.tasks.work.delay(key) for _ in range(20))}
            line = [entry["id"] for entry in parked(shared, key, 20)]
            revoked = set(random.Random(trial).sample(line, 6))
            shared.tasks.app.control.revoke(list(revoked))
            parked(shared, key, 14)
        left = [task_id for task_id in line if task_id not in revoked]
        for task_id in left:
            results[task_id].get(timeout=PATIENCE)
        starts = [entry["id"] for entry in shared.journal.entries("start", key=key)][1:]
        assert starts == left
        assert {results[task_id].state for task_id in revoked} == {states.REVOKED}

    def test_a_lease_that_was_waited_for_is_kept_alive(self, shared: Shared, key: str) -> None:
        with shared.held_by_a_task(key):
            first = shared.tasks.work.apply_async((key, 5.0), lock={"ttl": 4.0})
            parked(shared, key, 1)
            second = shared.tasks.work.apply_async((key,), lock={"ttl": 4.0})
        assert first.get(timeout=PATIENCE) == 0  # its body ends with check()
        second.get(timeout=PATIENCE)
        assert shared.journal.overlaps(key) == []

    def test_parked_tasks_occupy_no_slot(self, shared: Shared, key: str) -> None:
        with shared.held_by_a_task(key):
            results = [shared.tasks.work.delay(key) for _ in range(10)]
            parked(shared, key, 10)
            shared.tasks.unrelated.delay().get(timeout=PATIENCE)
        for result in results:
            result.get(timeout=PATIENCE)

    def test_a_policy_chosen_by_a_callable_may_be_to_wait(self, shared: Shared, key: str) -> None:
        with shared.held_by_a_task(key):
            result = shared.tasks.choosy.delay(key)
            parked(shared, key, 1)
        assert result.get(timeout=PATIENCE) == "ran"

    @pytest.mark.parametrize("limit", [2, 3])
    def test_with_permits_as_many_run_at_once_as_there_are(self, shared: Shared, key: str, limit: int) -> None:
        results = [shared.tasks.hold.apply_async((key,), lock={"limit": limit}) for _ in range(12)]
        # They stay until there are as many as may be, and another one has been refused.
        shared.journal.wait_for("start", limit, key=key)
        shared.journal.wait_for("parked", key=key)
        shared.open_gate(key, 12)
        for result in results:
            result.get(timeout=PATIENCE)
        runs = shared.journal.runs(key)
        at_once = [sum(other.start <= run.start < other.end for other in runs) for run in runs]
        assert max(at_once) == limit
        assert len({run.fence for run in runs}) == 12

    def test_more_permits_take_effect_for_those_who_wait(self, shared: Shared, key: str) -> None:
        with shared.held_by_a_task(key):
            waiting = shared.tasks.work.delay(key)
            parked(shared, key, 1)
            # Behind one who wants to be alone, who is first in line.
            wide = shared.tasks.work.apply_async((key,), lock={"limit": 2})
            parked(shared, key, 2)
            shared.tasks.app.control.revoke(waiting.id)
            wide.get(timeout=PATIENCE)
        with pytest.raises(TaskRevokedError):
            waiting.get(timeout=PATIENCE)


class TestMany:
    @pytest.mark.locks_in_redis
    def test_only_the_first_of_a_key_stand_in_the_stores_line_and_all_start_in_order(
        self, worker: StartWorker, load: LoadApp, journal: Journal, settings: Settings
    ) -> None:
        # With slots to spare: a place that is declined is given to another.
        processes = 6
        worker(APP, concurrency=processes)
        tasks = load(APP)
        holder = tasks.hold.delay("k")
        journal.wait_for("start", key="k", id=holder.id)
        results = {result.id: result for result in (tasks.work.delay("k") for _ in range(90))}

        def line(count: int) -> list[dict[str, Any]]:
            def found() -> list[dict[str, Any]] | None:
                [answer] = (tasks.app.control.inspect(timeout=PATIENCE, limit=1)._request("locks") or {}).values()
                entries: list[dict[str, Any]] = answer["parked"]
                return entries if len(entries) == count and all(entry["ticket"] for entry in entries) else None

            entries = eventually(found, PATIENCE, f"{count} tickets")
            assert entries is not None
            return sorted(entries, key=lambda entry: int(entry["ticket"]))

        def in_the_stores_line() -> list[int] | None:
            """Return the positions of those who stand there, if they are the first by their tickets, and no others."""
            positions = [entry["position"] for entry in line(90)]
            standing = [position for position in positions if position is not None]
            return standing if positions == standing + [None] * (90 - len(standing)) else None

        # Of tasks refused at once, the later ones may have been parked first, and the earlier ones join them there.
        standing = eventually(in_the_stores_line, PATIENCE, "the first ones, and no others, in the store's line")
        assert standing is not None
        assert MOST <= len(standing) < MOST + processes
        with behind(settings.locks) as store:
            assert store.waiting("k") == len(standing)
        arrived = [entry["id"] for entry in line(90)]
        revoked = set(random.Random(0).sample(arrived, 30))
        tasks.app.control.revoke(list(revoked))
        left = [entry["id"] for entry in line(60)]
        assert left == [task_id for task_id in arrived if task_id not in revoked]
        with redis.Redis.from_url(settings.broker) as client:
            client.rpush("gate:k", "open")
        for task_id in left:
            results[task_id].get(timeout=PATIENCE)
        assert [entry["id"] for entry in journal.entries("start", key="k")][1:] == left


class TestWhileItWaits:
    def test_its_result_says_so_and_for_whom(self, shared: Shared, key: str) -> None:
        with shared.held_by_a_task(key) as holder:
            result = shared.tasks.tracked.delay(key)
            parked(shared, key, 1)
            assert result.state == "WAITING"
            assert result.info["key"] == key
            assert result.info["holder"]["id"] == holder.id
        assert result.get(timeout=PATIENCE) == "ran"

    def test_inspect_shows_who_holds_and_who_waits(self, shared: Shared, key: str) -> None:
        before = time.time()
        with shared.held_by_a_task(key) as holder:
            first = shared.tasks.work.delay(key)
            parked(shared, key, 1)
            second = shared.tasks.work.delay(key)
            line = parked(shared, key, 2)
            held = locks(shared, "held", key)
        assert [(entry["id"], entry["position"]) for entry in line] == [(first.id, 0), (second.id, 1)]
        assert all(before - 1 < entry["since"] < time.time() + 1 for entry in line)
        assert all(entry["name"] == shared.tasks.work.name and holder.id in entry["holder"] for entry in line)
        assert [entry["id"] for entry in held] == [holder.id]
        assert held[0]["fence"] > 0
        assert held[0]["remaining"] > 0
        for result in (first, second):
            result.get(timeout=PATIENCE)
        eventually(lambda: not locks(shared, "held", key), PATIENCE, "an empty list")

    @pytest.mark.parametrize("terminate", [False, True])
    def test_revoking_it_takes_effect_at_once(self, shared: Shared, key: str, terminate: bool) -> None:
        with shared.held_by_a_task(key) as holder:
            result = shared.tasks.work.delay(key)
            behind = shared.tasks.work.delay(key)
            parked(shared, key, 2)
            shared.tasks.app.control.revoke(result.id, terminate=terminate)
            with pytest.raises(TaskRevokedError):
                result.get(timeout=AT_ONCE)
            parked(shared, key, 1)
            assert holder.state != states.REVOKED
        behind.get(timeout=PATIENCE)
        assert [run.id for run in shared.journal.runs(key)] == [holder.id, behind.id]

    def test_it_expires(self, shared: Shared, key: str) -> None:
        with shared.held_by_a_task(key):
            result = shared.tasks.work.apply_async((key,), expires=5.0)
            shared.journal.wait_for("parked", id=result.id)
            with pytest.raises(TaskRevokedError):
                result.get(timeout=5.0 + AT_ONCE)
            eventually(lambda: not locks(shared, "parked", key), PATIENCE, "an empty line")

    def test_lock_timeout_fails_it_though_every_slot_is_taken(self, shared: Shared, key: str) -> None:
        with shared.held_by_a_task(key) as holder:
            result = shared.tasks.hooked.apply_async((key,), lock={"timeout": 3.0})
            shared.journal.wait_for("parked", id=result.id)
            # More than there are slots: each worker has some in reserve, whichever gets how many.
            busy = [shared.tasks.busy.delay(f"{key}-busy") for _ in range(12)]
            shared.journal.wait_for("start", 3, key=f"busy-{key}-busy")
            began = time.monotonic()
            with pytest.raises(LockTimeout) as raised:
                result.get(timeout=3.0 + AT_ONCE)
            assert time.monotonic() - began < 3.0 + AT_ONCE
            assert raised.value.key == key
            assert holder.id in str(raised.value)
            shared.open_gate(f"{key}-busy", 12)
            for one in busy:
                one.get(timeout=PATIENCE)
        (failed,) = shared.journal.wait_for("failed", id=result.id)
        assert failed["error"] == "LockTimeout"
        assert [run.id for run in shared.journal.runs(key)] == [holder.id]


class TestWhereItCannotStay:
    def test_above_the_limit_of_parked_tasks_it_is_retried_with_its_ticket(self, shared: Shared, key: str) -> None:
        options = {"max_parked": 0, "retry_delay": 0.1, "retry_backoff_max": 0.2}
        with shared.held_by_a_task(key):
            retried = shared.tasks.work.apply_async((key,), lock=options)
            eventually(lambda: retried.state == states.RETRY, PATIENCE, "the retry")
            waiting = shared.tasks.work.delay(key)
            parked(shared, key, 1)
        waiting.get(timeout=PATIENCE)
        retried.get(timeout=PATIENCE)
        ticket = "with ticket" if shared.settings.locks.startswith("redis:") else "without a ticket"
        assert any(f"published again {ticket}" in worker.log for worker in shared.workers)

    def test_a_task_that_acknowledges_early_is_retried_and_that_is_said_once(self, shared: Shared, key: str) -> None:
        with shared.held_by_a_task(key):
            results = [shared.tasks.early.delay(key) for _ in range(3)]
            for result in results:
                eventually(lambda result=result: result.state == states.RETRY, PATIENCE, "the retry")  # type: ignore[misc]
        for result in results:
            result.get(timeout=PATIENCE)
        assert shared.journal.entries("parked", key=key) == []
        for worker in shared.workers:
            said = worker.log.count("the task is retried instead: acks_late is not set")
            # Once per process.
            assert said <= 2


class TestWhatComesBack:
    # In ZooKeeper a number is no place: who has left the line comes back at its end.
    @pytest.mark.locks_in_redis
    def test_one_that_was_parked_for_too_long_is_published_again_and_keeps_its_ticket(
        self, worker: StartWorker, load: LoadApp, journal: Journal, settings: Settings
    ) -> None:
        conf = {"distlock_max_park": 1.0, "distlock_retry_delay": 0.1, "distlock_retry_backoff_max": 0.1}
        one = worker(APP, conf=conf)
        tasks = load(APP, conf=conf)
        holder = tasks.hold.delay("k")
        journal.wait_for("start", key="k", id=holder.id)
        result = tasks.work.delay("k")

        def ticket() -> Any:
            entries = (tasks.app.control.inspect(timeout=PATIENCE, limit=1)._request("locks") or {}).values()
            return next((e["ticket"] for answer in entries for e in answer["parked"] if e["ticket"] is not None), None)

        first = eventually(ticket, PATIENCE, "the first ticket")
        one.wait_for_log("has been parked for as long as it may")
        one.wait_for_log(f"published again with ticket {first} of lock 'k'")
        journal.wait_for("parked", 2, id=result.id)
        assert eventually(ticket, PATIENCE, "the second ticket") == first
        with redis.Redis.from_url(settings.broker) as client:
            client.rpush("gate:k", "open")
        assert result.get(timeout=PATIENCE) == 0
        assert [run.id for run in journal.runs("k")] == [holder.id, result.id]

    def test_a_parked_copy_of_a_run_that_completed_meanwhile_does_not_run(
        self, worker: StartWorker, load: LoadApp, journal: Journal, settings: Settings
    ) -> None:
        worker(APP)
        tasks = load(APP)
        blocker = tasks.hold.delay("k")
        journal.wait_for("start", key="k", id=blocker.id)
        original = tasks.work.apply_async(("k",), task_id="twice")
        journal.wait_for("parked", id="twice")
        with redis.Redis.from_url(settings.broker) as client:
            # As kombu does with a message that was not acknowledged in time: under its tag, and marked.
            tags = client.hgetall("unacked")
            tag, raw = next((tag, raw) for tag, raw in tags.items() if b"twice" in raw)
            message = json.loads(raw)[0]
            message["properties"]["delivery_tag"] = f"{tag.decode()}-copy"
            message["properties"]["delivery_info"]["redelivered"] = True
            client.lpush("celery", json.dumps(message))
            journal.wait_for("parked", 2, id="twice")
            client.rpush("gate:k", "open")
            original.get(timeout=PATIENCE)
            eventually(lambda: client.hlen("unacked") == 0, PATIENCE, "the copy's acknowledgement")
        assert [run.id for run in journal.runs("k")] == [blocker.id, "twice"]
