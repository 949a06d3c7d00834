"""The line of those who wait, seen in the data behind the Redis store, and what disturbs it."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import redis
from kombu.asynchronous import Hub

from celery_distlock.lease import Claim, Contended, Lease, Offer, Renewal, Ticket
from celery_distlock.stores.base import Listener
from celery_distlock.stores.redis import RedisStore
from celery_distlock.testing.queueing import Hints, listening, offer, ticket
from celery_distlock.worker.loop import ConsumerThread
from tests.stores.conftest import Behind, claim, granted
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.waiting import eventually

StartServer = Callable[..., RedisServer]
OpenRedis = Callable[..., RedisStore]

TASK = {"task": "shop.charge", "id": "8c1f", "retries": 0, "attempt": 0, "depth": 0, "host": "web1", "pid": 4711}


def join(store: RedisStore, key: str = "k", **options: Any) -> Ticket:
    """Join the line for a key that is held."""
    listener = options.pop("listener", "")
    return ticket(store.enqueue(claim(key, **options), listener=listener))


def confirmed(store: RedisStore, place: Ticket | Offer) -> Lease:
    [lease] = store.confirm([place.claim])
    assert isinstance(lease, Lease), lease
    return lease


@pytest.fixture
def own(private_redis: StartServer, open_redis: OpenRedis) -> Iterator[tuple[RedisStore, Behind]]:
    """A store on a server of its own, and its data: what that counts nobody else has asked for."""
    server = private_redis()
    with server.client() as client:
        yield open_redis(server.url), Behind(client)


# Confirmations that nobody waits for.


def offered(store: RedisStore, **options: Any) -> Ticket:
    """Join the line, and be offered the place."""
    lease = granted(store)
    place = join(store, **options)
    store.release([lease])
    return place


def test_a_confirmation_can_be_sent_and_its_answer_be_looked_at_later(store: RedisStore) -> None:
    place = offered(store)
    finish = store.confirming(place.claim)
    assert finish is not None
    eventually(lambda: not store.holders("k")[0].get("offered"), 5, "the confirmation")
    lease = finish()
    assert lease is not None
    assert lease.fence == granted(store, owner=place.owner).fence, "who asks himself gets the same"
    assert store.release([lease]) == [True]


def test_what_came_in_time_leaves_the_connection_as_it_was(own: tuple[RedisStore, Behind]) -> None:
    store, behind = own
    place = offered(store)
    before = behind.client.info("stats")["total_connections_received"]
    finish = store.confirming(place.claim)
    assert finish is not None
    eventually(lambda: behind.client.zscore(behind.name("h", "k"), place.owner), 5, "the confirmation")
    assert finish() is not None
    assert confirmed(store, place).owner == place.owner
    assert behind.client.info("stats")["total_connections_received"] == before


def test_an_answer_that_is_late_is_not_taken_for_the_next_ones(
    open_redis: OpenRedis, redis_url: str, redis_server: RedisServer, proxy: Callable[[RedisServer], Proxy]
) -> None:
    between = proxy(redis_server)
    store = open_redis(between.url(redis_url))
    place = offered(store)
    between.pause("client")
    finish = store.confirming(place.claim)
    assert finish is not None
    assert finish() is None
    between.resume("client")
    [lease] = store.confirm([place.claim])
    assert isinstance(lease, Lease)
    assert store.holders("k")[0]["owner"] == place.owner


def test_nobody_is_kept_waiting_for_a_connection_that_is_not_there(
    open_redis: OpenRedis, redis_url: str, store: RedisStore
) -> None:
    place, unused = offered(store), open_redis(redis_url)
    assert unused.confirming(place.claim) is None
    store._connections._idle[-1].connection._sock.shutdown(socket.SHUT_RDWR)
    assert store.confirming(place.claim) is None
    assert confirmed(store, place).owner == place.owner


def test_a_confirmation_that_arrives_when_its_owner_is_done_takes_nothing(
    store: RedisStore,
    open_redis: OpenRedis,
    redis_url: str,
    redis_server: RedisServer,
    proxy: Callable[[RedisServer], Proxy],
) -> None:
    """The owner has asked himself meanwhile; nobody would give back what is granted to him after his release."""
    between = proxy(redis_server)
    slow = open_redis(between.url(redis_url))
    assert slow.holders("k") == []
    place = offered(store)
    between.pause("server")
    finish = slow.confirming(place.claim)
    assert finish is not None
    assert finish() is None
    store.release([granted(store, owner=place.owner)])
    between.resume()
    eventually(lambda: between.connections == 0, 5, "the end of what was under way")
    assert store.holders("k") == []


def test_a_refusal_is_no_lease(store: RedisStore) -> None:
    granted(store)
    finish = store.confirming(claim("k"))
    assert finish is not None
    assert finish() is None
    assert len(store.holders("k")) == 1


# What is stored.


def test_a_waiter_leaves_nothing_behind(store: RedisStore, behind: Behind) -> None:
    lease = granted(store)
    before = behind.keys()
    first, second, third = join(store), join(store), join(store)
    store.withdraw([third.claim])
    store.release([lease])
    store.withdraw([first.claim])
    lease = confirmed(store, second)
    assert behind.keys() == before
    assert behind.client.hkeys(behind.name("r", "k")) == [second.owner]
    store.release([lease])
    assert behind.keys() == set()


def test_dead_waiters_are_taken_out_of_all_data(store: RedisStore, behind: Behind) -> None:
    store.claim_ttl = 0.1
    lease = granted(store)
    places = [join(store) for _ in range(500)]
    store.poll(places)
    time.sleep(0.15)
    # Whose own place is not the subject.
    store.claim_ttl = 60.0
    alive = join(store)
    assert alive.ahead == 0
    assert behind.client.zcard(behind.name("d", "k")) == 1
    assert behind.client.hkeys(behind.name("q", "k")) == [alive.owner]
    assert behind.client.hkeys(behind.name("r", "k")) == [lease.owner]


def test_a_line_of_dead_waiters_vanishes_by_itself(store: RedisStore, behind: Behind) -> None:
    store.claim_ttl = 0.1
    store.release([granted(store, owner="holder")])
    lease = granted(store)
    join(store), join(store)
    # Both are offered the key in turn, and nobody ever asks again.
    store.release([lease])
    eventually(lambda: behind.keys() == set(), 3, "the end of all keys")


def test_waiters_outlive_neither_their_holders_data_nor_the_other_way_round(store: RedisStore, behind: Behind) -> None:
    granted(store, ttl=100.0)
    joining = time.monotonic()
    join(store)
    assert behind.client.pttl(behind.name("h", "k")) > 3_600_000
    assert behind.client.pttl(behind.name("r", "k")) > 3_600_000
    for kind in "wdq":
        left = behind.client.pttl(behind.name(kind, "k"))
        assert 2_499 - 1000 * (time.monotonic() - joining) < left <= 2_501


def test_an_offer_beside_a_lease_is_thrown_away_as_one(store: RedisStore, behind: Behind) -> None:
    store.claim_ttl = 0.1
    leases = [granted(store, limit=2) for _ in range(2)]
    join(store, limit=2)
    store.release(leases[:1])
    # Nobody touches the key until all that concerns only the line would be gone by itself.
    eventually(lambda: not behind.client.exists(behind.name("w", "k"), behind.name("q", "k")), 3, "the line's end")
    time.sleep(0.7)
    newcomer = granted(store, limit=2)
    assert [holder["owner"] for holder in store.holders("k")] == [leases[1].owner, newcomer.owner]
    assert not behind.client.exists(behind.name("t", "k")), "taken for a lease that was lost"


# What it costs.


def test_an_uncontended_pair_costs_two_calls_and_one_look_for_waiters(own: tuple[RedisStore, Behind]) -> None:
    store, behind = own
    store.release([granted(store)])
    behind.client.config_resetstat()
    for _ in range(10):
        store.release([granted(store)])
    calls = {name[8:]: stat["calls"] / 10 for name, stat in behind.client.info("commandstats").items()}
    ours = {name: count for name, count in calls.items() if name not in ("config|resetstat", "info")}
    assert ours.pop("evalsha") == 2
    assert ours.pop("exists") == 2  # by acquire: holders, waiters, tombstones; by release: waiters and offers
    assert not {"zrangebyscore", "zrange", "zcount", "publish", "zremrangebyscore"} & set(ours)


def test_a_hand_over_costs_the_same_with_one_waiter_and_with_a_thousand(own: tuple[RedisStore, Behind]) -> None:
    store, behind = own
    store.claim_ttl = 60.0
    costs = []
    for waiters in (1, 1000):
        key = f"k{waiters}"
        with listening(store) as (name, _):
            lease = granted(store, key, record=TASK)
            places = [join(store, key, record=TASK, listener=name) for _ in range(waiters)]
            for turn in range(11):
                # The server has come to know the scripts.
                if turn == 1:
                    behind.client.config_resetstat()
                store.release([lease])
                lease = confirmed(store, places.pop(0))
                places.append(join(store, key, record=TASK, listener=name))
            stats = {name: stat["calls"] for name, stat in behind.client.info("commandstats").items()}
            traffic = behind.client.info("stats")
            assert stats["cmdstat_evalsha"] == 30
            assert stats["cmdstat_publish"] == 10
            costs.append((sum(stats.values()), traffic["total_net_input_bytes"]))
    (calls_of_one, bytes_of_one), (calls_of_many, bytes_of_many) = costs
    assert abs(calls_of_many - calls_of_one) <= 0.1 * calls_of_one
    assert abs(bytes_of_many - bytes_of_one) <= 0.1 * bytes_of_one


def test_a_poll_is_one_exchange_with_a_bounded_script_each_hundred_waiters(own: tuple[RedisStore, Behind]) -> None:
    store, behind = own
    store.claim_ttl = 60.0
    granted(store)
    places = [join(store) for _ in range(250)]
    store.poll(places)
    behind.client.config_resetstat()
    assert [ticket(place).ahead for place in store.poll(places)] == list(range(250))
    assert behind.client.info("commandstats")["cmdstat_evalsha"]["calls"] == 3


# When holders die.


def test_a_waiter_is_told_when_the_holders_lease_ends(store: RedisStore) -> None:
    granted(store, ttl=5.0)
    asked = time.monotonic()
    first = join(store)
    # Its own patience ends sooner.
    assert asked + 1.9 < first.look_at < time.monotonic() + 2.1
    asked = time.monotonic()
    short = granted(store, "short", ttl=0.5)
    granted_by = time.monotonic()
    second = join(store, "short")
    # The server says how long it is from now on; how long its answer was under way nobody knows.
    under_way = time.monotonic() - granted_by
    assert asked + 0.4 < second.look_at <= granted_by + short.ttl + under_way + 0.01


def test_a_waiter_that_asks_when_it_was_told_to_is_offered_a_dead_holders_key_at_once(store: RedisStore) -> None:
    started = time.monotonic()
    dead = granted(store, ttl=0.3)
    place: Ticket | Offer = join(store)
    polls = 0
    while isinstance(place, Ticket):
        time.sleep(max(0.0, place.look_at - time.monotonic()))
        [answer] = store.poll([place])
        assert answer is not None
        place = answer
        polls += 1
    took = time.monotonic() - started
    assert 0.4 <= took < 1.5, took  # the lease and the grace; its own patience is two seconds
    assert polls <= 3
    confirmed(store, place)
    assert store.renew([dead]) == [Renewal.LOST]


def test_a_condemned_holder_that_renews_in_time_keeps_its_place_before_waiters(
    store: RedisStore, behind: Behind
) -> None:
    old = granted(store)
    first = join(store)
    behind.expire(old)
    asked = time.monotonic()
    [condemning] = store.poll([first])
    assert asked + 0.05 < ticket(condemning).look_at < time.monotonic() + 0.15
    assert store.renew([old]) == [Renewal.HELD]
    time.sleep(0.15)
    assert ticket(store.poll([first])[0])
    assert behind.client.hkeys(behind.name("r", "k")) == [old.owner]


def test_a_newcomer_does_not_take_the_place_of_a_dead_holder_that_waiters_wait_for(
    store: RedisStore, behind: Behind
) -> None:
    old = granted(store)
    first = join(store)
    behind.condemned_long_ago(old)
    answer = store.acquire(claim())
    assert isinstance(answer, Contended)
    assert [holder["owner"] for holder in answer.holders] == [first.owner]
    confirmed(store, first)


# When the server was stopped, or has lost its data.


def test_a_server_stopped_for_longer_than_the_claim_ttl_costs_nobody_who_asks_his_place(
    private_redis: StartServer, open_redis: OpenRedis
) -> None:
    server = private_redis()
    store = open_redis(server.url)
    store.claim_ttl = 60.0
    lease = granted(store)
    places = [join(store) for _ in range(5)]
    store.claim_ttl = 0.3
    store.poll(places)
    server.freeze()
    time.sleep(0.5)
    server.thaw()
    assert [ticket(place).ahead for place in store.poll(places)] == list(range(5))
    store.release([lease])
    assert offer(store.poll(places)[0])


def test_after_a_loss_of_data_those_who_come_back_give_the_holder_its_ttl(store: RedisStore, behind: Behind) -> None:
    lease = granted(store, ttl=30.0)
    first, second = join(store, ttl=30.0), join(store, ttl=30.0)
    behind.client.flushdb()
    back = [ticket(place) for place in store.poll([second, first])]
    assert [(place.number, place.ahead) for place in back] == [(second.number, 0), (first.number, 0)]
    assert store.renew([lease]) == [Renewal.REASSERTED]
    assert [ticket(place).ahead for place in store.poll([first, second])] == [0, 1]
    # Whoever had the key for itself and gives it back knows that nobody else has it.
    store.release([lease])
    store.release([confirmed(store, offer(store.poll([first])[0]))])
    assert offer(store.poll([second])[0])


def test_after_a_loss_of_data_those_who_come_back_are_offered_the_key_of_a_holder_that_does_not(
    store: RedisStore, behind: Behind
) -> None:
    lease = granted(store, ttl=1.5)
    first = join(store, ttl=1.5)
    behind.client.flushdb()
    lost_at = time.monotonic()
    place = ticket(store.poll([first])[0])
    assert lost_at + 1.4 < place.look_at < time.monotonic() + 1.6
    assert isinstance(store.acquire(claim()), Contended), "a newcomer overtook"
    assert ticket(store.poll([place])[0])
    time.sleep(max(0.0, place.look_at - time.monotonic()))
    confirmed(store, offer(store.poll([place])[0]))
    assert store.renew([lease]) == [Renewal.LOST]


def test_a_server_that_is_out_of_memory_still_hands_keys_on(private_redis: StartServer, open_redis: OpenRedis) -> None:
    server = private_redis()
    store = open_redis(server.url)
    lease = granted(store)
    first, second = join(store), join(store)
    with server.client() as client:
        client.config_set("maxmemory", 1)
        assert store.release([lease]) == [True]
        found, other = store.poll([first, second])
        lease = confirmed(store, offer(found))
        store.withdraw([second.claim])
        assert ticket(other)
        assert store.release([lease]) == [True]
        client.config_set("maxmemory", 0)


# Hints.


class EventLoop:
    """A worker's event loop, in a thread of its own."""

    def __init__(self) -> None:
        self.of_worker = ConsumerThread()
        self.hub = Hub()
        self._start(lambda: self.of_worker.register(self.hub))

    def _start(self, begin: Callable[[], None]) -> None:
        self._stopping = False
        self._thread = threading.Thread(target=self._run, args=(begin,), name="event-loop")
        self._thread.start()

    def _run(self, begin: Callable[[], None]) -> None:
        begin()
        loop = self.hub.create_loop()
        while not self._stopping:
            next(loop)

    def do(self, function: Callable[[], object]) -> None:
        """Call a function in the loop's thread."""
        done = threading.Event()
        self.of_worker.call(lambda: (function(), done.set()))
        assert done.wait(5)

    def restart(self, begin: Callable[[], None]) -> None:
        """Begin anew, with what is to be done first."""
        self._end()
        self._start(begin)

    def _end(self) -> None:
        self.do(lambda: setattr(self, "_stopping", True))
        self._thread.join(5)

    def stop(self) -> None:
        self._end()
        self.of_worker.close()
        self.hub.close()


