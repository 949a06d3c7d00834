"""Store URLs of ZooKeeper."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from typing import Any

import pytest

from celery_distlock.errors import LockConfigError, StoreUnavailable
from celery_distlock.lease import Claim, Lease, new_owner
from celery_distlock.stores import open_store
from celery_distlock.stores.zookeeper import ZooKeeperStore
from celery_distlock.stores.zookeeper.address import parse
from tests.support.zookeeper_server import ZooKeeperServer


def claim(key: str = "k") -> Claim:
    return Claim(key, new_owner(), 30.0)


# URLs.


@pytest.mark.parametrize(
    ("url", "hosts", "chroot"),
    [
        ("zookeeper://zk1", "zk1:2181", ""),
        ("zookeeper://zk1:2182/", "zk1:2182", ""),
        ("zookeeper://zk1,zk2:2182,zk3/locks/of/app", "zk1:2181,zk2:2182,zk3:2181", "/locks/of/app"),
        ("zookeeper://[::1]:2181,10.0.0.1/x/", "[::1]:2181,10.0.0.1:2181", "/x"),
        ("zookeeper://zk1/a%20b", "zk1:2181", "/a b"),
    ],
)
def test_hosts_and_chroot_are_read(url: str, hosts: str, chroot: str) -> None:
    address = parse(url, {})
    assert (address.hosts, address.chroot) == (hosts, chroot)


def test_what_the_url_says_has_precedence_over_the_options() -> None:
    address = parse("zookeeper://zk1?timeout=1.5&shared=yes", {"timeout": 9.0, "session_timeout": 20, "shared": False})
    assert (address.timeout, address.session_timeout, address.shared) == (1.5, 20.0, True)


def test_user_and_password_are_for_digest_authentication_and_not_in_the_name() -> None:
    address = parse("zookeeper://shop:s%3Acret@zk1/locks?timeout=2", {})
    assert address.client["auth_data"] == [("digest", "shop:s:cret")]
    assert address.name == "zookeeper://zk1:2181/locks?timeout=2"
    assert "cret" not in repr(address)
    assert [acl.id.scheme for acl in address.client["default_acl"]] == ["auth"]


def test_user_and_password_may_be_for_sasl() -> None:
    address = parse("zookeeper://shop:secret@zk1?sasl=DIGEST-MD5", {})
    assert address.client["sasl_options"] == {"mechanism": "DIGEST-MD5", "username": "shop", "password": "secret"}
    assert "auth_data" not in address.client


def test_tls_is_asked_for_in_the_url() -> None:
    address = parse("zookeeper://zk1?tls=true&ca=/ca.pem&certfile=/me.pem&keyfile=/me.key&verify=false", {})
    assert dict(address.client) == {
        "use_ssl": True,
        "ca": "/ca.pem",
        "certfile": "/me.pem",
        "keyfile": "/me.key",
        "verify_certs": False,
    }


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("zookeeper://", {}, "no host"),
        ("zookeeper://zk1,,zk2", {}, "no host"),
        ("zookeeper://zk1:99999", {}, "zk1:99999"),
        ("zookeeper://zk1/a/../b", {}, r"/a/\.\./b"),
        ("zookeeper://zk1#x", {}, "not of the form"),
        ("zookeeper://zk1?tiemout=3", {}, "tiemout"),
        ("zookeeper://zk1?timeout=soon", {}, "timeout='soon'"),
        ("zookeeper://zk1?timeout=0", {}, "above 0"),
        ("zookeeper://zk1?shared=maybe", {}, "shared='maybe'"),
        ("zookeeper://zk1", {"session_timeout": -1}, "session_timeout=-1"),
        ("zookeeper://zk1", {"session_timeout": True}, "session_timeout=True"),
        ("zookeeper://zk1", {"handler": 1}, "handler"),
        ("zookeeper://zk1", {"shared": "yes"}, "shared='yes'"),
        ("zookeeper://shop@zk1", {}, "user:password@"),
        ("zookeeper://zk1?sasl=DIGEST-MD5", {}, "user:password@"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LockConfigError, match=message):
        ZooKeeperStore.from_url(url, options=options)


def test_a_password_is_in_no_error() -> None:
    with pytest.raises(LockConfigError) as caught:
        ZooKeeperStore.from_url("zookeeper://shop:secret@zk1#fragment")
    assert "secret" not in str(caught.value)


def test_without_kazoo_the_error_names_the_extra() -> None:
    program = """
import sys
sys.modules["kazoo"] = None
from celery_distlock import LockConfigError
from celery_distlock.stores import open_store
try:
    open_store("zookeeper://zk1")
except LockConfigError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert 'pip install "celery-distlock[zookeeper]"' in run.stdout


def test_importing_the_library_imports_no_kazoo() -> None:
    program = "import sys, celery_distlock, celery_distlock.stores; print('kazoo' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert run.stdout == "False\n"


def test_opening_a_store_connects_to_nothing() -> None:
    with closing(open_store("zookeeper://host.invalid:1")) as store:
        assert store.name == "zookeeper://host.invalid:1"


# Servers.


def test_a_host_without_a_name_is_an_error_in_time() -> None:
    with (
        closing(ZooKeeperStore("zookeeper://host.invalid:1?timeout=0.5")) as store,
        pytest.raises(StoreUnavailable, match="no connection in time"),
    ):
        store.acquire(claim())


def test_of_several_servers_one_that_answers_is_enough(zookeeper_server: ZooKeeperServer, zookeeper_url: str) -> None:
    chroot = zookeeper_url.rpartition("/")[2]
    url = f"zookeeper://127.0.0.1:1,{zookeeper_server.hosts},127.0.0.1:2/{chroot}"
    with closing(ZooKeeperStore(url)) as store:
        assert isinstance(store.acquire(claim()), Lease)
