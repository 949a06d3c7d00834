"""What the store does when the server, the network or its own process does something else."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from celery_distlock.errors import StoreUnavailable
from celery_distlock.lease import Completion, Contended, Lease, Renewal, new_owner
from celery_distlock.stores.redis import RedisStore
from tests.stores.conftest import Behind, claim, granted
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.waiting import eventually

StartServer = Callable[..., RedisServer]
StartProxy = Callable[[RedisServer], Proxy]
OpenRedis = Callable[..., RedisStore]


@contextlib.contextmanager
def takes_at_most(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    took = time.monotonic() - started
    assert took <= seconds, f"took {took:.3f} s"


# Lost replies and lost connections.


@pytest.fixture
def far(
    redis_server: RedisServer, redis_url: str, proxy: StartProxy, open_redis: OpenRedis
) -> tuple[Proxy, RedisStore]:
    """A store behind a proxy, connected and with its scripts loaded."""
    between = proxy(redis_server)
    store = open_redis(between.url(redis_url))
    lease = granted(store, "warm up")
    store.renew([lease])
    store.release([lease])
    return between, store


def test_a_grant_whose_reply_was_lost_is_found_by_asking_again(far: tuple[Proxy, RedisStore]) -> None:
    between, store = far
    fault = between.swallow_reply(b"EVALSHA")
    lease = granted(store)
    fault.wait()
    (holder,) = store.holders("k")
    assert (holder["owner"], holder["fence"]) == (lease.owner, lease.fence)
    assert store.release([lease]) == [True]
    assert store.holders("k") == []


def test_a_deadline_does_not_count_from_the_reply(far: tuple[Proxy, RedisStore]) -> None:
    between, store = far
    between.delay(0.2, "client")
    before = time.monotonic()
    lease = granted(store, ttl=10.0)
    assert time.monotonic() - before >= 0.2
    assert lease.deadline <= before + 10.0 - 0.1


def test_a_deadline_counts_from_the_second_sending_at_the_latest(far: tuple[Proxy, RedisStore]) -> None:
    between, store = far
    fault = between.swallow_reply(b"EVALSHA")
    lease = granted(store)
    fault.wait()
    (holder,) = store.holders("k")
    # The server believes the holder for longer than the holder does.
    assert lease.remaining <= holder["remaining"]


def test_a_release_whose_reply_was_lost_is_still_ours(far: tuple[Proxy, RedisStore], behind: Behind) -> None:
    between, store = far
    lease = granted(store)
    fault = between.swallow_reply(b"EVALSHA")
    assert store.release([lease], [Completion("k", "run", 60.0)]) == [True]
    fault.wait()
    assert behind.keys() == {behind.layout.completion("k", "run").decode()}


def test_the_release_of_a_lost_lease_is_not_ours_even_if_it_was_sent_twice(
    far: tuple[Proxy, RedisStore], behind: Behind
) -> None:
    between, store = far
    lease = granted(store)
    behind.condemned_long_ago(lease)
    granted(store)
    fault = between.swallow_request(b"EVALSHA")
    assert store.release([lease]) == [False]
    fault.wait()


def test_a_batch_whose_reply_was_lost_is_renewed_again(far: tuple[Proxy, RedisStore]) -> None:
    between, store = far
    leases = [granted(store, f"k{number}") for number in range(20)]
    fault = between.swallow_reply(b"EVALSHA")
    assert store.renew(leases) == [Renewal.HELD] * 20
    fault.wait()


def test_two_lost_replies_in_a_row_are_an_unavailable_store_and_no_orphan(far: tuple[Proxy, RedisStore]) -> None:
    between, store = far
    faults = [between.swallow_reply(b"EVALSHA") for _ in range(2)]
    asked = claim()
    with pytest.raises(StoreUnavailable) as caught:
        store.acquire(asked)
    assert isinstance(caught.value.__cause__, redis.ConnectionError)
    for fault in faults:
        fault.wait()
    assert len(store.holders("k")) == 1
    assert store.release([Lease.unknown("k", asked.owner, 30.0)]) == [True]
    assert isinstance(store.acquire(asked), Contended)
    granted(store)


def test_killed_connections_are_replaced_unnoticed(store: RedisStore, redis_url: str, behind: Behind) -> None:
    # Databases are used again and again, and a Lock's connections last as long as the process.
    others = {known["id"] for known in behind.client.client_list()} | {str(behind.client.client_id())}
    lease = granted(store)
    db = redis_url.rpartition("/")[2]
    killed = 0
    for known in behind.client.client_list():
        if known["db"] == db and known["id"] not in others:
            killed += behind.client.client_kill_filter(_id=known["id"])
    assert killed == 1
    assert store.renew([lease]) == [Renewal.HELD]


def test_a_flushed_script_cache_is_filled_unnoticed(private_redis: StartServer, open_redis: OpenRedis) -> None:
    server = private_redis()
    store = open_redis(server.url)
    with server.client() as client:
        for flush in (lambda: None, client.script_flush):
            flush()
            leases = [granted(store, f"k{number}") for number in range(5)]
            flush()
            assert store.renew(leases) == [Renewal.HELD] * 5
            flush()
            assert store.release(leases, [Completion("k", "run", 60.0), *[None] * 4]) == [True] * 5


# Servers that restart, freeze, refuse.


def test_a_restart_without_data_is_survived_by_the_live_holder(
    private_redis: StartServer, open_redis: OpenRedis
) -> None:
    server = private_redis()
    store = open_redis(server.url)
    lease = granted(store)
    # Two idle connections, both dead after the restart.
    with ThreadPoolExecutor(2) as pool:
        barrier = threading.Barrier(2)

        def connect(number: int) -> None:
            barrier.wait()
            granted(store, f"other{number}")

        list(pool.map(connect, range(2)))
    server.restart()
    assert store.renew([lease]) == [Renewal.REASSERTED]
    assert isinstance(store.acquire(claim()), Contended)
    assert store.release([lease]) == [True]


def test_a_restart_with_data_keeps_locks_and_fences(private_redis: StartServer, open_redis: OpenRedis) -> None:
    server = private_redis(options=["--appendonly", "yes", "--appendfsync", "always"])
    store = open_redis(server.url)
    lease = granted(store)
    server.restart()
    assert isinstance(store.acquire(claim()), Contended)
    assert store.renew([lease]) == [Renewal.HELD]
    assert store.release([lease]) == [True]
    assert granted(store).fence > lease.fence


def test_a_stopped_server_is_reported_at_once_and_used_again_when_it_is_back(
    private_redis: StartServer, open_redis: OpenRedis
) -> None:
    server = private_redis()
    store = open_redis(server.url)
    lease = granted(store)
    server.kill()
    for call in (lambda: store.acquire(claim()), lambda: store.renew([lease]), store.holders):
        with takes_at_most(1.0), pytest.raises(StoreUnavailable) as caught:
            call()
        assert caught.value.store == f"redis://127.0.0.1:{server.port}/0"
        assert isinstance(caught.value.__cause__, redis.ConnectionError)
    server.start()
    granted(store)


def test_a_frozen_server_is_given_up_within_the_timeout(private_redis: StartServer, open_redis: OpenRedis) -> None:
    server = private_redis()
    store = open_redis(server.url, timeout=2.0)
    lease = granted(store)
    server.freeze()
    # The first call has a connection, the others must make one. Who tried twice would take three seconds.
    for call in (
        lambda: store.renew([lease]),
        lambda: store.acquire(claim("other")),
        lambda: store.release([lease]),
        store.holders,
    ):
        with takes_at_most(2.8), pytest.raises(StoreUnavailable) as caught:
            call()
        assert isinstance(caught.value.__cause__, redis.TimeoutError)
    server.thaw()
    assert store.release([lease]) == [True]


def test_a_paused_server_is_given_up_within_the_timeout(private_redis: StartServer, open_redis: OpenRedis) -> None:
    server = private_redis()
    store = open_redis(f"{server.url}?timeout=2.0")
    lease = granted(store)
    with server.client() as client:
        client.client_pause(4000)
        with takes_at_most(2.8), pytest.raises(StoreUnavailable):
            store.renew([lease])
        # Answered when the pause is over.
        client.client_unpause()
    assert store.renew([lease]) == [Renewal.HELD]


def test_a_reply_that_comes_too_late_is_not_taken_for_the_next_commands(far: tuple[Proxy, RedisStore]) -> None:
    between, store = far
    impatient = RedisStore(url=f"redis://127.0.0.1:{between.port}/{store.name.rpartition('/')[2]}?timeout=1.0")
    held = granted(impatient, "held")
    between.pause("client")
    with pytest.raises(StoreUnavailable):
        impatient.acquire(claim("late"))
    between.resume("client")
    assert impatient.renew([held]) == [Renewal.HELD]
    assert impatient.release([held]) == [True]
    impatient.close()


def test_redis_py_retries_do_not_stretch_the_timeout(private_redis: StartServer) -> None:
    server = private_redis()
    retry = redis.retry.Retry(redis.backoff.ConstantBackoff(1.0), 3)
    with server.client(retry=retry, socket_timeout=30.0, decode_responses=True) as client:
        store = RedisStore(client, timeout=2.0)
        lease = granted(store)
        server.freeze()
        for _ in range(2):
            with takes_at_most(2.8), pytest.raises(StoreUnavailable):
                store.renew([lease])
        server.kill()
        # Three pauses of a second each would be made before the error.
        with takes_at_most(0.9), pytest.raises(StoreUnavailable):
            store.renew([lease])
        store.close()


@pytest.mark.slow
def test_a_store_frozen_beyond_the_ttl_never_evicts_a_live_holder(
    private_redis: StartServer, open_redis: OpenRedis
) -> None:
    """The renewal of the holder and the acquire of a newcomer arrive together when the server goes on."""
    server = private_redis()
    holding, wanting = (open_redis(server.url, timeout=5.0) for _ in range(2))
    lease = granted(holding, ttl=0.3)
    with ThreadPoolExecutor(2) as pool:
        for number in range(20):
            assert holding.renew([lease]) == [Renewal.HELD]
            server.freeze()
            # Half of the rounds in either order.
            asks = [
                lambda: pool.submit(wanting.acquire, claim(ttl=0.3)),
                lambda: pool.submit(holding.renew, [lease]),
            ]
            if number % 2:
                asks.reverse()
            futures = []
            for ask in asks:
                futures.append(ask())
                time.sleep(0.02)
            time.sleep(0.35)
            server.thaw()
            answers = [future.result(10) for future in futures]
            if number % 2:
                answers.reverse()
            assert isinstance(answers[0], Contended)
            assert answers[1] == [Renewal.HELD]


def test_a_replica_is_unavailable_until_it_is_promoted(private_redis: StartServer, open_redis: OpenRedis) -> None:
    primary = private_redis()
    granted(open_redis(primary.url), "elsewhere")
    replica = private_redis(replica_of=primary)
    with replica.client() as client:
        eventually(lambda: client.info("replication")["master_link_status"] == "up", 10, "the replication")
        store = open_redis(replica.url)
        for call in (
            lambda: store.acquire(claim()),
            lambda: store.release([Lease.unknown("k", new_owner(), 30.0)]),
        ):
            with pytest.raises(StoreUnavailable, match="read only replica") as caught:
                call()
            assert isinstance(caught.value.__cause__, redis.ResponseError)
            # The server's address may lead to another one soon.
            assert not any(link.connected for link in store._connections._all)
        assert [holder["key"] for holder in store.holders()] == ["elsewhere"]
        client.replicaof("NO", "ONE")
    granted(store)


def test_a_wrong_password_is_an_unavailable_store_that_does_not_tell_it(
    private_redis: StartServer, open_redis: OpenRedis
) -> None:
    server = private_redis(password="right")
    granted(open_redis(server.url))
    for url in (server.url.replace("right", "wrong"), server.url.replace(":right@", "")):
        with pytest.raises(StoreUnavailable) as caught:
            open_redis(url).acquire(claim())
        assert isinstance(caught.value.__cause__, redis.AuthenticationError | redis.exceptions.ResponseError)
        assert "wrong" not in str(caught.value).lower().replace("wrongpass", "")


def test_a_server_with_too_many_clients_is_unavailable(private_redis: StartServer, open_redis: OpenRedis) -> None:
    server = private_redis()
    with server.client() as client:
        client.ping()
        client.config_set("maxclients", 1)
        with pytest.raises(StoreUnavailable, match="max number of clients"):
            open_redis(server.url).acquire(claim())


def test_data_of_another_type_are_an_unavailable_store(store: RedisStore, behind: Behind) -> None:
    behind.client.set(behind.name("h", "k"), "not a zset")
    with pytest.raises(StoreUnavailable, match="WRONGTYPE") as caught:
        store.acquire(claim())
    assert isinstance(caught.value.__cause__, redis.ResponseError)
    granted(store, "another")


def test_a_full_server_grants_nothing_but_renews_and_releases(
    private_redis: StartServer, open_redis: OpenRedis
) -> None:
    server = private_redis(options=["--maxmemory-policy", "noeviction"])
    store = open_redis(server.url)
    leases = [granted(store, key) for key in ("a", "b")]
    assert store.renew(leases) == [Renewal.HELD] * 2
    store.release([granted(store, "script")])
    with server.client() as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            store.acquire(claim("c"))
        assert store.renew(leases) == [Renewal.HELD] * 2
        done = Completion("a", "run", 60.0)
        assert store.release(leases, [done, None]) == [True, True]
        client.config_set("maxmemory", 0)
    assert store.holders() == []


# Interruptions in our own process.


class SoftLimit(BaseException):
    """Like what a signal handler raises: SystemExit, SoftTimeLimitExceeded, GreenletExit."""


def test_a_command_interrupted_while_it_waits_leaves_no_reply_behind(
    far: tuple[Proxy, RedisStore], redis_url: str, open_redis: OpenRedis
) -> None:
    between, store = far
    near = open_redis(redis_url)
    held = granted(store, "held")

    def interrupt(signum: int, frame: Any) -> None:
        raise SoftLimit

    def strike() -> None:
        eventually(lambda: near.holders("interrupted"), 2.5, "the grant whose reply is held back")
        os.kill(os.getpid(), signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        between.pause("client")
        with ThreadPoolExecutor(1) as thread:
            struck = thread.submit(strike)
            with pytest.raises(SoftLimit):
                store.acquire(claim("interrupted"))
            struck.result(10)
    finally:
        signal.signal(signal.SIGALRM, before)
        between.resume("client")
    assert store.renew([held]) == [Renewal.HELD]
    assert [holder["key"] for holder in store.holders(prefix="interr")] == ["interrupted"]


# A socket that redis-py was just making is closed by the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_many_interruptions_never_mix_up_replies(private_redis: StartServer, open_redis: OpenRedis) -> None:
    """Every answer must belong to its own question, wherever the signal strikes."""
    # Database 0: hiredis 3.5, where it is installed, crashes when it is interrupted packing the number in SELECT 1.
    store = open_redis(private_redis().url)
    leases = {key: granted(store, key) for key in ("a", "b", "c")}

    def interrupt(signum: int, frame: Any) -> None:
        raise SoftLimit

    before = signal.signal(signal.SIGALRM, interrupt)
    interrupted = finished = 0
    # Seconds within which the signal strikes: about as many as a command takes here, with and without a connection.
    within = 0.0005
    try:
        end = time.monotonic() + 2.0
        while time.monotonic() < end or min(interrupted, finished) <= 100:
            for key, lease in leases.items():
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.00001 + (time.monotonic() % within))
                    again = store.acquire(claim(key, lease.owner))
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except SoftLimit:
                    interrupted += 1
                    within *= 1.01
                else:
                    finished += 1
                    within /= 1.01
                    assert isinstance(again, Lease)
                    assert again.fence == lease.fence
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_threads_hammering_one_store_exclude_each_other(store: RedisStore) -> None:
    inside = 0
    most = 0
    fences: list[int] = []
    guard = threading.Lock()

    def work(number: int) -> int:
        nonlocal inside, most
        done = 0
        end = time.monotonic() + 2.0
        while time.monotonic() < end or len(fences) <= 50:
            answer = store.acquire(claim())
            if isinstance(answer, Lease):
                with guard:
                    inside += 1
                    most = max(most, inside)
                    fences.append(answer.fence)
                assert store.renew([answer]) == [Renewal.HELD]
                with guard:
                    inside -= 1
                assert store.release([answer]) == [True]
                done += 1
        return done

    with ThreadPoolExecutor(12) as pool:
        counts = list(pool.map(work, range(12)))
    assert sum(counts) == len(fences)
    assert most == 1
    assert fences == sorted(set(fences))
    assert store.holders() == []


def run_in_child(work: Callable[[], None]) -> None:
    """Fork, run, and fail if the child failed."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException:
            logging.getLogger(__name__).exception("in the child")
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_makes_its_own_connection_and_leaves_its_parents_alone(
    store: RedisStore, redis_url: str, behind: Behind
) -> None:
    db = redis_url.rpartition("/")[2]
    # Databases are used again and again, and a Lock's connections last as long as the process.
    others = {c["id"] for c in behind.client.client_list()} | {str(behind.client.client_id())}
    mine = granted(store)

    def connections() -> set[str]:
        return {c["id"] for c in behind.client.client_list() if c["db"] == db} - others

    before = connections()
    assert len(before) == 1

    def in_child() -> None:
        assert all(not link.connected for link in store._connections._all)
        with contextlib.closing(RedisStore(url=redis_url)) as fresh:
            assert isinstance(fresh.acquire(claim()), Contended)
        assert store.renew([mine]) == [Renewal.HELD]
        granted(store, "childs")

    run_in_child(in_child)
    eventually(lambda: connections() == before, 5, "the end of the child's connection, and of no other")
    assert store.renew([mine]) == [Renewal.HELD]
    assert connections() == before
    assert sorted(holder["key"] for holder in store.holders()) == ["childs", "k"]