@pytest.fixture
def event_loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    yield loop
    loop.stop()


def test_hints_are_heard_in_the_event_loops_thread(store: RedisStore, event_loop: EventLoop) -> None:
    threads: list[int] = []
    heard, ready = threading.Event(), threading.Event()

    def on_offer(key: str, owner: str) -> None:
        threads.append(threading.get_ident())
        heard.set()

    event_loop.do(lambda: threads.append(threading.get_ident()))
    with closing(store.listen(on_offer, ready.set, event_loop.of_worker)) as listener:
        assert ready.wait(5)
        lease = granted(store)
        join(store, listener=listener.name)
        store.release([lease])
        assert heard.wait(5)
    assert threads == [threads[0]] * 2


def test_a_listener_hears_on_when_the_event_loop_has_forgotten_it(store: RedisStore, event_loop: EventLoop) -> None:
    hints = Hints()
    with closing(store.listen(hints.on_offer, hints.on_gap, event_loop.of_worker)) as listener:
        hints.wait(lambda: hints.gaps == 1, "not ready")
        lease = granted(store)
        first = join(store, listener=listener.name)

        def connect_anew() -> None:
            # As when the broker is lost; the hint comes in between.
            event_loop.hub.reset()
            store.release([lease])
            event_loop.of_worker.register(event_loop.hub)

        event_loop.restart(connect_anew)
        hints.wait_for("k", first.owner)


