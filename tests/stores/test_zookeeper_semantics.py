"""What the ZooKeeper store promises beyond the contract, seen from behind its back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from kazoo.protocol.serialization import Delete

from celery_distlock.errors import StoreUnavailable
from celery_distlock.lease import Claim, Completed, Completion, Contended, Lease, Offer, Renewal, Ticket, deadline_of
from celery_distlock.stores.zookeeper import ZooKeeperStore, requests, sweeping
from celery_distlock.stores.zookeeper import queueing as zookeeper_queueing
from celery_distlock.stores.zookeeper import store as zookeeper_store
from celery_distlock.stores.zookeeper.completions import Completions
from celery_distlock.testing.contract import at_once
from tests.stores.conftest import claim, granted
from tests.stores.zookeeper import Behind, client_of, expire_session
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.zookeeper_server import ZooKeeperServer

StartProxy = Callable[[ZooKeeperServer], Proxy]
OpenStore = Callable[..., ZooKeeperStore]


@pytest.fixture
def store(open_zookeeper: OpenStore) -> ZooKeeperStore:
    return open_zookeeper()


@pytest.fixture
def other(open_zookeeper: OpenStore) -> ZooKeeperStore:
    return open_zookeeper()


@pytest.fixture
def behind(zookeeper_server: ZooKeeperServer, zookeeper_url: str) -> Iterator[Behind]:
    with zookeeper_server.client("/" + zookeeper_url.rpartition("/")[2]) as client:
        yield Behind(client)


def session_of(store: ZooKeeperStore) -> int:
    return int(client_of(store).client_id[0])


# Nothing is left.


def test_a_thousand_locks_over_a_thousand_keys_leave_no_node(store: ZooKeeperStore, behind: Behind) -> None:
    leases = [granted(store, f"k{number}") for number in range(1000)]
    assert len(behind.keys()) == 1000
    assert store.release(leases) == [True] * 1000
    store.holders("the last requests have been executed")
    assert behind.keys() == []


@pytest.mark.slow
def test_a_hundred_thousand_locks_over_as_many_keys_leave_no_node(store: ZooKeeperStore, behind: Behind) -> None:
    for number in range(100_000):
        store.release([granted(store, f"k{number}")])
    store.holders("the last requests have been executed")
    assert behind.keys() == []


def test_those_who_waited_in_vain_leave_no_node(store: ZooKeeperStore, behind: Behind) -> None:
    lease = granted(store)
    places = [store.enqueue(claim()) for _ in range(5)]
    assert isinstance(store.acquire(claim()), Contended)
    store.withdraw([place.claim for place in places if isinstance(place, Ticket)])
    assert len(behind.contenders()) == 1
    store.release([lease])
    store.holders("k")
    assert behind.keys() == []


def test_contenders_that_come_and_go_at_once_make_the_keys_node_anew(store: ZooKeeperStore, behind: Behind) -> None:
    """Whoever comes when the last one has just removed it."""

    def come_and_go() -> None:
        for _ in range(40):
            answer = store.acquire(claim())
            if isinstance(answer, Lease):
                assert store.release([answer]) == [True]

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    store.holders("k")
    assert behind.keys() == []


# A try that comes too late writes nothing.


def test_a_contended_try_leaves_the_tree_alone(store: ZooKeeperStore, other: ZooKeeperStore, behind: Behind) -> None:
    granted(store)
    before = behind.client.exists("/distlock/locks/k")
    assert isinstance(other.acquire(claim()), Contended)
    assert behind.client.exists("/distlock/locks/k") == before


def test_trying_again_and_again_costs_no_transaction(
    private_zookeeper: Callable[..., ZooKeeperServer], open_zookeeper: OpenStore
) -> None:
    # A server of its own: on the others' the sessions of earlier tests may still be ending.
    zookeeper_server = private_zookeeper()
    url = zookeeper_server.fresh_chroot()
    store, other = open_zookeeper(url), open_zookeeper(url)
    granted(store)
    assert isinstance(other.acquire(claim()), Contended)

    def zxid() -> str:
        return next(line for line in zookeeper_server.command("srvr").splitlines() if line.startswith("Zxid"))

    before = zxid()
    for _ in range(10):
        assert isinstance(other.acquire(claim()), Contended)
    assert zxid() == before


# Fences.


def test_a_fence_is_the_number_of_the_transaction_that_made_the_node(store: ZooKeeperStore, behind: Behind) -> None:
    lease = granted(store)
    [path] = behind.contenders()
    assert behind.client.exists(path).czxid == lease.fence


def test_fences_grow_although_a_waiter_moves_to_another_session(store: ZooKeeperStore, other: ZooKeeperStore) -> None:
    lease = granted(store)
    first, second = (store.enqueue(claim()) for _ in range(2))
    assert isinstance(first, Ticket)
    assert isinstance(second, Ticket)
    other.poll([first])
    fences = [lease.fence]
    for place in (first, second):
        store.release([lease])
        other.poll([place])
        [answer] = other.confirm([place.claim])
        assert isinstance(answer, Lease)
        lease = answer
        fences.append(lease.fence)
    assert fences == sorted(set(fences))


# Whose session a lease depends on.


def test_renewing_moves_a_lease_to_the_session_of_who_renews(
    store: ZooKeeperStore, other: ZooKeeperStore, behind: Behind
) -> None:
    lease = granted(store, record={"task": "shop.charge"})
    assert behind.session_of(*behind.contenders()) == session_of(store)
    assert other.renew([lease]) == [Renewal.HELD]
    [path] = behind.contenders()
    assert behind.session_of(path) == session_of(other)
    [holder] = store.holders("k")
    assert (holder["fence"], holder["owner"], holder["task"]) == (lease.fence, lease.owner, "shop.charge")


def test_a_lease_that_moved_outlives_the_session_that_acquired_it(store: ZooKeeperStore, other: ZooKeeperStore) -> None:
    lease = granted(store)
    other.renew([lease])
    store.close()
    assert other.renew([lease]) == [Renewal.HELD]
    assert isinstance(store.acquire(claim()), Contended)


def test_a_lease_moves_once_and_not_with_each_renewal(
    store: ZooKeeperStore, other: ZooKeeperStore, behind: Behind
) -> None:
    lease = granted(store)
    other.renew([lease])
    before = behind.contenders()
    other.renew([lease])
    assert behind.contenders() == before


def test_a_lease_that_moved_keeps_its_place_before_who_waits(store: ZooKeeperStore, other: ZooKeeperStore) -> None:
    lease = granted(store)
    place = store.enqueue(claim())
    assert isinstance(place, Ticket)
    assert other.renew([lease]) == [Renewal.HELD]
    assert isinstance(store.poll([place])[0], Ticket)
    assert isinstance(store.acquire(claim()), Contended)
    assert other.release([lease]) == [True]
    assert isinstance(store.poll([place])[0], Offer)


def test_who_acquired_may_release_although_the_lease_has_moved(store: ZooKeeperStore, other: ZooKeeperStore) -> None:
    lease = granted(store)
    other.renew([lease])
    assert store.release([lease]) == [True]
    assert other.renew([lease]) == [Renewal.GONE]


def test_a_release_on_a_connection_that_must_be_made_anew_finds_the_lease_that_has_moved(
    store: ZooKeeperStore, other: ZooKeeperStore, behind: Behind
) -> None:
    """As after a body that kept the interpreter to itself."""
    lease = granted(store)
    other.renew([lease])
    connection = client_of(store)._connection
    connection._asked = 0.0
    connection._heard.clear()
    assert store.release([lease]) == [True]
    assert behind.contenders() == []


def test_one_who_moved_an_older_lease_of_the_owner_does_not_release_the_new_one(
    store: ZooKeeperStore, other: ZooKeeperStore
) -> None:
    old = granted(store, owner="me")
    store.release([old])
    new = granted(store, owner="me")
    assert other.release([old]) == [False]
    assert other.renew([old]) == [Renewal.GONE]
    assert store.renew([new]) == [Renewal.HELD]


def test_the_main_process_releases_for_a_child_at_once(
    store: ZooKeeperStore, other: ZooKeeperStore, behind: Behind
) -> None:
    lease = granted(store)
    assert other.release([lease]) == [True]
    assert behind.contenders() == []


def test_an_owner_that_asks_in_several_threads_has_one_node(store: ZooKeeperStore, behind: Behind) -> None:
    granted(store, limit=2)
    wish = claim(limit=2)
    answers = at_once(8, lambda _: store.acquire(wish))
    assert len({answer.fence for answer in answers}) == 1
    assert len(behind.contenders()) == 2


# Answers that are lost.

DELETE, SET_DATA = 2, 5


def is_about_a_contender(packet: bytes, kind: int) -> bool:
    """Tell whether one of the requests in a packet is of a kind, and about a contender.

    Another thread may write at any time that it is this process's turn to sweep, and ask what the time is.
    """
    while packet:
        end = 4 + int.from_bytes(packet[:4], "big")
        request, packet = packet[4:end], packet[end:]
        if int.from_bytes(request[4:8], "big") == kind and b"__lock__" in request:
            return True
    return False


def through(between: Proxy, url: str, **query: Any) -> str:
    chroot = url.rpartition("/")[2]
    return f"zookeeper://{between.host}:{between.port}/{chroot}?" + "&".join(f"{k}={v}" for k, v in query.items())


@pytest.mark.parametrize("fault", ["swallow_reply", "swallow_request"])
@pytest.mark.parametrize("contended", [False, True], ids=["free", "with waiters"])
def test_an_acquire_whose_answer_was_lost_is_executed_once(
    zookeeper_server: ZooKeeperServer,
    zookeeper_url: str,
    proxy: StartProxy,
    open_zookeeper: OpenStore,
    behind: Behind,
    fault: str,
    contended: bool,
) -> None:
    between = proxy(zookeeper_server)
    store = open_zookeeper(through(between, zookeeper_url))
    limit = 1
    if contended:
        limit = 2
        granted(store, limit=2)
    store.holders("k")
    happened = getattr(between, fault)(b"__lock__")
    lease = granted(store, limit=limit)
    happened.wait()
    assert len(behind.contenders()) == limit
    assert store.renew([lease]) == [Renewal.HELD]


@pytest.mark.parametrize("fault", ["swallow_reply", "swallow_request"])
def test_a_release_whose_answer_was_lost_is_true(
    zookeeper_server: ZooKeeperServer,
    zookeeper_url: str,
    proxy: StartProxy,
    open_zookeeper: OpenStore,
    behind: Behind,
    fault: str,
) -> None:
    between = proxy(zookeeper_server)
    store = open_zookeeper(through(between, zookeeper_url))
    lease = granted(store)
    happened = getattr(between, fault)(b"__lock__")
    assert store.release([lease]) == [True]
    happened.wait()
    assert behind.contenders() == []


def test_so_is_that_of_a_process_that_did_not_take_the_lock(
    zookeeper_server: ZooKeeperServer,
    zookeeper_url: str,
    proxy: StartProxy,
    open_zookeeper: OpenStore,
    behind: Behind,
) -> None:
    between = proxy(zookeeper_server)
    main, child = open_zookeeper(), open_zookeeper(through(between, zookeeper_url))
    lease = granted(main)
    assert child.holders("k") != []

    happened = between.swallow_reply(lambda packet: is_about_a_contender(packet, DELETE))
    assert child.release([lease]) == [True]
    happened.wait()
    assert behind.contenders() == []
    assert child.release([lease]) == [False]


def test_whoever_has_its_turn_is_not_turned_away_by_a_server_that_is_behind(
    open_zookeeper: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, child, other = open_zookeeper(), open_zookeeper(), open_zookeeper()
    lease = granted(other)
    waiting = claim()
    place = main.enqueue(waiting)
    assert isinstance(place, Ticket)
    assert isinstance(main.enqueue(claim()), Ticket)
    look, behind = child._look, child._look(waiting, time.monotonic() + 5.0)
    other.release([lease])
    answers = [behind]
    monkeypatch.setattr(child, "_look", lambda *args: answers.pop() if answers else look(*args))
    got = child.acquire(waiting)
    assert isinstance(got, Lease)
    assert answers == []
    assert child.release([got]) == [True]


def test_an_answer_to_another_request_is_a_lost_connection(open_zookeeper: OpenStore) -> None:
    store = open_zookeeper()
    lease = granted(store)
    connection = store._ours.session._client._connection
    # The next answer is not to the request that is waited for.
    connection.client._pending.append((None, None, 1_000_000))
    assert store.renew([lease]) == [Renewal.HELD]
    assert store.release([lease]) == [True]


def test_requests_are_numbered_on_in_the_next_connection(
    zookeeper_server: ZooKeeperServer, zookeeper_url: str, proxy: StartProxy, open_zookeeper: OpenStore
) -> None:
    """Else a server takes one of the last connection, which it is still busy with, for one of this."""
    between = proxy(zookeeper_server)
    store = open_zookeeper(through(between, zookeeper_url))
    numbers: list[int] = []

    def is_request(packet: bytes) -> bool:
        number = int.from_bytes(packet[4:8], "big", signed=True)
        # Pings and logins have negative numbers; what asks for a session begins like a request with the number 0.
        if number > 0 and len(packet) < 1000:
            numbers.append(number)
        return False

    between.swallow_request(is_request)
    store.release([granted(store)])
    before = max(numbers)
    numbers.clear()
    between.cut()
    eventually(lambda: not store._ours.session.connected, 10, "the loss of the connection")
    store.release([granted(store)])
    assert min(numbers) > before


def test_an_acquire_that_nobody_waits_for_any_more_is_undone(
    private_zookeeper: Callable[..., ZooKeeperServer], open_zookeeper: OpenStore
) -> None:
    server = private_zookeeper()
    store = open_zookeeper(f"{server.fresh_chroot()}?timeout=1&session_timeout=20")
    store.release([granted(store)])
    server.freeze()
    with pytest.raises(StoreUnavailable):
        store.acquire(claim())
    server.thaw()
    eventually(lambda: not store._ours._debts, 10, "the debt to be settled")
    assert store.holders("k") == []
    assert isinstance(store.acquire(claim()), Lease)


def test_a_release_that_was_never_sent_is_made_up_for(
    zookeeper_server: ZooKeeperServer, zookeeper_url: str, proxy: StartProxy, open_zookeeper: OpenStore
) -> None:
    """Its session goes on, so nothing else would ever free the key."""
    between = proxy(zookeeper_server)
    store, other = open_zookeeper(through(between, zookeeper_url, timeout=1, session_timeout=60)), open_zookeeper()
    lease = granted(store)
    between.refuse()
    between.cut()
    with pytest.raises(StoreUnavailable):
        store.release([lease])
    assert isinstance(other.acquire(claim()), Contended)
    between.accept()
    wish = claim()
    eventually(lambda: isinstance(other.acquire(wish), Lease), 15, "the key")


def test_who_asks_again_after_silence_is_not_robbed_of_its_lease(
    private_zookeeper: Callable[..., ZooKeeperServer], open_zookeeper: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The debt of the first try is not collected from the second."""
    server = private_zookeeper()
    store = open_zookeeper(f"{server.fresh_chroot()}?timeout=1&session_timeout=20")
    wish = claim()
    store.release([granted(store)])
    # It is to be late.
    monkeypatch.setattr(store._ours.caretaker, "wake", lambda: None)
    server.freeze()
    with pytest.raises(StoreUnavailable):
        store.acquire(wish)
    assert store._ours._debts
    server.thaw()
    lease = eventually(lambda: _answer(store, wish), 10, "a lease")
    assert isinstance(lease, Lease)
    store._ours._settle_debts()
    assert store.renew([lease]) == [Renewal.HELD]


