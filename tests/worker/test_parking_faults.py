"""What breaks while tasks are parked: nothing is lost, nothing runs twice, nobody is stuck."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from celery_distlock import Lock
from tests.support.journal import Journal
from tests.support.proxy import Proxy
from tests.support.rabbitmq_server import RabbitMQServer
from tests.support.redis_server import RedisServer
from tests.support.servers import Databases
from tests.support.waiting import eventually
from tests.support.workers import LoadApp, Pool, Settings, StartWorker, Worker
from tests.worker.behind import behind
from tests.worker.faults import PATIENCE, RedisBroker
from tests.worker.parked import all_is_well, consume_also, in_line, some
from tests.worker.watching import lock_of

APP = "tests.worker.apps.parking_faults"
TTL = 2.0
CLAIM_TTL = 2.0

# What Celery logs of a broken connection, and of killed and cancelled tasks.
LOST = [r"consumer: Cannot connect", r"Couldn't ack", r"Connection to broker lost", r"Error 111", r"ConnectionError"]
LOST += [r"reset", r"celery/worker/pidbox.py"]
KILLED = ["WorkerLostError", "Terminated", "SystemExit"]

StartProxy = Callable[[RedisServer | RabbitMQServer], Proxy]
StartRedis = Callable[..., RedisServer]


def trials(every_run: int = 1) -> Any:
    """Repeat a test: so many times in every run, twenty times in all."""
    return pytest.mark.parametrize(
        "trial", [pytest.param(n, marks=[pytest.mark.slow] if n >= every_run else []) for n in range(20)]
    )


def both(
    worker: StartWorker, first: dict[str, Any] | None = None, second: dict[str, Any] | None = None, **options: Any
) -> tuple[Worker, Worker]:
    """Start two workers at once, on the queues ``first`` and ``second``."""
    nodes = [
        worker(APP, queues=[queue], wait=False, **{"concurrency": 2, **options, **(more or {})})
        for queue, more in (("first", first), ("second", second))
    ]
    for node in nodes:
        node.wait_ready()
    return nodes[0], nodes[1]


def line_up(
    tasks: Any, journal: Journal, databases: Databases, *waiters: str, holder: str = "second", **options: Any
) -> list[Any]:
    """Have a task hold the key, and others wait for it in this order; return all their results."""
    results = [tasks.hold.apply_async(("a",), queue=holder, **options)]
    journal.wait_for("start", key="a")
    for queue in waiters:
        results.append(tasks.work.apply_async(("a",), queue=queue, **options))
        in_line(journal, results[1:], databases)
    return results


def start_of(journal: Journal, result: Any) -> float:
    """Return when a task's body began, the last time."""
    return float(journal.wait_for("start", id=result.id)[-1]["t"])


def _is_asked_for(lock: Lock, result: Any) -> bool:
    """Return whether a task has been granted the lock, and nobody knows yet which process will run it."""
    return [(holder.get("id"), "pid" in holder, "offered" in holder) for holder in lock.holders()] == [
        (result.id, False, False)
    ]