def test_a_socket_that_has_the_number_of_a_closed_one_stays_in_the_event_loop(event_loop: EventLoop) -> None:
    ours, other = socket.socketpair()
    with ours, other:
        heard, over = threading.Event(), threading.Event()
        event_loop.of_worker.add_reader(ours.fileno(), lambda: False)
        event_loop.do(lambda: None)
        # Its callback has ended it; the number is given to the event loop's own next socket.
        event_loop.do(lambda: event_loop.hub.add_reader(ours.fileno(), heard.set))
        event_loop.of_worker.remove_reader(ours.fileno(), over.set)
        assert over.wait(5)
        other.send(b"x")
        assert heard.wait(5)


@pytest.fixture(params=["thread", "event loop"])
def heard_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where hints are heard: in the listener's own thread, or in the event loop of a worker."""
    if request.param == "event loop":
        loop = request.getfixturevalue("event_loop")
        listen = RedisStore.listen

        def in_loop(store: RedisStore, on_offer: Any, on_gap: Any = lambda: None) -> Listener:
            return listen(store, on_offer, on_gap, loop.of_worker)

        monkeypatch.setattr(RedisStore, "listen", in_loop)
    return request.param


def kill_listeners(client: redis.Redis) -> int:
    return int(client.execute_command("CLIENT", "KILL", "TYPE", "pubsub"))