def _answer(store: ZooKeeperStore, wish: Claim) -> Lease | None:
    try:
        answer = store.acquire(wish)
    except StoreUnavailable:
        return None
    assert isinstance(answer, Lease)
    return answer


# Sessions.


def test_a_lease_has_the_ttl_of_the_session_that_was_negotiated(
    private_zookeeper: Callable[..., ZooKeeperServer], open_zookeeper: OpenStore
) -> None:
    """Servers grant two ticks at least; half of a session is relied upon."""
    url = private_zookeeper(tick=2.0, max_session=60.0).fresh_chroot()
    assert granted(open_zookeeper(f"{url}?session_timeout=0.9"), "short").ttl == pytest.approx(2.0)
    assert granted(open_zookeeper(f"{url}?session_timeout=600"), "long").ttl == pytest.approx(30.0)


def test_the_end_of_a_session_is_the_loss_of_all_its_leases(
    store: ZooKeeperStore, zookeeper_server: ZooKeeperServer
) -> None:
    leases = [granted(store, f"k{number}") for number in range(3)]
    expire_session(zookeeper_server, store)
    assert store.renew(leases) == [Renewal.LOST] * 3
    assert store.holders() == []
    again = granted(store, "k0")
    assert store.renew([leases[0], again]) == [Renewal.LOST, Renewal.HELD]