class TestSomethingDies:
    @trials()
    def test_the_child_that_holds(
        self, trial: int, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
    ) -> None:
        nodes = both(worker, may_log=KILLED)
        tasks = load(APP)
        results = line_up(tasks, journal, databases, "first", "second")
        (run,) = journal.runs("a")
        # Noted before: on a busy machine the next one may have begun by the time that this process goes on. (That it
        # does not begin before the death is tested with the pools.)
        died = time.monotonic()
        os.kill(run.pid, signal.SIGKILL)
        assert start_of(journal, results[1]) - died < 1.0
        journal.record("died", dead=run.pid, t=died)
        journal.record("go", key="a")
        all_is_well(tasks, results, journal, databases, nodes, runs_again=results[:1])

    # Only there the store can be asked without waiting.
    @pytest.mark.locks_in_redis
    def test_the_child_that_a_lease_waits_for(
        self, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
    ) -> None:
        nodes = both(worker, {"may_log": KILLED, "concurrency": 1})
        tasks = load(APP)
        # Nobody is to wait for this ttl.
        results = line_up(tasks, journal, databases, "first", "second", lock={"ttl": 600.0})
        (child,) = nodes[0].children()
        os.kill(child, signal.SIGSTOP)
        journal.record("go", key="a")
        lock = lock_of(tasks, "a")
        eventually(lambda: _is_asked_for(lock, results[1]), PATIENCE, "the lease that was asked for on the way")
        died = time.monotonic()
        os.kill(child, signal.SIGKILL)
        assert start_of(journal, results[2]) - died < 1.0
        all_is_well(tasks, results, journal, databases, nodes)

    @pytest.mark.locks_in_redis
    def test_the_child_that_has_come_too_late_for_a_lease_that_waited_for_it(
        self, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
    ) -> None:
        nodes = both(worker, {"may_log": KILLED, "concurrency": 1})
        tasks = load(APP)
        # Nobody is to wait for this ttl.
        results = line_up(tasks, journal, databases, lock={"ttl": 600.0})
        results.append(tasks.work.apply_async(("a", 5.0), queue="first", lock={"ttl": 600.0}))
        in_line(journal, results[1:], databases)
        (child,) = nodes[0].children()
        os.kill(child, signal.SIGSTOP)
        journal.record("go", key="a")
        lock = lock_of(tasks, "a")
        eventually(lambda: _is_asked_for(lock, results[1]), PATIENCE, "the lease that was asked for on the way")
        eventually(lambda: not lock.holders(), PATIENCE, "its return")
        os.kill(child, signal.SIGCONT)
        start_of(journal, results[1])
        results.append(tasks.work.apply_async(("a",), queue="second", lock={"ttl": 600.0}))
        in_line(journal, results[2:], databases)
        died = time.monotonic()
        os.kill(child, signal.SIGKILL)
        assert start_of(journal, results[2]) - died < 1.0
        journal.record("died", dead=child, t=died)
        all_is_well(tasks, results, journal, databases, nodes, runs_again=[results[1]])

    @trials()
    def test_the_worker_that_holds(
        self, trial: int, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
    ) -> None:
        first, second = both(worker)
        tasks = load(APP)
        results = line_up(tasks, journal, databases, "first", "second", "first")
        (run,) = journal.runs("a")
        died = time.monotonic()
        second.kill_all()
        journal.record("died", dead=run.pid, t=died)
        assert start_of(journal, results[1]) - died < TTL + 1.0
        consume_also(tasks, first, "second")
        journal.record("go", key="a")
        all_is_well(tasks, results, journal, databases, [first], runs_again=results[:1])

    @trials()
    def test_the_worker_that_waits(
        self, trial: int, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
    ) -> None:
        first, second = both(worker)
        tasks = load(APP)
        results = line_up(tasks, journal, databases, "first", "first", "second", "first")
        first.kill_all()
        journal.record("go", key="a")
        end, *_ = journal.wait_for("end", key="a")
        assert start_of(journal, results[3]) - end["t"] < CLAIM_TTL + 1.0
        consume_also(tasks, second, "first")
        all_is_well(tasks, results, journal, databases, [second])


class TestAWorkerIsShutDown:
    @pytest.mark.parametrize("how", ["warm", pytest.param("cold", marks=pytest.mark.slow)])
    @some("prefork")
    def test_its_places_are_given_up_at_once_and_its_messages_go_elsewhere(
        self, how: str, pool: Pool, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
    ) -> None:
        first, second = both(worker, {"pool": pool, "may_log": KILLED, "concurrency": 1 if pool == "solo" else 2})
        tasks = load(APP)
        if pool == "prefork" or (how == "warm" and pool != "solo"):
            # It keeps the worker from ending: places are given up before the pool has drained. (A task that runs in a
            # thread or greenlet cannot be cancelled, and Celery breaks off when it tries.)
            tasks.busy.apply_async(("slot",), queue="first")
            journal.wait_for("start", key="slot")
        results = line_up(tasks, journal, databases, "first", "first", "second", "first")
        if how == "warm":
            first.stop_warm(wait=False)
            first.wait_for_log("Warm shutdown")
        else:
            first.stop_cold(wait=False)
            first.wait_for_log("Cold shutdown")
        in_line_of_one(databases)
        journal.record("go", key="a")
        end, *_ = journal.wait_for("end", key="a")
        assert start_of(journal, results[3]) - end["t"] < 1.0
        journal.record("go", key="slot")
        first.process.wait(30)
        consume_also(tasks, second, "first")
        all_is_well(tasks, results, journal, databases, [second])

    @trials(0)
    def test_in_the_instant_of_a_hand_over(
        self, trial: int, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
    ) -> None:
        first, second = both(worker, {"may_log": KILLED}, conf={"distlock_ttl": 60.0})
        tasks = load(APP)
        # Longer than anybody waits: what was handed over and not begun must be given back.
        results = line_up(tasks, journal, databases, "first", "second", lock={"ttl": 60.0})
        journal.record("go", key="a")
        journal.wait_for("end", key="a")
        time.sleep(0.0005 * (trial % 10))
        (first.stop_warm if trial % 2 == 0 else first.stop_cold)(wait=False)
        with contextlib.suppress(AssertionError):
            first.process.wait(10)
        # A pool that was given a task in the very moment waits for its child for ever, now and then.
        first.kill_all()
        results[2].get(timeout=PATIENCE)
        consume_also(tasks, second, "first")
        cancelled = results[1]
        if not _settled(cancelled, second):
            (run,) = [run for run in journal.runs("a") if run.id == cancelled.id]
            assert run.error is None, "its work was not done"
            results.remove(cancelled)
        all_is_well(tasks, results, journal, databases, [second], runs_again=[cancelled])