def test_a_listener_whose_connection_is_killed_hears_again_at_once_and_reports_the_gap(
    private_redis: StartServer, open_redis: OpenRedis, heard_in: str
) -> None:
    server = private_redis()
    store = open_redis(server.url)
    with server.client() as client, listening(store) as (name, hints):
        for kills in range(1, 4):
            assert kill_listeners(client) == 1
            hints.wait(lambda kills=kills: hints.gaps == 1 + kills, "the gap was not reported")  # type: ignore[misc]
            lease = granted(store)
            first = join(store, listener=name)
            store.release([lease])
            hints.wait_for("k", first.owner)
            store.withdraw([first.claim])


def test_a_listener_survives_a_restart_of_the_server(
    private_redis: StartServer, open_redis: OpenRedis, heard_in: str
) -> None:
    server = private_redis()
    store = open_redis(server.url)
    with listening(store) as (name, hints):
        server.kill()
        server.start()
        hints.wait(lambda: hints.gaps >= 2, "the gap was not reported")
        lease = granted(store)
        first = join(store, listener=name)
        store.release([lease])
        hints.wait_for("k", first.owner)


def test_a_listener_notices_a_peer_that_vanished_without_a_word(
    private_redis: StartServer,
    proxy: Callable[[RedisServer], Proxy],
    open_redis: OpenRedis,
    monkeypatch: pytest.MonkeyPatch,
    heard_in: str,
) -> None:
    monkeypatch.setattr("celery_distlock.stores.redis.listener._QUIET", 1.0)
    between = proxy(private_redis())
    store = open_redis(f"redis://127.0.0.1:{between.port}/0")
    with listening(store) as (_, hints):
        assert hints.gaps == 1
        time.sleep(2.5)
        assert hints.gaps == 1, "silence alone was taken for a failure"
        between.pause("client")
        eventually(lambda: between.connections > 1, 10, "a new connection: the silence was not noticed")
        between.resume("client")
        hints.wait(lambda: hints.gaps >= 2, "the gap was not reported")


