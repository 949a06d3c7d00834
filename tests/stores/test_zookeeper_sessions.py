"""How long a ZooKeeper session is believed."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
from kazoo.exceptions import SessionExpiredError
from kazoo.protocol.serialization import Sync

from celery_distlock import Lock
from celery_distlock.errors import LockLost, StoreUnavailable
from celery_distlock.lease import Claim, Lease, Renewal, new_owner
from celery_distlock.stores import open_store
from celery_distlock.stores.base import LockStore
from celery_distlock.stores.zookeeper.client import Client
from tests.stores.zookeeper import client_of
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.zookeeper_server import ZooKeeperServer

StartProxy = Callable[[ZooKeeperServer], Proxy]


@dataclass
class Connected:
    """A store with a lease, and what happens to its connection."""

    store: LockStore
    lease: Lease
    states: list[str]

    def silent_for(self, part: float) -> None:
        """Pretend that nothing has been sent for a part of the session's time-out."""
        connection = client_of(self.store)._connection
        connection._asked -= part * connection.negotiated
        connection._heard = deque(heard - part * connection.negotiated for heard in connection._heard)


@pytest.fixture
def held(zookeeper_url: str) -> Iterator[Connected]:
    with closing(open_store(zookeeper_url)) as store:
        lease = store.acquire(Claim("k", new_owner(), 30.0))
        assert isinstance(lease, Lease)
        states: list[str] = []
        client_of(store).add_listener(states.append)
        yield Connected(store, lease, states)


def test_after_a_long_silence_the_leader_is_asked_whether_the_session_goes_on(held: Connected) -> None:
    """A follower's answer would not do: it may come right before the leader ends the session."""
    held.silent_for(0.6)
    assert held.store.renew([held.lease]) == [Renewal.HELD]
    assert held.states == ["SUSPENDED", "CONNECTED"]
    assert held.store.renew([held.lease]) == [Renewal.HELD]
    assert held.states == ["SUSPENDED", "CONNECTED"]


def test_a_short_silence_is_nothing_special(held: Connected) -> None:
    held.silent_for(0.4)
    assert held.store.renew([held.lease]) == [Renewal.HELD]
    held.silent_for(0.4)
    assert held.store.renew([held.lease]) == [Renewal.HELD]
    assert held.states == []


def test_what_was_said_a_moment_ago_the_leader_need_not_know(held: Connected) -> None:
    """The server tells it every half tick. Were that server to die, nobody would know of the last word."""
    held.silent_for(0.4)
    assert held.store.renew([held.lease]) == [Renewal.HELD]
    held.silent_for(0.2)
    assert held.store.renew([held.lease]) == [Renewal.HELD]
    assert held.states == ["SUSPENDED", "CONNECTED"]


def in_its_thread(client: Client, function: Callable[[], object]) -> None:
    """Have something done in the thread that sends and reads."""
    done = threading.Event()
    client.overhear_children("/", lambda names: (function(), done.set()))
    assert done.wait(5)


def test_what_follows_an_answer_may_fail(held: Connected) -> None:
    client = client_of(held.store)
    in_its_thread(client, lambda: client.overhear_children("/", lambda names: 1 / 0))
    assert held.store.renew([held.lease]) == [Renewal.HELD]
    assert held.states == []


def test_an_answer_does_not_count_if_the_leader_does_not_know_the_session(held: Connected) -> None:
    """A follower may still answer what it can without the leader."""
    client = client_of(held.store)
    send, heard = client._call, []

    def refused(request: Any, result: Any) -> None:
        if isinstance(request, Sync):
            result.set_exception(SessionExpiredError())
        else:
            send(request, result)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(client, "_call", refused)
        client.overhear_children("/", heard.append)
        assert client.exists_async("/").get(timeout=5) is not None
    assert heard == []


def test_a_session_without_anything_to_do_is_heard_of(zookeeper_url: str) -> None:
    with closing(open_store(f"{zookeeper_url}?session_timeout=3")) as store:
        store.holders("k")
        states: list[str] = []
        client_of(store).add_listener(states.append)
        connection = client_of(store)._connection
        for _ in range(3):
            before = len(connection._heard)
            eventually(lambda before=before: len(connection._heard) > before, 5, "the answer to a ping")
        assert states == []


def test_a_server_that_overhears_the_request_for_a_session_is_asked_again_soon(
    zookeeper_server: ZooKeeperServer, zookeeper_url: str, proxy: StartProxy
) -> None:
    """As one does that is just starting. Kazoo alone would wait for as long as the session may last."""
    between = proxy(zookeeper_server)
    between.pause("server")
    chroot = zookeeper_url.rpartition("/")[2]
    url = f"zookeeper://{between.host}:{between.port}/{chroot}?session_timeout=30&timeout=0.3"
    with closing(open_store(url)) as store:
        with pytest.raises(StoreUnavailable):
            store.holders("k")
        eventually(lambda: between.connections >= 2, 5, "a second connection")


def test_a_holder_is_told_at_once_that_its_session_was_ended(
    private_zookeeper: Callable[..., ZooKeeperServer],
) -> None:
    """Long before its next renewal."""
    server = private_zookeeper(max_session=600.0)
    url = f"{server.fresh_chroot()}?session_timeout=600"
    with closing(open_store(url)) as store:
        lock = Lock("k", store=store)
        lock.acquire()
        # It is renewed at a third of that.
        assert lock.remaining > 200
        server.expire(client_of(store))
        eventually(lambda: not lock.held, 30, "the loss")
        with pytest.raises(LockLost):
            lock.check()
        with pytest.raises(LockLost):
            lock.release()


def test_a_store_that_is_closed_is_not_used_again_by_itself(zookeeper_url: str) -> None:
    with closing(open_store(zookeeper_url)) as store:
        lock = Lock("k", store=store)
        lock.acquire()
        client = client_of(store)
        store.close()
        assert client.state == "LOST"
        assert store._ours.session._client is None
        with pytest.raises(LockLost):
            lock.release()


def test_the_keys_node_of_a_holder_that_died_is_removed_by_the_server(
    private_zookeeper: Callable[..., ZooKeeperServer],
) -> None:
    """Nobody else may ever ask for that key."""
    server = private_zookeeper(container_check=0.5)
    with closing(open_store(server.url)) as store, server.client() as client:
        for key in ("died", "lives"):
            assert isinstance(store.acquire(Claim(key, new_owner(), 30.0)), Lease)
        (node,) = client.get_children("/distlock/locks/died")
        client.delete(f"/distlock/locks/died/{node}")
        eventually(lambda: client.get_children("/distlock/locks") == ["lives"], 20, "the removal of the key's node")