def test_a_lease_is_not_said_to_be_held_by_a_server_with_shorter_sessions(
    open_zookeeper: OpenStore, zookeeper_url: str
) -> None:
    """The holder reckons with the ttl that its lease was granted with."""
    lease = granted(open_zookeeper(f"{zookeeper_url}?session_timeout=20"))
    with pytest.raises(StoreUnavailable, match="relies on sessions for 1 s"):
        open_zookeeper(f"{zookeeper_url}?session_timeout=2").renew([lease])


def test_a_silent_server_is_an_error_in_time(
    private_zookeeper: Callable[..., ZooKeeperServer], open_zookeeper: OpenStore
) -> None:
    server = private_zookeeper()
    store = open_zookeeper(f"{server.fresh_chroot()}?timeout=1")
    lease = granted(store)
    server.freeze()
    for ask in (
        lambda: store.acquire(claim("k2")),
        lambda: store.renew([lease]),
        lambda: store.holders(),
        lambda: store.enqueue(claim("k2")),
        lambda: store.release([lease]),
    ):
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            ask()
        assert time.monotonic() - began < 2.0
    server.thaw()


def test_a_server_that_is_not_there_is_an_error_in_time_and_found_when_it_is(
    zookeeper_server: ZooKeeperServer, zookeeper_url: str, proxy: StartProxy, open_zookeeper: OpenStore
) -> None:
    between = proxy(zookeeper_server)
    between.refuse()
    store = open_zookeeper(through(between, zookeeper_url, timeout=0.5))
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="no connection in time"):
        store.acquire(claim())
    assert time.monotonic() - began < 1.5
    between.accept()
    wish = claim("another")
    lease = eventually(lambda: _answer(store, wish), 10, "a lease")
    assert isinstance(lease, Lease)