@pytest.mark.parametrize("protocol", [2, 3])
def test_hints_are_heard_in_both_protocols(redis_url: str, open_redis: OpenRedis, protocol: int, heard_in: str) -> None:
    store = open_redis(f"{redis_url}?protocol={protocol}")
    with listening(store) as (name, hints):
        lease = granted(store)
        first = join(store, listener=name)
        store.release([lease])
        hints.wait_for("k", first.owner)


def test_a_user_who_may_use_no_channels_still_hands_keys_on(private_redis: StartServer) -> None:
    server = private_redis()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "quiet", "on", "nopass", "~*", "+@all", "resetchannels")
    store = RedisStore(url=f"redis://quiet:x@{server.host}:{server.port}/0")
    hints = Hints()
    listener = store.listen(hints.on_offer, hints.on_gap)
    lease = granted(store)
    first = join(store, listener=listener.name)
    assert store.release([lease]) == [True]
    confirmed(store, offer(store.poll([first])[0]))
    assert hints.heard == []
    store.close()


def test_foreign_messages_on_the_channel_are_ignored(store: RedisStore, behind: Behind, heard_in: str) -> None:
    with listening(store) as (name, hints):
        lease = granted(store)
        first = join(store, listener=name)
        for nonsense in ("", "x", "3 abc", "-1 abc", "99999999 abc", "3 abcdistlock:1:{99}:h:k", "\u00b2 x"):
            assert behind.client.publish(f"distlock:1:offers:{name}", nonsense) == 1
        store.release([lease])
        hints.wait_for("k", first.owner)
        assert hints.heard == [("k", first.owner)]