def _settled(result: Any, worker: Worker) -> bool:
    """Wait until a task that was cancelled has run; tell whether it has a result.

    A process that is told to end between the end of the body and the storing of the result leaves none, and the next
    delivery says so.
    """
    lost = f"{result.id}]: its worker died after the work was done"
    eventually(lambda: result.ready() or lost in worker.log, PATIENCE, f"the end of {result.id}")
    return bool(result.ready())


def in_line_of_one(databases: Databases) -> None:
    """Wait until one task only stands in line."""
    with behind(databases.locks) as store:
        eventually(lambda: store.waiting("a") == 1, PATIENCE, "a line of one")


class TestTheBrokerIsLost:
    @some("prefork")
    @pytest.mark.parametrize("server", [pytest.param("redis", marks=pytest.mark.slow), "rabbitmq"])
    def test_while_tasks_are_parked(
        self, server: str, pool: Pool, worker: StartWorker, load: LoadApp, journal: Journal, settings: Settings,
        databases: Databases, proxy: StartProxy, request: pytest.FixtureRequest,
    ) -> None:  # fmt: skip
        settings, through, between = _through(server, settings, databases, proxy, request)
        first, second = both(worker, {"settings": through, "pool": pool, "may_log": LOST}, {"settings": settings})
        tasks = load(APP, settings)
        results = line_up(tasks, journal, databases, "first", "first", "second", "first")
        between.cut()
        first.wait_for_log(r"(?s)ready\..*Connected to")
        journal.record("go", key="a")
        end, *_ = journal.wait_for("end", key="a")
        assert start_of(journal, results[3]) - end["t"] < CLAIM_TTL + 1.0
        all_is_well(tasks, results, journal, databases, (first, second))

    @pytest.mark.parametrize("server", ["redis", pytest.param("rabbitmq", marks=pytest.mark.slow)])
    @trials()
    def test_in_the_instant_of_a_hand_over(
        self, trial: int, server: str, worker: StartWorker, load: LoadApp, journal: Journal, settings: Settings,
        databases: Databases, proxy: StartProxy, request: pytest.FixtureRequest,
    ) -> None:  # fmt: skip
        settings, through, between = _through(server, settings, databases, proxy, request)
        nodes = both(worker, {"settings": through, "may_log": LOST}, {"settings": settings})
        tasks = load(APP, settings)
        results = line_up(tasks, journal, databases, "first", "second", "first", lock={"ttl": 60.0})
        journal.record("go", key="a")
        journal.wait_for("end", key="a")
        time.sleep(0.0005 * (trial % 10))
        between.cut()
        all_is_well(tasks, results, journal, databases, nodes)

    def test_the_place_of_one_that_has_not_begun_is_given_to_the_next(
        self, worker: StartWorker, load: LoadApp, journal: Journal, settings: Settings, databases: Databases,
        proxy: StartProxy,
    ) -> None:  # fmt: skip
        _, through, between = _through("redis", settings, databases, proxy)
        nodes = both(worker, {"settings": through, "may_log": LOST, "concurrency": 1})
        tasks = load(APP)
        # Nobody is to wait for this ttl.
        results = line_up(tasks, journal, databases, "first", "second", lock={"ttl": 600.0})
        (child,) = nodes[0].children()
        os.kill(child, signal.SIGSTOP)
        try:
            journal.record("go", key="a")
            (woken,) = journal.wait_for("woken", id=results[1].id)
            between.cut()
            assert start_of(journal, results[2]) - woken["t"] < 3.0
            results[2].get(timeout=PATIENCE)
        finally:
            os.kill(child, signal.SIGCONT)
        all_is_well(tasks, results, journal, databases, nodes)
        RedisBroker(tasks.app, "first").wait_until_idle()


