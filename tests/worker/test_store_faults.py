"""The lock store stops, dies, forgets, or does not answer, while real workers use it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from celery_distlock import Lock, LockLost
from tests.support.journal import Journal
from tests.support.proxy import Proxy
from tests.support.rabbitmq_server import RabbitMQServer
from tests.support.redis_server import RedisServer
from tests.support.servers import Databases
from tests.support.waiting import eventually
from tests.support.workers import LoadApp, Settings, StartWorker
from tests.worker.behind import TOMBSTONES, assert_nothing_left
from tests.worker.faults import PATIENCE
from tests.worker.watching import Death

APP = "tests.worker.apps.faults_store"

StartProxy = Callable[[RedisServer | RabbitMQServer], Proxy]
StartRedis = Callable[..., RedisServer]


@pytest.fixture
def store(private_redis: StartRedis) -> RedisServer:
    """A server for locks alone, which the test may break."""
    return private_redis()


@pytest.fixture
def settings(databases: Databases, journal: Journal, store: RedisServer) -> Settings:
    """Broker and results as ever; the locks elsewhere."""
    return Settings(databases.broker, databases.results, store.url, journal.path)


@pytest.fixture
def between(proxy: StartProxy, store: RedisServer) -> Proxy:
    """What stands between workers and store where a test asks for it."""
    return proxy(store)


def through(between: Proxy, settings: Settings) -> Settings:
    return replace(settings, locks=between.url(settings.locks))


def know_scripts(tasks: Any) -> None:
    """Have the server load the scripts; else the first reply that is lost would only say that it does not know them."""
    assert tasks.brief.delay("before").get(timeout=PATIENCE) == "before"


class TestAStoreThatStopsForThreeSeconds:
    """Leases of one second run out meanwhile; nobody else may be let in, and nobody may be thrown out."""

    def test_kills_no_task_starts_none_unlocked_and_loses_none(
        self, worker: StartWorker, load: LoadApp, journal: Journal, store: RedisServer
    ) -> None:
        nodes = [worker(APP, concurrency=3) for _ in range(2)]
        tasks = load(APP)
        keys = ("a", "b")
        holders = {key: tasks.work.delay(key) for key in keys}
        for key in keys:
            journal.wait_for("held", key=key)
        contenders = {key: [tasks.work.delay(key) for _ in range(2)] for key in keys}
        for node in nodes:
            node.wait_for_log(r"\] retry: ")
        before = len(journal.entries("start"))
        assert before == len(keys)

        store.freeze()
        stopped = time.monotonic()
        journal.wait_for("not held", count=len(keys))
        # Longer than an operation waits: the warden's renewals and the contenders' requests have failed, too.
        journal.wait_for("unsure", count=len(keys))
        for node in nodes:
            node.wait_for_log(r"will be retried: ")
        # Three seconds are the subject.
        time.sleep(max(0.0, stopped + 3.0 - time.monotonic()))
        store.thaw()

        for key in keys:
            journal.wait_for("held", count=2, key=key)
        assert len(journal.entries("start")) == before
        for key in keys:
            journal.record("go", key=key)
        for key in keys:
            for result in (holders[key], *contenders[key]):
                assert result.get(timeout=PATIENCE) == key
        for key in keys:
            runs = journal.runs(key)
            assert sorted(str(run.id) for run in runs) == sorted(r.id for r in (holders[key], *contenders[key]))
            assert [run.error for run in runs] == [None] * 3
            assert None not in {run.fence for run in runs}
        assert journal.overlaps() == []
        assert journal.entries("lost") == []
        assert {entry["id"] for entry in journal.entries("unsure")} == {result.id for result in holders.values()}


class TestAStoreThatLostItsData:
    def test_learns_of_the_running_task_again_and_keeps_others_out(
        self, worker: StartWorker, load: LoadApp, journal: Journal, store: RedisServer
    ) -> None:
        node = worker(APP, concurrency=2)
        tasks = load(APP)
        result = tasks.hold.delay("a")
        (start,) = journal.wait_for("start", key="a")
        store.restart()
        node.wait_for_log(rf"\[{result.id}\]: lock 'a' was entered again: its store had lost its data")
        lock = Lock("a", app=tasks.app)
        assert [(holder["fence"], holder["owner"]) for holder in lock.holders()] == [(start["fence"], start["owner"])]
        assert not lock.acquire(blocking=False)
        other = tasks.brief.delay("a")
        node.wait_for_log(rf"{other.id}\] retry")
        journal.record("go", key="a")
        assert [each.get(timeout=PATIENCE) for each in (result, other)] == ["a", "a"]
        first, second = journal.runs("a")
        assert first.end <= second.start
        assert first.fence is not None
        assert second.fence is not None
        assert second.fence > first.fence
        assert journal.entries("lost") == []

    def test_and_has_given_the_key_to_somebody_else_ends_the_task(
        self, worker: StartWorker, load: LoadApp, journal: Journal, store: RedisServer
    ) -> None:
        node = worker(APP, concurrency=1, may_log=["LockLost"])
        tasks = load(APP)
        result = tasks.hold.delay("a")
        (start,) = journal.wait_for("start", key="a")
        # Nobody speaks for the task when the key is asked for.
        node.freeze(main_only=True)
        store.restart()
        with Lock("a", url=store.url):
            death = Death(start["pid"])
            node.thaw()
            death.wait()
            with pytest.raises(LockLost):
                result.get(timeout=PATIENCE)
        assert [entry["id"] for entry in journal.entries("lost")] == [result.id]
        assert not journal.entries("end", key="a")


class TestTheStoreIsAwayWhenTheTaskEnds:
    def test_the_result_is_not_delayed_and_the_release_is_made_up_for(
        self, worker: StartWorker, load: LoadApp, journal: Journal, store: RedisServer, settings: Settings,
        between: Proxy,
    ) -> None:  # fmt: skip
        node = worker(APP, through(between, settings), concurrency=1)
        tasks = load(APP)
        # A ttl that nobody waits for.
        result = tasks.hold.apply_async(("a",), lock={"ttl": 600.0})
        journal.wait_for("start", key="a")
        between.refuse()
        between.cut()
        journal.record("go", key="a")
        assert result.get(timeout=5) == "a"
        assert result.state == "SUCCESS"
        node.wait_for_log(r"lock 'a' will be released later")
        lock = Lock("a", url=store.url)
        assert lock.locked()
        between.accept()
        assert lock.acquire(timeout=5)
        lock.release()
        assert_nothing_left(store.url)

    def test_the_key_is_free_when_the_ttl_has_passed(
        self, worker: StartWorker, load: LoadApp, journal: Journal, store: RedisServer, settings: Settings,
        between: Proxy,
    ) -> None:  # fmt: skip
        first = worker(APP, through(between, settings), concurrency=1)
        worker(APP, concurrency=1, queues=["second"])
        tasks = load(APP)
        result = tasks.hold.delay("a")
        journal.wait_for("start", key="a")
        between.refuse()
        between.cut()
        journal.record("go", key="a")
        assert result.get(timeout=5) == "a"
        (end,) = journal.wait_for("end", key="a")
        assert tasks.brief.apply_async(("a",), queue="second").get(timeout=PATIENCE) == "a"
        runs = journal.runs("a")
        assert len(runs) == 2
        # The ttl is two seconds, from its last renewal on.
        assert runs[1].start - end["t"] < 2.0 + 1.0
        assert first.alive


def test_scripts_that_the_server_forgets_are_loaded_again(
    worker: StartWorker, load: LoadApp, journal: Journal, store: RedisServer
) -> None:
    worker(APP, concurrency=1)
    tasks = load(APP)
    result = tasks.work.apply_async(("a",), lock={"ttl": 2.0})
    journal.wait_for("held", key="a")
    with store.client() as client:
        renewals = _calls(store)
        client.script_flush()
        eventually(lambda: _calls(store) > renewals + 2, PATIENCE, "renewals after the flush")
        client.script_flush()
    journal.record("go", key="a")
    assert result.get(timeout=PATIENCE) == "a"
    assert not journal.entries("not held", key="a")
    assert tasks.brief.delay("a").get(timeout=PATIENCE) == "a"
    assert_nothing_left(store.url)


def test_connections_that_the_server_closes_are_made_anew(
    worker: StartWorker, load: LoadApp, journal: Journal, store: RedisServer
) -> None:
    node = worker(APP, concurrency=1)
    tasks = load(APP)
    result = tasks.work.apply_async(("a",), lock={"ttl": 2.0})
    journal.wait_for("held", key="a")
    with store.client() as client:
        for _ in range(2):
            renewals = _calls(store)
            client.client_kill_filter(_type="normal", skipme=True)
            eventually(lambda seen=renewals: _calls(store) > seen + 1, PATIENCE, "renewals on new connections")
        client.client_kill_filter(_type="normal", skipme=True)
    journal.record("go", key="a")
    assert result.get(timeout=PATIENCE) == "a"
    assert not journal.entries("not held", key="a")
    assert "released later" not in node.log
    assert tasks.brief.delay("a").get(timeout=PATIENCE) == "a"
    assert_nothing_left(store.url)


class TestRepliesThatAreLost:
    """The server has done what it was asked; nobody heard."""

    def test_an_acquire_is_answered_the_second_time_with_the_same_lease(
        self, worker: StartWorker, load: LoadApp, journal: Journal, store: RedisServer, settings: Settings,
        between: Proxy,
    ) -> None:  # fmt: skip
        worker(APP, through(between, settings), concurrency=1)
        tasks = load(APP)
        know_scripts(tasks)
        fault = between.swallow_reply(lambda data: b":h:a\r\n" in data)
        assert tasks.brief.delay("a").get(timeout=PATIENCE) == "a"
        fault.wait()
        (run,) = journal.runs("a")
        # It was granted once: the last fence of its shard is this one's.
        assert run.fence in _last_fences(store)
        assert_nothing_left(store.url)

    def test_an_acquire_that_is_never_answered_leaves_no_orphan(
        self, worker: StartWorker, load: LoadApp, journal: Journal, store: RedisServer, settings: Settings,
        between: Proxy,
    ) -> None:  # fmt: skip
        node = worker(APP, through(between, settings), concurrency=1)
        tasks = load(APP)
        know_scripts(tasks)
        faults = [between.swallow_reply(lambda data: b":h:a\r\n" in data) for _ in range(2)]
        result = tasks.brief.apply_async(("a",), lock={"ttl": 600.0})
        for fault in faults:
            fault.wait()
            assert b"EVALSHA" in fault.request
        # Granted to an owner who never knew; it would keep the retry out for ten minutes.
        node.wait_for_log(rf"\[{result.id}\] will be retried")
        assert result.get(timeout=PATIENCE) == "a"
        (run,) = journal.runs("a")
        assert run.id == result.id
        lock = Lock("a", url=store.url)
        eventually(lambda: not lock.holders(), PATIENCE, "a free key")
        # The owner that must not come back is remembered for a while.
        assert_nothing_left(store.url, but=[TOMBSTONES])

    def test_a_release_is_told_again(
        self, worker: StartWorker, load: LoadApp, journal: Journal, store: RedisServer, settings: Settings,
        between: Proxy,
    ) -> None:  # fmt: skip
        node = worker(APP, through(between, settings), concurrency=1)
        tasks = load(APP)
        know_scripts(tasks)
        result = tasks.hold.apply_async(("a",), lock={"ttl": 600.0})
        journal.wait_for("start", key="a")
        fault = between.swallow_reply(lambda data: b":h:a\r\n" in data)
        journal.record("go", key="a")
        assert result.get(timeout=PATIENCE) == "a"
        fault.wait()
        journal.wait_for("released", key="a", id=result.id)
        assert_nothing_left(store.url)
        assert "no longer ours" not in node.log

    def test_a_release_that_is_never_answered_is_made_up_for(
        self, worker: StartWorker, load: LoadApp, journal: Journal, store: RedisServer, settings: Settings,
        between: Proxy,
    ) -> None:  # fmt: skip
        node = worker(APP, through(between, settings), concurrency=1)
        tasks = load(APP)
        know_scripts(tasks)
        result = tasks.hold.apply_async(("a",), lock={"ttl": 600.0})
        journal.wait_for("start", key="a")
        faults = [between.swallow_request(lambda data: b":h:a\r\n" in data) for _ in range(2)]
        journal.record("go", key="a")
        assert result.get(timeout=PATIENCE) == "a"
        for fault in faults:
            fault.wait()
        node.wait_for_log(r"lock 'a' will be released later")
        assert_nothing_left(store.url)

    def test_renewals_unheard_for_longer_than_the_ttl_make_the_lock_unsure_until_one_is_answered(
        self, worker: StartWorker, load: LoadApp, journal: Journal, store: RedisServer, settings: Settings,
        between: Proxy,
    ) -> None:  # fmt: skip
        worker(APP, through(between, settings), concurrency=1)
        tasks = load(APP)
        know_scripts(tasks)
        result = tasks.work.delay("a")
        journal.wait_for("held", key="a")
        between.pause("client")
        journal.wait_for("not held", key="a")
        (unsure,) = journal.wait_for("unsure", key="a")
        assert unsure["id"] == result.id
        between.resume()
        journal.wait_for("held", count=2, key="a")
        journal.record("go", key="a")
        assert result.get(timeout=PATIENCE) == "a"
        assert len(journal.entries("start", key="a")) == 1
        assert not journal.entries("lost")
        assert_nothing_left(store.url)


def _calls(server: RedisServer) -> int:
    """Return how often scripts were called on a server."""
    with server.client() as client:
        stats: dict[str, Any] = client.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {}).get("calls", 0))


def _last_fences(server: RedisServer) -> list[int]:
    """Return the last fence of each shard."""
    with server.client() as client:
        return [int(str(client.hget(name, "fence"))) for name in client.scan_iter("*:meta")]