def test_a_callback_that_fails_does_not_end_the_listener(
    store: RedisStore, caplog: pytest.LogCaptureFixture, heard_in: str
) -> None:
    heard = threading.Event()
    owners: list[str] = []

    def on_offer(key: str, owner: str) -> None:
        owners.append(owner)
        if len(owners) == 1:
            raise ValueError("a bug of the caller")
        heard.set()

    ready = threading.Semaphore(0)
    listener = store.listen(on_offer, ready.release)
    assert ready.acquire(timeout=5)
    lease = granted(store)
    first, second = join(store, listener=listener.name), join(store, listener=listener.name)
    store.release([lease])
    assert ready.acquire(timeout=5)
    store.withdraw([first.claim])
    assert heard.wait(5)
    assert owners == [first.owner, second.owner]
    assert "a bug of the caller" in caplog.text
    listener.close()


def test_closing_a_listener_ends_its_thread_and_its_connection(
    private_redis: StartServer, open_redis: OpenRedis, heard_in: str
) -> None:
    server = private_redis()
    store = open_redis(server.url)

    def listeners(client: redis.Redis) -> int:
        return len(client.client_list(_type="pubsub"))

    # Listeners of earlier tests may still be about.
    before = set(threading.enumerate())

    def threads() -> list[str]:
        return [thread.name for thread in set(threading.enumerate()) - before if thread.name == "distlock-listener"]

    with server.client() as client:
        for close in (lambda listener: listener.close(), lambda listener: store.close()):
            with listening(store):
                pass
            hints = Hints()
            listener: Listener = store.listen(hints.on_offer, hints.on_gap)
            hints.wait(lambda hints=hints: hints.gaps == 1, "not ready")  # type: ignore[misc]
            assert listeners(client) == 1
            close(listener)
            assert listener.closed
            eventually(lambda: listeners(client) == 0, 2, "the end of the connection")
            assert threads() == []