def _through(
    server: str, settings: Settings, databases: Databases, proxy: StartProxy, request: Any = None
) -> tuple[Settings, Settings, Proxy]:
    """Return the settings for a broker, those for it behind a proxy, and that."""
    if server == "redis":
        between = proxy(databases.server)
    else:
        settings = settings.with_broker(request.getfixturevalue("rabbitmq_url"))
        settings = settings.with_conf({"broker_transport_options": {}})
        between = proxy(request.getfixturevalue("rabbitmq"))
    return settings, settings.with_broker(between.url(settings.broker)), between


class TestTheStore:
    """Of its own: it is broken."""

    @pytest.fixture
    def store(self, private_redis: StartRedis) -> RedisServer:
        # Whatever it says, it has written down.
        return private_redis(options=["--appendonly", "yes", "--appendfsync", "always"])

    @pytest.fixture
    def databases(self, databases: Databases, store: RedisServer) -> Databases:
        return replace(databases, server=store, locks=store.url)

    @pytest.mark.parametrize("data", [pytest.param("kept", marks=pytest.mark.slow), "lost"])
    @trials()
    def test_restarts(
        self, trial: int, data: str, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
    ) -> None:
        nodes = both(worker)
        tasks = load(APP)
        results = line_up(tasks, journal, databases, "first", "second", "first", "second")
        if data == "lost":
            _lose_data(databases.server)
        else:
            databases.server.restart()
        in_line(journal, results[1:], databases)
        journal.record("go", key="a")
        end, *_ = journal.wait_for("end", key="a")
        # Whoever waited for a holder that the store has forgotten gives him the time of a ttl to come back.
        assert start_of(journal, results[1]) - end["t"] < (TTL + 1.0 if data == "lost" else 1.5)
        all_is_well(tasks, results, journal, databases, nodes)
        assert [run.id for run in journal.runs("a")] == [result.id for result in results]

    @trials(0)
    def test_is_away_in_the_instant_of_a_hand_over(
        self, trial: int, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
    ) -> None:
        nodes = both(worker)
        tasks = load(APP)
        results = line_up(tasks, journal, databases, "first", "second", "first", "second")
        journal.record("go", key="a")
        journal.wait_for("end", key="a")
        time.sleep(0.0005 * (trial % 10))
        databases.server.restart()
        all_is_well(tasks, results, journal, databases, nodes)

    @pytest.mark.slow
    def test_is_silent_for_longer_than_the_ttl(
        self, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
    ) -> None:
        nodes = both(worker)
        tasks = load(APP)
        results = line_up(tasks, journal, databases, "first", "second", "first", "second")
        databases.server.freeze()
        # The silence itself is the subject.
        time.sleep(3.0)
        databases.server.thaw()
        in_line(journal, results[1:], databases)
        journal.record("go", key="a")
        all_is_well(tasks, results, journal, databases, nodes)
        assert [run.id for run in journal.runs("a")] == [result.id for result in results]

    @trials()
    def test_cuts_the_connection_on_which_hints_come(
        self, trial: int, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
    ) -> None:
        nodes = both(worker)
        tasks = load(APP)
        results = line_up(tasks, journal, databases, "first", "second", "first", "second")
        with databases.server.client() as client:
            journal.record("go", key="a")
            journal.wait_for("end", count=1 + trial % 3, key="a")
            client.client_kill_filter(_type="pubsub")
        all_is_well(tasks, results, journal, databases, nodes)
        assert [run.id for run in journal.runs("a")] == [result.id for result in results]
        _nobody_waited_longer_than(1.0, journal)

    @pytest.mark.slow
    @pytest.mark.parametrize("pool", ["prefork", "gevent"])
    def test_may_not_give_hints(
        self, pool: Pool, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
    ) -> None:
        with databases.server.client() as client:
            client.execute_command("ACL", "SETUSER", "default", "-publish")
            nodes = both(worker, pool=pool)
            tasks = load(APP)
            results = line_up(tasks, journal, databases, "first", "second", "first", "second")
            journal.record("go", key="a")
            all_is_well(tasks, results, journal, databases, nodes)
        assert [run.id for run in journal.runs("a")] == [result.id for result in results]
        _nobody_waited_longer_than(1.0, journal)


