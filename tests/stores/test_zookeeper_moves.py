"""Sessions that move to another server without their client's knowledge.

A server that is too slow is left for the next one. It may still ask for the session when it comes to read the request,
and then the leader believes that the session is there.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from urllib.parse import urlsplit

import pytest
from kazoo.exceptions import ConnectionLoss
from kazoo.protocol.serialization import Connect, int_struct

from celery_distlock.lease import Claim, Lease, Renewal, new_owner
from celery_distlock.stores import open_store
from celery_distlock.stores.zookeeper.address import parse
from celery_distlock.stores.zookeeper.client import Client
from tests.stores.zookeeper import client_of
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.zookeeper_ensemble import ZooKeeperEnsemble
from tests.support.zookeeper_server import ZooKeeperServer

#: Bytes; a node may have a mebibyte.
_LARGE = 900_000


@pytest.fixture
def follower(ensemble: ZooKeeperEnsemble) -> ZooKeeperServer:
    return ensemble.followers()[0]


@pytest.fixture
def between(follower: ZooKeeperServer, proxy: Callable[[ZooKeeperServer], Proxy]) -> Proxy:
    return proxy(follower)


@pytest.fixture
def client(between: Proxy) -> Iterator[Client]:
    client = Client(parse(f"zookeeper://{between.host}:{between.port}?session_timeout=40", {}))
    client.start()
    yield client
    client.stop()
    client.close()


@contextlib.contextmanager
def moved(client: Client, server: ZooKeeperServer) -> Iterator[None]:
    """Have the leader believe through the block that a session is at this server."""
    number, password = client.client_id
    request = Connect(0, 0, 40000, number, password, False).serialize()
    with socket.create_connection((server.host, server.port), timeout=10) as connection:
        connection.sendall(int_struct.pack(len(request)) + request)
        assert number.to_bytes(8, "big") in connection.recv(100)
        yield


def last_number(server: ZooKeeperServer, client: Client) -> int:
    """Return the number of the request of a session that a server has answered last."""
    (told,) = re.findall(rf"sid={client.client_id[0]:#x},.*lcxid=0x([0-9a-f]+)", server.command("cons"))
    return int(told, 16)


def test_a_write_that_is_not_answered_while_a_read_is_ends_the_connection_and_nothing_else(
    ensemble: ZooKeeperEnsemble,
    ensemble_url: str,
    follower: ZooKeeperServer,
    between: Proxy,
    client: Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    chroot, session = urlsplit(ensemble_url).path, client.client_id
    client.create(f"{chroot}/large", bytes(_LARGE))

    def only_the_read_is_answered() -> bool:
        with moved(client, ensemble.leader()):
            # There is not so much room on the way: what comes after it waits in the server, to be sent at once.
            between.pause("client")
            larges = [client.get_async(f"{chroot}/large") for _ in range(25)]
            written, read = client.create_async(f"{chroot}/written"), client.exists_async(chroot)
            eventually(lambda: len(client._pending) == len(larges) + 2, 10, "all requests under way")
            last = client._connection._number
            eventually(lambda: last_number(follower, client) == last, 10, "the last answer")
            between.resume("client")
            assert all(len(one.get(timeout=10)[0]) == _LARGE for one in larges)
            for one in (written, read):
                with pytest.raises(ConnectionLoss):
                    one.get(timeout=10)
        assert client.wait_connected(10)
        assert client.exists(f"{chroot}/written") is None
        assert client.client_id == session
        return f"Connection dropped: an answer to {last} where one to {last - 1} was due" in caplog.messages

    # One packet of 64 KiB in several hundred ends just there, and the connection before the answer.
    assert any(only_the_read_is_answered() for _ in range(3))
    client.delete(f"{chroot}/large")


def test_a_store_takes_its_session_back_and_loses_nothing(
    ensemble: ZooKeeperEnsemble, ensemble_url: str, between: Proxy
) -> None:
    with closing(open_store(between.url(ensemble_url))) as store:
        before = store.acquire(Claim("before", new_owner(), 30.0))
        assert isinstance(before, Lease)
        states: list[str] = []
        client_of(store).add_listener(states.append)
        with moved(client_of(store), ensemble.leader()):
            after = store.acquire(Claim("after", new_owner(), 30.0))
            assert isinstance(after, Lease)
        assert states == ["SUSPENDED", "CONNECTED"]
        assert store.renew([before, after]) == [Renewal.HELD, Renewal.HELD]
        assert [len(store.holders(key)) for key in ("before", "after")] == [1, 1]


def test_requests_are_numbered_on_in_the_next_connection(
    follower: ZooKeeperServer, between: Proxy, client: Client
) -> None:
    for _ in range(5):
        client.exists("/")
    before = last_number(follower, client)
    between.cut()
    eventually(lambda: not client.connected, 10, "the end of the connection")
    assert client.wait_connected(10)
    client.exists("/")
    assert last_number(follower, client) > before