def test_a_listener_that_cannot_connect_can_be_closed(open_redis: OpenRedis, private_redis: StartServer) -> None:
    server = private_redis()
    store = open_redis(server.url)
    server.kill()
    before = set(threading.enumerate())
    listener = store.listen(lambda key, owner: None)
    listener.close()
    assert "distlock-listener" not in [thread.name for thread in set(threading.enumerate()) - before]


def test_a_forked_child_s_copy_is_closed_and_the_parent_hears_on(
    private_redis: StartServer, open_redis: OpenRedis, heard_in: str
) -> None:
    server = private_redis()
    store = open_redis(server.url)
    with server.client() as client, listening(store) as (name, hints):
        lease = granted(store)
        first = join(store, listener=name)
        pid = os.fork()
        if pid == 0:
            copies = list(store._listeners)
            os._exit(0 if copies and all(copy.closed for copy in copies) else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert len(client.client_list(_type="pubsub")) == 1
        store.release([lease])
        hints.wait_for("k", first.owner)
        assert hints.gaps == 1


# Questions asked twice.


@pytest.mark.parametrize("what", ["enqueue", "confirm", "withdraw", "poll"])
def test_an_answer_that_was_lost_is_asked_for_again_and_means_the_same(
    redis_server: RedisServer,
    redis_url: str,
    proxy: Callable[[RedisServer], Proxy],
    open_redis: OpenRedis,
    what: str,
) -> None:
    between = proxy(redis_server)
    store = open_redis(between.url(redis_url))
    warm = granted(store, "warm up")
    store.poll([join(store, "warm up")])
    store.confirm([claim("warm up")])
    store.withdraw([claim("warm up")])
    store.release([warm])
    lease = granted(store)
    if what == "enqueue":
        fault = between.swallow_reply(b"EVALSHA")
        first, second = join(store), join(store)
        fault.wait()
        assert [first.ahead, second.ahead] == [0, 1]
        return
    first, second = join(store), join(store)
    store.release([lease])
    fault = between.swallow_reply(b"EVALSHA")
    if what == "poll":
        found, other = store.poll([first, second])
        assert (offer(found).owner, ticket(other).ahead) == (first.owner, 0)
    elif what == "confirm":
        new = confirmed(store, first)
        assert [(holder["owner"], holder["fence"]) for holder in store.holders("k")] == [(first.owner, new.fence)]
    else:
        store.withdraw([first.claim])
        assert offer(store.poll([second])[0])
    fault.wait()


def test_a_claim_without_a_listener_waits_as_well(store: RedisStore) -> None:
    lease = granted(store)
    first = ticket(store.enqueue(Claim("k", "me", 30.0)))
    store.release([lease])
    assert offer(store.poll([first])[0])
