"""What stays in ZooKeeper for a time, seen from behind the store's back: messages, places that rest, what was left."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from celery_distlock.lease import Claim, Completion, Contended, Lease, Offer, Ticket
from celery_distlock.stores.token_rules import Tokens
from celery_distlock.stores.zookeeper import ZooKeeperStore, clock, sweeping
from celery_distlock.stores.zookeeper.clock import Clock
from celery_distlock.stores.zookeeper.session import Answer
from celery_distlock.tokens import Begun, Duplicate, Reserved, Token, running_key
from tests.stores.conftest import claim, granted
from tests.stores.zookeeper import Behind
from tests.support.waiting import eventually
from tests.support.zookeeper_server import ZooKeeperServer

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


def run_of(task_id: str) -> Claim:
    return claim(running_key("k"), record={"id": task_id})


def lease_of(claim: Claim, answer: object) -> Lease:
    assert isinstance(answer, Begun), answer
    return Lease(claim.key, claim.owner, answer.fence, 5.0, 0.0)


def everything(behind: Behind) -> list[str]:
    """Return what there is below the nodes under which things are kept."""
    return [f"{folder}/{name}" for folder in _FOLDERS for name in behind.names(f"/distlock/{folder}")]


_FOLDERS = ("locks", "unique", "kept", "done")


# Messages.


def test_a_message_that_has_started_and_ended_leaves_nothing(store: ZooKeeperStore, behind: Behind) -> None:
    token, wish = Token("k", "first", 5.0, running=True), run_of("first")
    store.reserve(token)
    assert len(everything(behind)) == 1
    store.release([lease_of(wish, store.begin(token, wish))])
    store.holders("the last requests have been executed")
    assert everything(behind) == []


def test_a_message_that_was_cancelled_leaves_nothing(store: ZooKeeperStore, behind: Behind) -> None:
    token = Token("k", "first", 5.0, window=5.0)
    store.reserve(token)
    store.cancel(token, window=True)
    assert everything(behind) == []


def test_publishing_is_one_exchange_with_the_servers_accepted_or_not(
    store: ZooKeeperStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the servers are slow to answer, their time is asked for again after a second: not what this is about.
    monkeypatch.setattr(clock, "_PAUSE", 60.0)
    store.cancel(Token("other", "m", 5.0), window=True)
    store.reserve(Token("other", "m", 5.0))
    publisher, exchanged = threading.current_thread(), []
    session, exchange = store._ours.session, store._ours.session.exchange

    def counted(*args: Any) -> Answer:
        # The first use of a store has another thread sweep.
        if threading.current_thread() is publisher:
            exchanged.append(args)
        return exchange(*args)

    monkeypatch.setattr(session, "exchange", counted)
    for running in (False, True):
        key = f"k{running}"
        assert store.reserve(Token(key, "first", 5.0, running=running)) == Reserved()
        assert store.reserve(Token(key, "second", 5.0, running=running)) == Duplicate("first")
    assert len(exchanged) == 4


def test_who_has_read_an_earlier_message_does_not_write_to_a_later_one(
    store: ZooKeeperStore, other: ZooKeeperStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its reading and its writing the first one has started, and the next one was accepted."""
    store.reserve(Token("k", "old", 30.0, replaces=True))
    decide, meanwhile = Tokens.reserve, []

    def slowly(self: Tokens, *args: Any) -> object:
        answer = decide(self, *args)
        if not meanwhile:
            meanwhile.append(True)
            assert other.begin(Token("k", "old", 30.0, replaces=True), None) == Begun()
            assert other.reserve(Token("k", "next", 30.0, replaces=True)) == Reserved()
        return answer

    monkeypatch.setattr(Tokens, "reserve", slowly)
    assert store.reserve(Token("k", "new", 30.0, replaces=True)) == Reserved("next")


def test_a_runner_without_an_id_does_not_count(store: ZooKeeperStore, behind: Behind) -> None:
    lease = granted(store, running_key("k"))
    assert store.reserve(Token("k", "second", 5.0, running=True)) == Reserved()
    assert store.holders(running_key("k"))[0]["owner"] == lease.owner


