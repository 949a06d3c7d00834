"""Logging in to ZooKeeper, encrypted connections, and paths that are missing."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest
from kazoo.exceptions import NoAuthError

from celery_distlock import Lock, LockConfigError, StoreUnavailable
from celery_distlock.lease import Claim, new_owner
from celery_distlock.stores import open_store
from celery_distlock.stores.base import LockStore
from tests.support.zookeeper_server import ZooKeeperServer

StartZooKeeper = Callable[..., ZooKeeperServer]
Open = Callable[..., LockStore]


@pytest.fixture
def store_of() -> Iterator[Open]:
    """Open stores, which are closed after the test."""
    with ExitStack() as stack:
        yield lambda url, **options: stack.enter_context(closing(open_store(url, options=options)))


def works(store: LockStore) -> None:
    with Lock("k", store=store) as lock:
        assert lock.locked()


def is_unavailable(store: LockStore) -> BaseException | None:
    """Within its time-out, and without telling a password; return the reason."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        store.acquire(Claim("k", new_owner(), 30.0))
    assert time.monotonic() - began < 10.0
    assert "secret" not in str(caught.value)
    return caught.value.__cause__


def as_user(url: str, login: str) -> str:
    return url.replace("zookeeper://", f"zookeeper://{login}@")


class TestDigest:
    def test_the_nodes_of_one_user_are_closed_to_others(self, zookeeper_url: str, store_of: Open) -> None:
        works(store_of(as_user(zookeeper_url, "alice:secret")))
        for login in ("alice:wrong-secret", "bob:secret"):
            assert isinstance(is_unavailable(store_of(as_user(zookeeper_url, login))), NoAuthError)
        assert isinstance(is_unavailable(store_of(zookeeper_url)), NoAuthError)
        works(store_of(as_user(zookeeper_url, "alice:secret")))

    def test_what_a_url_cannot_say_is_an_option(self, zookeeper_url: str, store_of: Open) -> None:
        from kazoo.security import make_digest_acl

        acl = [make_digest_acl("alice", "secret", all=True), make_digest_acl("bob", "secret", all=True)]
        for login in ("alice:secret", "bob:secret"):
            works(store_of(as_user(zookeeper_url, login), default_acl=acl))

    def test_the_password_is_in_no_name(self, zookeeper_url: str, store_of: Open) -> None:
        store = store_of(as_user(zookeeper_url, "alice:s%40cret%2F"))
        assert store.name == zookeeper_url
        works(store)


def test_a_chroot_is_made_when_it_is_missing(
    zookeeper_server: ZooKeeperServer, zookeeper_url: str, store_of: Open
) -> None:
    works(store_of(f"{zookeeper_url}/shop/locks"))
    with zookeeper_server.client(f"/{zookeeper_url.rpartition('/')[2]}") as client:
        assert client.get_children("/shop/locks") == ["distlock"]


class TestSasl:
    def test_a_user_logs_in(self, private_zookeeper: StartZooKeeper, store_of: Open) -> None:
        pytest.importorskip("puresasl")
        server = private_zookeeper(users={"alice": "secret"})
        url = as_user(f"{server.url}/locks", "alice:secret")
        works(store_of(f"{url}?sasl=DIGEST-MD5"))
        sasl = {"mechanism": "DIGEST-MD5", "username": "alice", "password": "secret"}
        works(store_of(f"{server.url}/more", sasl_options=sasl))
        with server.client(sasl_options=sasl) as client:
            assert [acl.id.scheme for acl in client.get_acls("/locks/distlock")[0]] == ["sasl"]
        is_unavailable(store_of(url.replace("secret", "wrong-secret") + "?sasl=DIGEST-MD5"))


class TestTls:
    @pytest.fixture(autouse=True)
    def no_socket_left_open(self) -> Iterator[None]:
        """Have the garbage collector complain of sockets that were not closed, and that fail the test."""
        yield
        gc.collect()

    @pytest.fixture
    def server(self, private_zookeeper: StartZooKeeper) -> ZooKeeperServer:
        return private_zookeeper(tls="client")

    def url(self, server: ZooKeeperServer, **query: object) -> str:
        said = {"tls": "true", "timeout": 15.0, "ca": server.certificates.authority, **query}
        return f"zookeeper://localhost:{server.tls_port}/locks?" + "&".join(f"{k}={v}" for k, v in said.items())

    def test_both_sides_show_a_certificate(self, server: ZooKeeperServer, store_of: Open) -> None:
        own = server.certificates.client
        works(store_of(self.url(server, certfile=own, keyfile=own)))
        # One file may hold both.
        works(store_of(self.url(server, certfile=own)))
        works(
            store_of(
                f"zookeeper://localhost:{server.tls_port}",
                use_ssl=True,
                ca=str(own.parent / "ca.pem"),
                certfile=str(own),
            )
        )

    def test_whoever_has_none_or_expects_another_is_not_served(self, server: ZooKeeperServer, store_of: Open) -> None:
        own = server.certificates.client
        is_unavailable(store_of(self.url(server, timeout=2.0)))
        is_unavailable(store_of(self.url(server, timeout=2.0, ca=own, certfile=own)))
        gc.collect()

    def test_a_key_without_a_certificate_is_a_mistake(self, server: ZooKeeperServer) -> None:
        with pytest.raises(LockConfigError, match="certfile"):
            open_store(self.url(server, keyfile=server.certificates.client))