def test_a_fork_behind_pythons_back_is_noticed_too(store: RedisStore) -> None:
    mine = granted(store)
    (parents,) = store._connections._all
    pid = ctypes.PyDLL(None).fork()  # runs none of Python's fork handlers
    if not pid:
        with contextlib.suppress(BaseException):
            if store.renew([mine]) == [Renewal.HELD] and parents not in store._connections._all:
                os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert store.renew([mine]) == [Renewal.HELD]


def test_a_closed_store_can_be_used_again(store: RedisStore, redis_url: str, behind: Behind) -> None:
    db = redis_url.rpartition("/")[2]

    def connections() -> set[str]:
        return {c["id"] for c in behind.client.client_list() if c["db"] == db}

    # Databases are used again and again, and a Lock's connections last as long as the process.
    others = connections()
    granted(store)
    assert connections() - others
    store.close()
    eventually(lambda: connections() <= others, 5, "the connection's end")
    assert isinstance(store.acquire(claim()), Contended)


# Settings that endanger locks.


@pytest.fixture
def evicting(private_redis: StartServer) -> RedisServer:
    return private_redis(options=["--maxmemory-policy", "volatile-lru"])


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what stores have warned of; the keepers of locks of earlier tests may still have something to say."""
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return [record.getMessage() for record in records if record.name.startswith("celery_distlock.stores.")]


def test_a_policy_that_evicts_locks_is_logged_once(
    evicting: RedisServer, open_redis: OpenRedis, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_redis(evicting.url)
    assert warnings_in(caplog) == []
    for _ in range(3):
        store.release([granted(store)])
    (warning,) = warnings_in(caplog)
    assert "volatile-lru" in warning
    assert f":{evicting.port}/" in warning
    assert store.check() == [warning]


def test_a_checked_store_does_not_log_it_again(
    evicting: RedisServer, open_redis: OpenRedis, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_redis(evicting.url)
    assert len(store.check()) == 1
    granted(store)
    assert warnings_in(caplog) == []


def test_a_safe_policy_is_not_mentioned(store: RedisStore, caplog: pytest.LogCaptureFixture) -> None:
    granted(store)
    assert store.check() == []
    assert warnings_in(caplog) == []


def test_the_policy_is_found_where_config_is_forbidden(private_redis: StartServer, open_redis: OpenRedis) -> None:
    server = private_redis(options=["--maxmemory-policy", "allkeys-random", "--rename-command", "CONFIG", ""])
    assert "allkeys-random" in open_redis(server.url).check()[0]


def test_a_server_that_tells_nothing_about_itself_is_used_without_a_word(
    private_redis: StartServer, open_redis: OpenRedis, caplog: pytest.LogCaptureFixture
) -> None:
    server = private_redis(options=["--rename-command", "CONFIG", "", "--rename-command", "INFO", ""])
    granted(open_redis(server.url))
    assert warnings_in(caplog) == []


# What is left.


def test_ten_thousand_locks_leave_nothing_but_the_shards_meta_hashes(store: RedisStore, behind: Behind) -> None:
    for start in range(0, 10_000, 500):
        leases = [granted(store, f"k{number}") for number in range(start, start + 500)]
        assert all(store.release(leases))
    left = set(behind.client.scan_iter(count=1000))
    assert left == {f"distlock:1:{{{shard}}}:meta" for shard in range(16)}


def test_whatever_is_not_released_vanishes_by_itself(
    store: RedisStore, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose = granted(store, "lost")
    for lease in (granted(store, "abandoned"), lose):
        behind.condemned_long_ago(lease)
    behind.condemned_long_ago(granted(store, "condemned", limit=2))
    granted(store, "condemned", limit=2)
    granted(store, "lost")
    store.release([Lease.unknown("barred", new_owner(), 30.0)])
    store.release([granted(store, "done")], [Completion("done", "run", 600.0)])
    keys = behind.keys()
    assert len(keys) == 2 + 3 + 2 + 1 + 1
    for key in keys:
        assert 0 < behind.client.pttl(key) <= 3_630_001, key


def test_an_expired_lock_is_gone_when_nobody_asked_for_it_long_enough(
    store: RedisStore, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server forgets the first of them when all have been looked at, on a busy machine, too.
    monkeypatch.setattr("celery_distlock.stores.redis.arguments.LINGER", b"1500")
    old = granted(store, ttl=0.05)
    evicted = granted(store, "evicted", ttl=0.01)
    behind.condemned_long_ago(evicted)
    store.release([granted(store, "evicted", ttl=0.01)])
    assert behind.keys() >= {behind.name("h", "k"), behind.name("r", "k"), behind.name("t", "evicted")}
    eventually(lambda: behind.keys() == set(), 4, "the end of all keys")
    assert store.renew([old]) == [Renewal.GONE]


def test_tombstones_of_a_busy_key_do_not_pile_up(
    store: RedisStore, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        behind.client.zadd(behind.name("t", "k"), {f"old{number}": behind.now() - 3601e6})
    old = granted(store)
    behind.condemned_long_ago(old)
    granted(store)
    assert behind.client.zrange(behind.name("t", "k"), 0, -1) == [old.owner]