def test_closing_gives_everything_back_at_once(store: ZooKeeperStore, other: ZooKeeperStore) -> None:
    granted(store)
    store.close()
    granted(other)


# The line.


def go_before_it_is_watched(holder: ZooKeeperStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold the key, and release it in the moment in which somebody is about to watch."""
    lease = granted(holder)
    ask = requests.get

    def go_first(path: str, watch: Any = None) -> Any:
        if watch is not None:
            holder.release([lease])
        return ask(path, watch)

    monkeypatch.setattr(zookeeper_queueing.requests, "get", go_first)


def test_a_predecessor_that_goes_before_it_is_watched_is_not_missed(
    store: ZooKeeperStore, other: ZooKeeperStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_before_it_is_watched(other, monkeypatch)
    heard = threading.Event()
    with closing(store.listen(lambda key, owner: heard.set())) as listener:
        place = store.enqueue(claim(), listener=listener.name)
        assert isinstance(place, Ticket)
        assert heard.wait(5)
        assert isinstance(store.confirm([place.claim])[0], Lease)


def test_one_who_leaves_wakes_one_and_not_the_herd(store: ZooKeeperStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.claim_ttl = 30.0
    lease = granted(store)
    looks: list[str] = []
    look_again = ZooKeeperStore._look_again

    def counted(self: Any, place: Any, event: Any = None) -> None:
        looks.append(place.claim.owner)
        look_again(self, place, event)

    monkeypatch.setattr(ZooKeeperStore, "_look_again", counted)
    heard: list[str] = []
    with closing(store.listen(lambda key, owner: heard.append(owner))) as listener:
        places = [store.enqueue(claim(), listener=listener.name) for _ in range(20)]
        store.release([lease])
        eventually(lambda: heard, 5, "a hint")
        assert isinstance(places[0], Ticket)
        assert heard == looks == [places[0].owner]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The owners at whose places a store has looked again, and seen what there is to see."""
    seen: list[str] = []
    looked = ZooKeeperStore._looked

    def counted(self: Any, place: Any, *args: Any, **options: Any) -> None:
        looked(self, place, *args, **options)
        seen.append(place.claim.owner)

    monkeypatch.setattr(ZooKeeperStore, "_looked", counted)
    return seen


def test_a_waiter_is_not_taken_in_by_a_lease_that_moves(
    store: ZooKeeperStore, other: ZooKeeperStore, looks: list[str]
) -> None:
    """The node of the holder goes, and comes back under another name."""
    lease = granted(store)
    heard = threading.Event()
    with closing(store.listen(lambda key, owner: heard.set())) as listener:
        place = store.enqueue(claim(), listener=listener.name)
        assert isinstance(place, Ticket)
        assert other.renew([lease]) == [Renewal.HELD]
        eventually(lambda: looks, 5, "a look")
        assert not heard.is_set()
        assert store.confirm([place.claim]) == [None]
        assert isinstance(store.poll([place])[0], Ticket)
        assert other.release([lease]) == [True]
        assert heard.wait(5)
        [answer] = store.confirm([place.claim])
        assert isinstance(answer, Lease)
        assert store.renew([answer]) == [Renewal.HELD]


def offered(store: ZooKeeperStore, lease: Lease, name: str) -> Claim:
    """Have somebody wait for a lease's key, release it, and return the waiter that was told so."""
    heard = threading.Event()
    with closing(store.listen(lambda key, owner: heard.set())) as listener:
        place = store.enqueue(claim(owner=name), listener=listener.name)
        assert isinstance(place, Ticket)
        assert store.release([lease]) == [True]
        assert heard.wait(5)
    return place.claim


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what was seen count for as long as it may, instead of a quarter of a second."""
    monkeypatch.setattr(zookeeper_queueing, "_FRESH", 1.0)


@pytest.mark.usefixtures("fresh")
def test_a_place_that_was_just_seen_is_taken_without_waiting_for_the_server(
    store: ZooKeeperStore, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = offered(store, granted(store), "waiter")

    def refuse(*args: Any) -> Any:
        raise AssertionError("it waits for an answer")

    with monkeypatch.context() as patched:
        patched.setattr(store._ours.session, "exchange", refuse)
        [lease] = store.confirm([waiting])
    assert isinstance(lease, Lease)
    assert store.renew([lease]) == [Renewal.HELD]
    [path] = behind.contenders()
    assert behind.client.exists(path).czxid == lease.fence
    assert "waiting" not in behind.told(path)


@pytest.mark.usefixtures("fresh")
def test_its_lease_is_believed_from_when_it_was_looked_at(store: ZooKeeperStore) -> None:
    first = granted(store)
    before = time.monotonic()
    waiting = offered(store, first, "waiter")
    until = time.monotonic()
    [lease] = store.confirm([waiting])
    assert isinstance(lease, Lease)
    assert deadline_of(before, lease.ttl) < lease.deadline < deadline_of(until, lease.ttl)


def test_a_waiter_whose_node_has_gone_before_is_not_told_of_a_place(
    store: ZooKeeperStore, behind: Behind, looks: list[str]
) -> None:
    lease = granted(store)
    heard = threading.Event()
    with closing(store.listen(lambda key, owner: heard.set())) as listener:
        place = store.enqueue(claim(), listener=listener.name)
        assert isinstance(place, Ticket)
        assert isinstance(store.enqueue(claim()), Ticket)
        behind.client.delete(behind.contenders()[1])
        store.release([lease])
        eventually(lambda: looks, 5, "a look")
        assert not heard.is_set()
        assert store.confirm([place.claim]) == [None]


def test_a_holder_whose_node_has_gone_since_is_told_to_renew_at_once(store: ZooKeeperStore, behind: Behind) -> None:
    doubts = threading.Event()
    store.when_in_doubt(doubts.set)
    waiting = offered(store, granted(store), "waiter")
    behind.client.delete(behind.contenders()[0])
    [lease] = store.confirm([waiting])
    if lease is not None:
        assert isinstance(lease, Lease)
        assert doubts.wait(5)
        assert store.renew([lease]) == [Renewal.GONE]


def test_a_place_that_was_seen_too_long_ago_is_looked_at_again(
    store: ZooKeeperStore, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zookeeper_queueing, "_FRESH", 0.0)
    waiting = offered(store, granted(store), "waiter")
    behind.client.delete(behind.contenders()[0])
    assert store.confirm([waiting]) == [None]


@pytest.mark.usefixtures("fresh")
def test_so_is_one_that_was_seen_by_another_session(store: ZooKeeperStore, behind: Behind) -> None:
    waiting = offered(store, granted(store), "waiter")
    [place] = store._ours.places.all()
    assert place.seen is not None
    place.seen = replace(place.seen, session=place.seen.session + 1)
    behind.client.delete(behind.contenders()[0])
    assert store.confirm([waiting]) == [None]


def test_so_is_one_that_was_seen_but_not_after_somebody_had_gone(
    store: ZooKeeperStore, other: ZooKeeperStore, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_before_it_is_watched(other, monkeypatch)
    heard = threading.Event()
    with closing(store.listen(lambda key, owner: heard.set())) as listener:
        place = store.enqueue(claim(), listener=listener.name)
        assert isinstance(place, Ticket)
        assert heard.wait(5)
    behind.client.delete(behind.contenders()[0])
    assert store.confirm([place.claim]) == [None]


def test_a_place_that_another_process_has_made_its_own_is_not_offered_here(
    store: ZooKeeperStore, other: ZooKeeperStore, looks: list[str]
) -> None:
    lease = granted(other)
    heard, there = threading.Event(), threading.Event()
    with closing(store.listen(lambda key, owner: heard.set())) as listener:
        place = store.enqueue(claim(), listener=listener.name)
        assert isinstance(place, Ticket)
        with closing(other.listen(lambda key, owner: there.set())) as others:
            assert isinstance(other.poll([place], listener=others.name)[0], Ticket)
            other.release([lease])
            assert there.wait(5)
        eventually(lambda: len(looks) > 1, 5, "both looks")
        assert not heard.is_set()


@pytest.mark.usefixtures("fresh")
def test_a_place_seen_by_a_session_that_has_ended_since_is_not_taken(
    zookeeper_server: ZooKeeperServer, store: ZooKeeperStore
) -> None:
    waiting = offered(store, granted(store), "waiter")
    expire_session(zookeeper_server, store)
    assert store.confirm([waiting]) == [None]


@pytest.mark.usefixtures("fresh")
def test_nor_is_one_whose_owner_was_barred_or_has_left_since(store: ZooKeeperStore) -> None:
    waiting = offered(store, granted(store), "barred")
    store.release([Lease.unknown(waiting.key, waiting.owner, waiting.ttl)])
    assert store.confirm([waiting]) == [None]
    waiting = offered(store, granted(store), "left")
    store.withdraw([waiting])
    assert store.confirm([waiting]) == [None]


@pytest.mark.usefixtures("fresh")
def test_a_word_that_was_lost_is_repeated_by_the_next_renewal_and_the_lease_taken_for_no_place(
    zookeeper_server: ZooKeeperServer,
    zookeeper_url: str,
    proxy: StartProxy,
    open_zookeeper: OpenStore,
    behind: Behind,
) -> None:
    between = proxy(zookeeper_server)
    store = open_zookeeper(through(between, zookeeper_url))
    waiting = offered(store, granted(store), "waiter")

    lost = between.swallow_request(lambda packet: is_about_a_contender(packet, SET_DATA))
    [lease] = store.confirm([waiting])
    assert isinstance(lease, Lease)
    lost.wait()
    [path] = behind.contenders()
    assert "waiting" in behind.told(path)
    # A poll that had been under way asks for it.
    [offer] = store.poll([Ticket(waiting, lease.fence, 0)])
    assert isinstance(offer, Offer)
    assert store._ours.places.all() == []
    assert store.renew([lease]) == [Renewal.HELD]
    eventually(lambda: "waiting" not in behind.told(path), 5, "the word")


def test_a_release_to_somebody_who_waits_removes_one_node_and_tries_no_other(
    store: ZooKeeperStore, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try is a transaction, which is agreed upon and written down."""
    # Somebody has come since the lock was taken.
    monkeypatch.setattr(zookeeper_store, "_LONELY", 0.0)
    lease = granted(store)
    assert isinstance(store.enqueue(claim()), Ticket)
    held, _ = behind.contenders()
    client = client_of(store)
    send, removals = client._call, []

    def noted(request: Any, result: Any) -> Any:
        if isinstance(request, Delete):
            removals.append(request.path.rpartition("/")[2])
        return send(request, result)

    monkeypatch.setattr(client, "_call", noted)
    assert store.release([lease]) == [True]
    assert removals == [held.rpartition("/")[2]]


def test_hints_are_heard_again_after_the_connection_was_lost(
    zookeeper_server: ZooKeeperServer, zookeeper_url: str, proxy: StartProxy, open_zookeeper: OpenStore
) -> None:
    between = proxy(zookeeper_server)
    store, other = open_zookeeper(through(between, zookeeper_url)), open_zookeeper()
    lease = granted(other)
    heard, gaps = threading.Event(), []
    with closing(store.listen(lambda key, owner: heard.set(), lambda: gaps.append(1))) as listener:
        place = store.enqueue(claim(), listener=listener.name)
        assert isinstance(place, Ticket)
        before = len(gaps)
        between.cut()
        eventually(lambda: len(gaps) > before, 10, "the gap")
        other.release([lease])
        assert heard.wait(5)


def test_hints_are_heard_again_although_the_first_look_after_it_was_lost_too(
    zookeeper_server: ZooKeeperServer, zookeeper_url: str, proxy: StartProxy, open_zookeeper: OpenStore
) -> None:
    between = proxy(zookeeper_server)
    store, other = open_zookeeper(through(between, zookeeper_url)), open_zookeeper()
    lease = granted(other)
    heard = threading.Event()
    with closing(store.listen(lambda key, owner: heard.set())) as listener:
        store.claim_ttl = 30.0
        place = store.enqueue(claim(), listener=listener.name)
        assert isinstance(place, Ticket)
        # Answered after the watch was set: that is not the look that is to be lost.
        store.holders("k")
        look = between.swallow_reply(b"/distlock/locks/k")
        between.cut()
        look.wait()
        eventually(lambda: store._ours.session.connected, 10, "a connection")
        other.release([lease])
        assert heard.wait(5)


def test_with_several_places_any_of_the_holders_may_make_room(store: ZooKeeperStore) -> None:
    leases = [granted(store, limit=3) for _ in range(3)]
    heard = threading.Event()
    with closing(store.listen(lambda key, owner: heard.set())) as listener:
        store.enqueue(claim(limit=3), listener=listener.name)
        store.release([leases[0]])
        assert heard.wait(5)


# Completion records.


def test_overdue_completion_records_are_swept_and_others_kept(
    store: ZooKeeperStore, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "EVERY", 0.2)
    kept, overdue = Completion("k", "kept", 30.0), Completion("k", "overdue", 0.001)
    for record in (kept, overdue):
        store.release([granted(store)], [record])
    eventually(lambda: len(behind.names("/distlock/done")) == 1, 5, "one record")
    assert store.acquire(claim(completion=kept)) == Completed("k", "kept")


def test_a_release_leaves_its_record_in_the_same_transaction(
    store: ZooKeeperStore, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Completion("k", "first", 30.0)
    store.release([granted(store)], [first])

    def no_second_step(*args: Any) -> None:
        raise AssertionError("written in a second step")

    monkeypatch.setattr(Completions, "write", no_second_step)
    second = Completion("k", "second", 30.0)
    assert store.release([granted(store)], [second]) == [True]
    assert len(behind.names("/distlock/done")) == 2