def test_a_runner_whose_session_has_ended_bars_nobody_though_its_keys_node_is_still_there(
    store: ZooKeeperStore, open_zookeeper: OpenStore, behind: Behind
) -> None:
    with closing(open_zookeeper()) as mortal:
        assert isinstance(mortal.begin(Token("k", "first", 5.0), run_of("first")), Begun)
    assert behind.contenders("unique:k") == []
    assert behind.keys() == ["unique:k"]
    assert store.reserve(Token("k", "second", 5.0, running=True)) == Reserved()
    wish = run_of("second")
    assert lease_of(wish, store.begin(Token("k", "second", 5.0, running=True), wish)).fence > 0


def test_where_paths_are_shared_those_of_running_messages_are_not(
    open_zookeeper: OpenStore, zookeeper_url: str, behind: Behind
) -> None:
    store = open_zookeeper(f"{zookeeper_url}?shared=true")
    token, wish = Token("k", "first", 5.0, running=True), run_of("first")
    store.reserve(token)
    lease = lease_of(wish, store.begin(token, wish))
    assert [holder["id"] for holder in store.holders(wish.key)] == ["first"]
    assert store.release([lease]) == [True]
    store.holders(wish.key)
    assert everything(behind) == []
    assert behind.names("/") == ["distlock"]


# Places that rest, and what was left to nobody.


def test_a_place_that_has_rested_leaves_nothing_though_nobody_comes(store: ZooKeeperStore, behind: Behind) -> None:
    store.release([dataclasses.replace(granted(store), rest=1.0)])
    assert len(behind.contenders()) == 1
    eventually(lambda: everything(behind) == [], 5.0, "the place to be removed")


def test_who_waits_for_a_place_that_rests_is_told_when_to_look(store: ZooKeeperStore, other: ZooKeeperStore) -> None:
    lease = granted(store)
    releasing = time.monotonic()
    store.release([dataclasses.replace(lease, rest=1.5)])
    released = time.monotonic()
    store.close()
    asking = time.monotonic()
    place = other.enqueue(claim())
    assert isinstance(place, Ticket)
    # The leader's clock is known as exactly as its answer was quick.
    inexact = 0.1 + time.monotonic() - asking
    assert releasing + 1.5 - inexact < place.look_at < released + 1.5 + inexact
    eventually(lambda: time.monotonic() > place.look_at + 0.01, 5.0, "the time to look")
    assert isinstance(other.poll([place])[0], Offer)


def test_a_lease_left_to_nobody_leaves_nothing_once_it_was_taken_over(
    store: ZooKeeperStore, other: ZooKeeperStore, behind: Behind
) -> None:
    heir = claim()
    store.pass_on(granted(store), heir, Completion("k", "run", 30.0), unattended=True)
    assert len(behind.names("/distlock/kept")) == 1
    passed = other.pass_on(Lease.unknown("k", heir.owner, 30.0), claim())
    assert passed is not None
    other.release([passed])
    other.holders("the last requests have been executed")
    assert [name.partition("/")[0] for name in everything(behind)] == ["done"]


def test_a_rest_and_a_record_are_left_in_one_step(store: ZooKeeperStore, behind: Behind) -> None:
    done = Completion("k", "run", 30.0)
    for _ in range(2):
        # The second time the record is there already.
        lease = dataclasses.replace(granted(store), rest=1.0)
        assert store.release([lease], [done]) == [True]
        assert isinstance(store.acquire(claim()), Contended)
        eventually(lambda: behind.keys() == [], 5.0, "the place to be removed")
    assert [name.partition("/")[0] for name in everything(behind)] == ["done"]


# What those have left who do not live any more.


