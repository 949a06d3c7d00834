"""The worker's main process keeps leases alive, whatever their executors do and however long the store is silent."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from celery_distlock import LockLost
from tests.support.journal import Journal
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.servers import Databases
from tests.support.waiting import eventually
from tests.support.workers import LoadApp, Pool, Settings, StartWorker
from tests.worker.behind import TOMBSTONES, assert_nothing_left
from tests.worker.watching import (
    Death,
    assert_free_at_once,
    excluded_until_its_end,
    first_grant,
    lock_of,
    seen_held,
)

ENDINGS = "tests.worker.apps.endings"
MAY_LOG = ["WorkerLostError", "Terminated", "SystemExit", "LockLost"]
#: Seconds. A third of it is the interval of renewals: the rest is what a busy machine may take for one.
TTL = 3.0
#: Seconds after which somebody else would have been granted what nobody renews.
LONGER = TTL + 1.0


def _with_store(settings: Settings, url: str) -> Settings:
    return Settings(settings.broker, settings.results, url, settings.journal)


# Longer than the ttl.


def test_a_body_of_three_times_its_ttl_keeps_its_key(worker: StartWorker, load: LoadApp, journal: Journal) -> None:
    worker(ENDINGS, conf={"distlock_ttl": TTL})
    tasks = load(ENDINGS)
    result = tasks.last.delay("a", 3 * TTL)
    excluded_until_its_end(tasks, journal, "a")
    assert result.get(timeout=5) == "a"
    assert journal.entries("lost") == journal.entries("unsure") == []


# For solo see the regression test of a worker whose only thread is busy.
@pytest.mark.parametrize("pool", ["threads", "gevent", pytest.param("eventlet", marks=pytest.mark.slow)])
def test_leases_are_renewed_on_pools_without_processes(
    pool: Pool, worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    worker(ENDINGS, pool=pool, conf={"distlock_ttl": TTL})
    tasks = load(ENDINGS)
    result = tasks.last.delay("a", LONGER)
    excluded_until_its_end(tasks, journal, "a")
    assert result.get(timeout=5) == "a"
    assert journal.entries("lost") == journal.entries("unsure") == []


def test_a_body_that_keeps_the_gil_keeps_its_key(worker: StartWorker, load: LoadApp, journal: Journal) -> None:
    worker(ENDINGS, conf={"distlock_ttl": TTL})
    tasks = load(ENDINGS)
    result = tasks.keep_the_gil.delay("a", LONGER)
    excluded_until_its_end(tasks, journal, "a")
    assert result.get(timeout=5) == "a"
    assert journal.entries("lost") == journal.entries("unsure") == []


def test_a_task_with_a_request_class_of_its_own_keeps_its_lease_alive_in_its_executor(
    worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    worker(ENDINGS, conf={"distlock_ttl": TTL})
    tasks = load(ENDINGS)
    result = tasks.last_with_own_request.delay("a", LONGER)
    excluded_until_its_end(tasks, journal, "a")
    assert result.get(timeout=5) == "OwnRequest"
    assert [entry["supervised"] for entry in journal.entries("own")] == [False]
    assert_nothing_left(databases.locks)


def test_two_hundred_leases_are_renewed_in_one_batch_per_interval(
    worker: StartWorker, load: LoadApp, journal: Journal, settings: Settings, private_redis: Callable[..., RedisServer]
) -> None:
    count, ttl = 200, 4.5
    server = private_redis()
    alone = _with_store(settings, server.url)
    worker(f"{ENDINGS}_batches", alone, pool="threads", concurrency=count + 1, conf={"distlock_ttl": ttl})
    tasks = load(ENDINGS, alone)
    for number in range(count):
        tasks.hold_with_others.delay(f"key-{number}")
    starts = journal.wait_for("start", count=count)
    # Those that start within half an interval are renewed together; on a slow machine there may be more parties.
    parties = 1 + int((starts[-1]["t"] - starts[0]["t"]) / (ttl / 3 / 2))
    entries = journal.wait_until(
        lambda found: sum(entry["leases"] for entry in found) >= 2 * count, 40, "two renewals of everything", "batch"
    )
    batches = [entry["leases"] for entry in entries]
    assert len(batches) <= parties * math.ceil(sum(batches) / count), batches

    with server.client() as client:

        def renewals() -> int:
            # A server that does not know a script yet has failed to call it.
            told = client.info("commandstats")["cmdstat_evalsha"]
            return int(told["calls"]) - int(told["failed_calls"]) - count

        eventually(lambda: renewals() >= sum(batches), 20, "the renewal of each")
    tasks.let_go.delay()
    journal.wait_for("released", count=count)
    assert_nothing_left(server.url)


# A store that is silent.


def test_a_store_that_is_silent_for_three_ttls_kills_nothing_and_loses_nothing(
    worker: StartWorker, load: LoadApp, journal: Journal, settings: Settings, private_redis: Callable[..., RedisServer]
) -> None:
    server = private_redis()
    alone = _with_store(settings, server.url)
    node = worker(ENDINGS, alone, conf={"distlock_ttl": 1.0}, may_log=["StoreUnavailable"])
    tasks = load(ENDINGS, alone)
    result = tasks.hold.delay("a")
    (start,) = journal.wait_for("start", key="a")
    server.freeze()
    (unsure,) = journal.wait_for("unsure", timeout=10, key="a")
    assert (unsure["task_id"], unsure["owner"], unsure["pid"]) == (result.id, start["owner"], node.pid)
    eventually(lambda: journal.entries("start")[0]["t"] + 3.0 < time.monotonic(), 10, "three ttls of silence")
    server.thaw()
    # Its renewal has been waiting in the server's socket beside this.
    seen_held(lock_of(tasks, "a"), 2.0)
    journal.record("go", key="a")
    assert result.get(timeout=10) == "a"
    assert_free_at_once(tasks, "a")
    assert journal.entries("lost") == []
    assert [run.error for run in journal.runs("a")][:1] == [None]
    assert_nothing_left(server.url)


def test_a_body_sees_that_its_lock_is_unsure_while_the_store_is_silent(
    worker: StartWorker, load: LoadApp, journal: Journal, settings: Settings, private_redis: Callable[..., RedisServer]
) -> None:
    server = private_redis()
    alone = _with_store(settings, server.url)
    worker(ENDINGS, alone, conf={"distlock_ttl": 0.6}, may_log=["LockLost"])
    tasks = load(ENDINGS, alone)
    result = tasks.hold_and_check.delay("a")
    journal.wait_for("start", key="a")
    server.freeze()
    (end,) = journal.wait_for("end", key="a")
    assert end["error"] == "LockLost"
    server.thaw()
    with pytest.raises(LockLost, match="silent"):
        result.get(timeout=10)
    assert_free_at_once(tasks, "a")


def test_a_child_that_must_be_sure_is_killed_before_its_deadline(
    worker: StartWorker, load: LoadApp, journal: Journal, settings: Settings, private_redis: Callable[..., RedisServer]
) -> None:
    # A tenth of it is left when the child is killed: more than a second.
    ttl = 12.0
    server = private_redis()
    alone = _with_store(settings, server.url)
    worker(ENDINGS, alone, conf={"distlock_ttl": ttl}, may_log=MAY_LOG)
    tasks = load(ENDINGS, alone)
    result = tasks.hold_while_sure.delay("a")
    (start,) = journal.wait_for("start", key="a")
    death = Death(start["pid"])
    frozen = time.monotonic()
    server.freeze()
    # The last renewal was sent before the freeze; so no lease is believed for longer than this.
    assert death.wait() <= frozen + ttl
    server.thaw()
    with pytest.raises(LockLost):
        result.get(timeout=20)
    assert_free_at_once(tasks, "a", within=2.0)


# An acquire that is under way.


@pytest.mark.parametrize("held_back", ["server", "client"], ids=["the request is held back", "the reply is held back"])
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
@pytest.mark.locks_in_redis
def test_a_grant_to_an_executor_that_was_ended_while_it_asked_is_given_back(
    how: str,
    held_back: Any,
    worker: StartWorker,
    load: LoadApp,
    journal: Journal,
    settings: Settings,
    databases: Databases,
    proxy: Callable[[RedisServer], Proxy],
) -> None:
    between = proxy(databases.server)
    behind = _with_store(settings, between.url(settings.locks))
    node = worker(ENDINGS, behind, conf={"distlock_store_options": {"timeout": 10.0}}, may_log=MAY_LOG, concurrency=1)
    tasks = load(ENDINGS)
    # The child connects before the proxy holds anything back.
    tasks.succeed.delay("warm")
    journal.wait_for("released", key="warm")
    (child,) = node.children()
    between.pause(held_back)
    result = tasks.hold_once_asked.delay("a")
    journal.wait_for("asking", key="a")
    if held_back == "client":
        eventually(lambda: lock_of(tasks, "a").holders(), 10, "the grant")
    death = Death(child)
    if how == "SIGKILL":
        os.kill(child, signal.SIGKILL)
    else:
        tasks.app.control.revoke(result.id, terminate=True, signal="SIGTERM")
    death.wait()
    between.resume()
    grant = first_grant(lock_of(tasks, "a"), timeout=10)
    assert grant.at - death.wait() <= 2.0
    assert journal.runs("a") == []
    # What was granted to nobody is void, also if it arrives late: its owner is barred for an hour.
    assert_nothing_left(databases.locks, but=[TOMBSTONES])
