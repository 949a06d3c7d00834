"""The harness can be trusted: ZooKeeper servers."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from urllib.parse import urlsplit

import pytest
from kazoo.client import KazooClient, KazooState
from kazoo.exceptions import NoAuthError, NoNodeError
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.security import CREATOR_ALL_ACL

from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.zookeeper_ensemble import ZooKeeperEnsemble
from tests.support.zookeeper_server import ZooKeeperServer, connected

StartZooKeeper = Callable[..., ZooKeeperServer]
StartProxy = Callable[[ZooKeeperServer], Proxy]


def of_url(url: str) -> str:
    """Return what kazoo calls hosts."""
    parts = urlsplit(url)
    return parts.netloc + parts.path


def test_a_server_starts_answers_and_stops(private_zookeeper: StartZooKeeper) -> None:
    server = private_zookeeper()
    assert server.mode == "standalone"
    with server.client() as client:
        assert client.create("/a", b"1") == "/a"
    server.stop()
    assert server.mode is None
    with pytest.raises(KazooTimeoutError):
        KazooClient(hosts=server.hosts).start(timeout=0.2)


def test_a_restarted_server_has_its_port_and_its_data_unless_they_are_to_go(private_zookeeper: StartZooKeeper) -> None:
    server = private_zookeeper()
    port = server.port
    with server.client() as client:
        client.create("/a", b"1")
    server.restart()
    with server.client() as client:
        assert client.get("/a")[0] == b"1"
    server.restart(without_data=True)
    with server.client() as client, pytest.raises(NoNodeError):
        client.get("/a")
    assert server.port == port


def test_a_frozen_server_is_silent_until_it_is_thawed(private_zookeeper: StartZooKeeper) -> None:
    server = private_zookeeper()
    with server.client() as client:
        server.freeze()
        waiting = client.create_async("/a")
        with pytest.raises(KazooTimeoutError):
            waiting.get(timeout=0.2)
        server.thaw()
        assert waiting.get(timeout=10) == "/a"


def test_sessions_last_from_two_ticks_to_what_is_configured(private_zookeeper: StartZooKeeper) -> None:
    # Sessions that outlast a machine's hiccup: kazoo takes as long for a connection as it asks for a session.
    server = private_zookeeper(tick=5.0, max_session=15.0)
    with server.client(timeout=5.0) as shortest, server.client(timeout=100.0) as longest:
        granted = server.sessions()
        assert [granted[client.client_id[0]] for client in (shortest, longest)] == [10.0, 15.0]


def test_chroots_are_empty_and_apart(zookeeper_server: ZooKeeperServer, zookeeper_url: str) -> None:
    other = zookeeper_server.fresh_chroot()
    assert other != zookeeper_url
    for url in (zookeeper_url, other):
        with connected(of_url(url)) as client:
            assert client.get_children("/") == []
            client.create("/left", b"over")


@pytest.mark.parametrize("tls", ["server", "client"])
def test_an_encrypted_port_wants_a_certificate_where_it_was_told_to(
    private_zookeeper: StartZooKeeper, tls: str
) -> None:
    server = private_zookeeper(tls=tls)
    authority, own = str(server.certificates.authority), str(server.certificates.client)
    with connected(f"localhost:{server.tls_port}", use_ssl=True, ca=authority, certfile=own, keyfile=own) as client:
        client.create("/a")

    unknown = ssl.create_default_context(cafile=authority)
    with (
        socket.create_connection((server.host, server.tls_port), timeout=10) as wire,
        pytest.raises((ssl.SSLError, ConnectionError)) if tls == "client" else nullcontext(),
        unknown.wrap_socket(wire, server_hostname="localhost") as encrypted,
    ):
        encrypted.sendall(b"ruok")
        assert encrypted.recv(4) == b"imok"


def test_users_log_in_by_sasl(private_zookeeper: StartZooKeeper) -> None:
    pytest.importorskip("puresasl")
    server = private_zookeeper(users={"alice": "secret"})
    alice = {"mechanism": "DIGEST-MD5", "username": "alice", "password": "secret"}
    with server.client(sasl_options=alice) as client:
        client.create("/a", acl=CREATOR_ALL_ACL)
        assert client.get_acls("/a")[0][0].id.id == "alice"
    with server.client() as nobody, pytest.raises(NoAuthError):
        nobody.get("/a")


def test_an_expired_session_is_lost_and_its_ephemeral_nodes_are_gone(
    zookeeper_server: ZooKeeperServer, zookeeper_url: str
) -> None:
    lost = threading.Event()
    with connected(of_url(zookeeper_url)) as client, connected(of_url(zookeeper_url)) as other:
        client.add_listener(lambda state: lost.set() if state == KazooState.LOST else None)
        client.create("/a", ephemeral=True)
        session = client.client_id[0]
        assert session in zookeeper_server.sessions()
        zookeeper_server.expire(client)
        assert lost.wait(10)
        assert other.exists("/a") is None
        assert session not in zookeeper_server.sessions()


def test_a_session_outlives_a_short_cut_and_not_a_long_one(
    private_zookeeper: StartZooKeeper, proxy: StartProxy
) -> None:
    server = private_zookeeper(tick=0.1)
    between = proxy(server)
    states: list[str] = []
    with server.client() as observer, connected(f"{between.host}:{between.port}", timeout=5.0) as client:
        client.add_listener(states.append)
        client.create("/a", ephemeral=True)
        between.cut()
        eventually(lambda: states == [KazooState.SUSPENDED, KazooState.CONNECTED], 10, "a new connection")
        assert observer.exists("/a")

        began = time.monotonic()
        between.refuse()
        between.cut()
        eventually(lambda: observer.exists("/a") is None, 20, "the end of the session")
        # It was heard of every third of that.
        assert time.monotonic() - began > 1.0
        between.accept()
        eventually(lambda: states[3:] == [KazooState.LOST, KazooState.CONNECTED], 10, "a new session")


class TestEnsemble:
    def test_it_has_a_leader_and_two_followers_with_one_set_of_data(
        self, ensemble: ZooKeeperEnsemble, ensemble_url: str
    ) -> None:
        assert sorted(server.mode or "" for server in ensemble.servers) == ["follower", "follower", "leader"]
        assert ensemble.leader() not in ensemble.followers()
        path = urlsplit(ensemble_url).path
        with connected(of_url(ensemble_url)) as client:
            client.create("/a", b"1")
        for server in ensemble.servers:
            with server.client(path) as client:
                client.sync("/a")
                assert client.get("/a")[0] == b"1"

    def test_another_leader_is_elected_and_sessions_go_on(self, ensemble: ZooKeeperEnsemble, ensemble_url: str) -> None:
        with connected(of_url(ensemble_url)) as client:
            client.create("/a", ephemeral=True)
            session = client.client_id[0]
            first = ensemble.leader()
            ensemble.kill(first)
            assert ensemble.leader() is not first
            assert client.retry(client.exists, "/a").ephemeralOwner == session
            ensemble.restore()
            assert len(ensemble.followers()) == 2
            assert client.retry(client.exists, "/a").ephemeralOwner == session

    def test_a_silent_leader_is_replaced(self, ensemble: ZooKeeperEnsemble) -> None:
        first = ensemble.leader()
        first.freeze()
        assert ensemble.leader() is not first
        ensemble.restore()
        assert first in ensemble.followers()

    def test_without_a_quorum_it_serves_nobody(self, ensemble: ZooKeeperEnsemble, ensemble_url: str) -> None:
        with connected(of_url(ensemble_url), timeout=60.0) as client:
            client.create("/a", ephemeral=True)
            lost = ensemble.lose_quorum()
            (left,) = set(ensemble.servers) - set(lost)
            eventually(lambda: left.mode is None, 10, "the end of service")
            waiting = client.exists_async("/a")
            ensemble.restore()
            assert client.retry(client.exists, "/a") is not None
            waiting.wait(10)