def test_what_dead_processes_have_left_is_swept_by_whoever_renews_a_lease(
    store: ZooKeeperStore, open_zookeeper: OpenStore, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(open_zookeeper()) as dead:
        dead.reserve(Token("a", "first", 1.0, window=30.0))
        dead.reserve(Token("b", "old", 1.0, replaces=True))
        dead.reserve(Token("b", "new", 1.0, replaces=True))
        dead.release([dataclasses.replace(granted(dead, "c"), rest=1.0)], [Completion("c", "run", 1.0)])
    assert len(everything(behind)) == 6
    # Not before: they would have swept it themselves.
    monkeypatch.setattr(sweeping, "EVERY", 0.5)
    lease = granted(store, "mine")
    store.renew([lease])
    eventually(lambda: everything(behind) == ["locks/mine"], 10.0, "everything to be swept")


def test_what_still_counts_is_not_swept(store: ZooKeeperStore, behind: Behind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "EVERY", 0.2)
    store.reserve(Token("a", "first", 30.0, window=30.0))
    store.release([dataclasses.replace(granted(store, "c"), rest=30.0)], [Completion("c", "run", 30.0)])
    before = everything(behind)
    swept = behind.client.exists("/distlock/swept")
    eventually(lambda: _writes(behind, "swept") > (swept.version if swept else 0) + 3, 10.0, "three sweeps")
    assert everything(behind) == before
    assert store.reserve(Token("a", "second", 30.0)) == Duplicate("first")


def test_of_many_processes_one_sweeps(
    open_zookeeper: OpenStore, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = []
    in_parts = sweeping.Sweeper._in_parts
    monkeypatch.setattr(sweeping.Sweeper, "_in_parts", lambda self, *args: swept.append(self) or in_parts(self, *args))
    stores = [open_zookeeper() for _ in range(4)]
    for number, store in enumerate(stores):
        store.reserve(Token("k", f"m{number}", 30.0))
    eventually(lambda: all(store._ours.sweeper.due_at > time.monotonic() for store in stores), 5.0, "everybody to look")
    eventually(lambda: swept, 5.0, "a sweep")
    assert len(set(swept)) == 1
    assert _writes(behind, "swept") == 1


def test_a_store_that_was_closed_leaves_no_thread(store: ZooKeeperStore, behind: Behind) -> None:
    store.reserve(Token("k", "first", 30.0, window=30.0))
    store.release([dataclasses.replace(granted(store, "c"), rest=30.0)])
    eventually(lambda: store._ours.sweeper.due_at > time.monotonic(), 5.0, "the first look")
    caretaker = store._ours.caretaker
    assert caretaker._thread is not None
    store.close()
    eventually(lambda: caretaker._thread is None, 5.0, "the thread to end")


def _writes(behind: Behind, name: str) -> int:
    stat = behind.client.exists(f"/distlock/{name}")
    return stat.version if stat is not None else 0


# The leader's clock.


class Leader:
    """Answers as a leader whose clock is ``ahead`` of ours, after ``delay`` seconds either way."""

    def __init__(self, ahead: float, delay: float = 0.0) -> None:
        self.ahead, self.delay, self.asked = ahead, delay, 0

    def exchange(self, requests: Any, end: float) -> Answer:
        self.asked += 1
        sent = time.monotonic()
        time.sleep(self.delay)
        stat = type("Stat", (), {"mtime": int((sent + self.delay + self.ahead) * 1000)})
        time.sleep(self.delay)
        return Answer([stat], sent, 1, 5.0)


def test_the_leaders_time_is_told_and_never_too_late() -> None:
    leader: Any = Leader(1000.0, delay=0.02)
    before = time.monotonic()
    told = Clock(leader, "/clock").now(1e9)
    assert before + 1000.0 < told <= time.monotonic() + 1000.0


def test_the_leader_is_asked_once_for_a_while() -> None:
    leader: Any = Leader(1000.0)
    clock = Clock(leader, "/clock")
    for _ in range(10):
        clock.now(1e9)
    assert leader.asked == 1


def test_a_moment_that_may_be_past_or_not_is_asked_for() -> None:
    leader: Any = Leader(1000.0, delay=0.02)
    clock = Clock(leader, "/clock")
    clock.now(1e9)
    assert not clock.is_past(time.monotonic() + 1000.5, 1e9)
    assert clock.is_past(time.monotonic() + 999.5, 1e9)
    assert leader.asked == 1
    assert clock.is_past(time.monotonic() + 1000.0 - 0.002, 1e9)
    assert leader.asked == 2


def test_a_clock_that_was_set_is_believed() -> None:
    leader: Any = Leader(1000.0)
    clock = Clock(leader, "/clock")
    clock.now(1e9)
    leader.ahead = 500.0
    clock.ask(1e9)
    assert clock.now(1e9) <= time.monotonic() + 500.0


def test_another_leaders_clock_is_asked_anew(store: ZooKeeperStore) -> None:
    store.reserve(Token("k", "first", 5.0))
    assert store._ours.clock._known is not None
    store._ours._on_connected()
    assert store._ours.clock._known is None


def test_messages_tell_their_key_to_who_looks(store: ZooKeeperStore, behind: Behind) -> None:
    store.reserve(Token("the key", "first", 5.0))
    [name] = behind.names("/distlock/unique")
    told = json.loads(behind.client.get(f"/distlock/unique/{name}")[0])
    assert (told["key"], told["queued"][0]) == ("the key", "first")
