"""One path, two libraries: the contenders of kazoo's own ``Lock`` and ours exclude each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from celery_distlock import Lock
from celery_distlock.lease import Claim, Contended, Lease, Renewal, Ticket, new_owner
from celery_distlock.stores.zookeeper import ZooKeeperStore
from tests.support.waiting import eventually
from tests.support.zookeeper_server import ZooKeeperServer


@pytest.fixture
def store(zookeeper_url: str) -> Iterator[ZooKeeperStore]:
    with closing(ZooKeeperStore(f"{zookeeper_url}?shared=true")) as store:
        yield store


@pytest.fixture
def kazoo(zookeeper_server: ZooKeeperServer, zookeeper_url: str) -> Iterator[Any]:
    with zookeeper_server.client("/" + zookeeper_url.rpartition("/")[2]) as client:
        yield client


def claim(key: str = "locks/report") -> Claim:
    return Claim(key, new_owner(), 30.0, record={"identifier": "ours"})


def granted(answer: object) -> Lease:
    assert isinstance(answer, Lease), answer
    return answer


def in_thread(function: Any) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("kind", ["Lock", "WriteLock"])
def test_what_kazoo_holds_is_contended_and_names_its_holder(store: ZooKeeperStore, kazoo: Any, kind: str) -> None:
    theirs = getattr(kazoo, kind)("/locks/report", "their identifier")
    theirs.acquire()
    answer = store.acquire(claim())
    assert isinstance(answer, Contended)
    assert answer.holder is not None
    assert answer.holder["identifier"] == "their identifier"
    theirs.release()
    granted(store.acquire(claim()))


def test_what_we_hold_kazoo_cannot_have(store: ZooKeeperStore, kazoo: Any) -> None:
    lease = granted(store.acquire(claim()))
    theirs = kazoo.Lock("/locks/report")
    assert not theirs.acquire(blocking=False)
    store.release([lease])
    assert theirs.acquire(blocking=False)
    theirs.release()


def test_kazoo_waits_for_us_also_when_our_lease_moves(store: ZooKeeperStore, kazoo: Any, zookeeper_url: str) -> None:
    lease = granted(store.acquire(claim()))
    theirs = kazoo.Lock("/locks/report")
    held = threading.Event()

    def wait_for_it() -> None:
        theirs.acquire(timeout=20)
        held.set()

    waiting = in_thread(wait_for_it)
    eventually(lambda: len(kazoo.get_children("/locks/report")) == 2, 10, "their contender")
    with closing(ZooKeeperStore(f"{zookeeper_url}?shared=true")) as other:
        assert other.renew([lease]) == [Renewal.HELD]
        assert not held.wait(0.3)
        assert other.release([lease]) == [True]
    assert held.wait(5)
    waiting.join(5)
    theirs.release()


def test_we_wait_for_kazoo_and_are_told_when_it_is_done(store: ZooKeeperStore, kazoo: Any) -> None:
    theirs = kazoo.Lock("/locks/report")
    theirs.acquire()
    heard = threading.Event()
    with closing(store.listen(lambda key, owner: heard.set())) as listener:
        place = store.enqueue(claim(), listener=listener.name)
        assert isinstance(place, Ticket)
        theirs.release()
        assert heard.wait(5)
        granted(store.confirm([place.claim])[0])


def test_both_stand_in_one_line(store: ZooKeeperStore, kazoo: Any) -> None:
    lease = granted(store.acquire(claim()))
    theirs = kazoo.Lock("/locks/report")
    waiting = in_thread(lambda: theirs.acquire(timeout=20))
    eventually(lambda: len(kazoo.get_children("/locks/report")) == 2, 10, "their contender")
    place = store.enqueue(claim())
    assert isinstance(place, Ticket)
    store.release([lease])
    waiting.join(10)
    assert theirs.is_acquired
    assert isinstance(store.poll([place])[0], Ticket)
    theirs.release()
    assert granted(store.confirm([place.claim])[0]).fence > lease.fence


def test_a_shared_path_is_kept(store: ZooKeeperStore, kazoo: Any) -> None:
    """A kazoo Lock that has seen it relies on it."""
    store.release([granted(store.acquire(claim()))])
    store.holders("locks/report")
    assert kazoo.get_children("/locks/report") == []


def test_the_two_never_hold_at_once(store: ZooKeeperStore, kazoo: Any, zookeeper_url: str) -> None:
    count, most, inside = 0, 0, 0

    def work() -> None:
        nonlocal count, most, inside
        inside += 1
        most = max(most, inside)
        now = count
        time.sleep(0.001)
        count = now + 1
        inside -= 1

    def theirs() -> None:
        lock = kazoo.Lock("/locks/report")
        for _ in range(15):
            with lock:
                work()

    def ours() -> None:
        lock = Lock("locks/report", store=store)
        for _ in range(15):
            with lock:
                work()

    threads = [in_thread(contend) for contend in (theirs, ours, theirs, ours)]
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert (count, most) == (60, 1)