def _lose_data(server: RedisServer) -> None:
    with server.client() as client:
        client.config_set("appendonly", "no")
    shutil.rmtree(server.folder / "appendonlydir")
    server.restart()


def _nobody_waited_longer_than(seconds: float, journal: Journal) -> None:
    runs = journal.runs("a")
    waits = [following.start - run.end for run, following in itertools.pairwise(runs)]
    # A third of the claim ttl, and a moment.
    assert max(waits) < seconds, waits


class TestAWorkerStops:
    @some("prefork")
    def test_for_longer_than_its_places_are_kept(
        self, pool: Pool, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
    ) -> None:
        first, second = both(worker, {"pool": pool})
        tasks = load(APP)
        results = line_up(tasks, journal, databases, "first", "first", "second", "second")
        first.freeze()
        journal.record("go", key="a")
        end, *_ = journal.wait_for("end", key="a")
        assert start_of(journal, results[3]) - end["t"] < CLAIM_TTL + 1.0
        first.thaw()
        all_is_well(tasks, results, journal, databases, (first, second))

    @trials(0)
    def test_in_the_instant_of_a_hand_over(
        self, trial: int, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
    ) -> None:
        first, second = both(worker, {"may_log": KILLED})
        tasks = load(APP)
        results = line_up(tasks, journal, databases, "first", "second", "first", "second")
        journal.record("go", key="a")
        journal.wait_for("end", key="a")
        time.sleep(0.0005 * (trial % 10))
        first.freeze(main_only=True)
        results[2].get(timeout=PATIENCE)
        first.thaw()
        all_is_well(tasks, results, journal, databases, (first, second))

    # In ZooKeeper a number is no place: who has lost his stands at the end.
    @pytest.mark.locks_in_redis
    def test_whose_process_asks_too_late_for_what_it_was_offered(
        self, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
    ) -> None:
        nodes = both(worker, {"concurrency": 1})
        tasks = load(APP)
        # Nobody is to wait for this ttl: neither an offer nor a lease that waits for its executor lasts as long.
        results = line_up(tasks, journal, databases, "first", lock={"ttl": 600.0})
        # They stand behind it.
        results.append(tasks.work.apply_async(("a", 3.0), queue="second"))
        in_line(journal, results[1:], databases)
        results.append(tasks.work.apply_async(("a",), queue="second"))
        in_line(journal, results[1:], databases)
        (child,) = nodes[0].children()
        os.kill(child, signal.SIGSTOP)
        try:
            journal.record("go", key="a")
            journal.wait_for("woken", id=results[1].id)
            end, *_ = journal.wait_for("end", key="a")
            assert start_of(journal, results[2]) - end["t"] < CLAIM_TTL + 1.0
        finally:
            os.kill(child, signal.SIGCONT)
        # Refused, it is parked again, and stands where it stood.
        journal.wait_for("parked", 2, id=results[1].id)
        all_is_well(tasks, results, journal, databases, nodes)
        runs = [run.id for run in journal.runs("a")]
        assert runs == [results[number].id for number in (0, 2, 1, 3)]

    @pytest.mark.parametrize("pool", ["prefork", pytest.param("threads", marks=pytest.mark.slow)])
    def test_whose_consumer_is_busy_for_long_when_a_turn_comes(
        self, pool: Pool, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
    ) -> None:
        nodes = both(worker, {"pool": pool, "concurrency": 2, "conf": {"worker_prefetch_multiplier": 4}})
        tasks = load(APP)
        results = line_up(tasks, journal, databases, "first")
        jam = tasks.jam.apply_async(("jam",), queue="first")
        journal.wait_for("jammed", key="jam")
        journal.record("go", key="a")
        with behind(databases.locks) as store:
            # Nobody is in the store's line any more, and so nobody listens.
            eventually(lambda: not store.held() and not store.listening(), PATIENCE, "a closed line")
        journal.record("go", key="jam")
        assert jam.get(timeout=PATIENCE) == "jam"
        all_is_well(tasks, results, journal, databases, nodes)
