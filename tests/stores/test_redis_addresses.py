"""How a URL becomes a store."""

from __future__ import annotations

import importlib.metadata
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_distlock.errors import LockConfigError, StoreUnavailable
from celery_distlock.stores import open_store
from celery_distlock.stores.redis import RedisStore
from celery_distlock.stores.redis.address import client_of
from tests.stores.conftest import claim, granted
from tests.support.redis_server import RedisServer

StartServer = Callable[..., RedisServer]


def settings(url: str, **options: Any) -> dict[str, Any]:
    pool = client_of(url, options).connection_pool
    return {**pool.connection_kwargs, "class": pool.connection_class}


# URLs.


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", {"class": redis.Connection}),
        ("redis://h", {"host": "h"}),
        ("redis://h:7/3", {"host": "h", "port": 7, "db": 3}),
        ("redis://:p%40ss@h", {"password": "p@ss"}),
        ("redis://me:pw@[::1]:7", {"host": "::1", "username": "me", "password": "pw"}),
        ("redis://h?socket_timeout=0.5&db=4", {"socket_timeout": 0.5, "db": 4}),
        ("redis+socket:///run/r.sock", {"path": "/run/r.sock", "class": redis.UnixDomainSocketConnection}),
        ("redis+socket:///run/r.sock?virtual_host=5", {"db": 5}),
        ("redis+socket:///run/r.sock?virtual_host=/5", {"db": 5}),
        ("redis+socket://:pw@/run/r.sock?virtual_host=1", {"password": "pw", "path": "/run/r.sock", "db": 1}),
        ("rediss://h", {"class": redis.SSLConnection}),
        ("rediss://h?ssl_cert_reqs=CERT_NONE", {"ssl_cert_reqs": "none"}),
        ("rediss://h?ssl_cert_reqs=CERT_REQUIRED", {"ssl_cert_reqs": "required"}),
        ("rediss://h?ssl_cert_reqs=optional", {"ssl_cert_reqs": "optional"}),
        ("rediss://h?ssl_ca_certs=%2Fca.pem&ssl_cert_reqs=required", {"ssl_ca_certs": "/ca.pem"}),
    ],
)
def test_a_url_says_where_and_how(url: str, expected: dict[str, Any]) -> None:
    found = settings(url)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://", "redis://localhost:6379/0"),
        ("redis://me:secret@h:7/3", "redis://h:7/3"),
        ("rediss://:secret@[::1]", "rediss://[::1]:6379/0"),
        ("redis+socket://:secret@/run/r.sock?virtual_host=2", "redis+socket:///run/r.sock?virtual_host=2"),
    ],
)
def test_the_name_is_the_address_without_the_password(url: str, name: str) -> None:
    assert open_store(url).name == name


def test_the_url_has_precedence_over_options_as_in_redis_py() -> None:
    assert settings("redis://h?socket_timeout=3", socket_timeout=1.0, port=9)["socket_timeout"] == 3.0
    with pytest.raises(LockConfigError, match="'never'"):
        open_store("redis://h?timeout=never", options={"timeout": 1.0})


@pytest.mark.parametrize(
    ("url", "options", "complaint"),
    [
        ("redis://h:port", {}, "distlock_url"),
        ("redis://h?socket_timeout=soon", {}, "socket_timeout"),
        ("redis://h?no_such_option=1", {}, "no_such_option"),
        ("rediss://h?ssl_cert_reqs=CERT_MAYBE", {}, "maybe"),
        ("redis://h", {"no_such_option": 1}, "no_such_option"),
        ("redis://h?timeout=soon", {}, "timeout is 'soon'"),
        ("redis://h", {"timeout": 0}, "timeout is 0"),
        ("redis://h", {"timeout": None, "client": "redis"}, "client is str"),
        ("redis://h", {"client": redis.Redis(), "db": 1}, "db"),
    ],
)
def test_an_unusable_setting_is_named_when_the_store_is_opened(
    url: str, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(LockConfigError, match=complaint):
        open_store(url, options=options)


@pytest.mark.parametrize("prefix", ["a{b", "a}b"])
def test_a_prefix_must_not_move_the_hash_tag(prefix: str) -> None:
    with pytest.raises(LockConfigError, match="brace"):
        open_store("redis://h", prefix=prefix)


def test_a_store_needs_a_client_or_a_url_and_not_both() -> None:
    for arguments in ({}, {"client": redis.Redis(), "url": "redis://h"}):
        with pytest.raises(LockConfigError, match="either"):
            RedisStore(**arguments)


# Choosing the store.


@pytest.mark.parametrize("url", ["zoo://h", "localhost:6379", "", "://", "amqp://guest:secret@h"])
def test_an_unknown_scheme_lists_the_known_ones_and_no_password(url: str) -> None:
    with pytest.raises(LockConfigError, match=r"memory://, redis://, redis\+socket://, rediss://") as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def test_the_scheme_is_not_case_sensitive() -> None:
    assert open_store("REDIS://h").name == "redis://h:6379/0"


def test_a_missing_client_library_names_the_extra() -> None:
    program = """
import sys
sys.modules["redis"] = None
from celery_distlock.errors import LockConfigError
from celery_distlock.stores import open_store
try:
    open_store("redis://h")
except LockConfigError as exc:
    print(exc)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 'pip install "celery-distlock[redis]"' in run.stdout


def test_opening_another_store_does_not_import_redis() -> None:
    program = """
import sys
from celery_distlock.stores import open_store
open_store("memory://")
assert "redis" not in sys.modules, "imported"
"""
    subprocess.run([sys.executable, "-c", program], check=True)


class OurStore:
    opened: tuple[Any, ...] = ()

    @classmethod
    def from_url(cls, url: str, *, prefix: str, options: Any) -> Any:
        cls.opened = (url, prefix, options)
        return cls()


def test_a_third_party_store_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("ours", f"{__name__}:OurStore", "celery_distlock.stores")

    def entry_points(*, group: str) -> list[importlib.metadata.EntryPoint]:
        return [point] if group == "celery_distlock.stores" else []

    monkeypatch.setattr("celery_distlock.stores.entry_points", entry_points)
    store: Any = open_store("ours://somewhere", prefix="p", options={"a": 1})
    assert type(store).__name__ == "OurStore"
    assert type(store).opened == ("ours://somewhere", "p", {"a": 1})
    with pytest.raises(LockConfigError, match="ours://"):
        open_store("theirs://somewhere")


# Real connections of every kind.


def test_a_unix_socket_works(private_redis: StartServer) -> None:
    server = private_redis(unix_socket=True, password="pw")
    store = open_store(server.socket_url.replace("virtual_host=0", "virtual_host=3"))
    store.acquire(claim())
    with server.client(3) as client:
        assert client.dbsize() == 3
    store.close()


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_ready_client_lends_its_options_and_keeps_its_pool(redis_url: str, protocol: int) -> None:
    with redis.Redis.from_url(redis_url, decode_responses=True, encoding="latin-1", protocol=protocol) as client:
        store = open_store("redis://ignored", options={"client": client, "timeout": 1.0})
        assert isinstance(store, RedisStore)
        lease = granted(store, "ключ", record={"task": "задача"})
        (holder,) = store.holders(prefix="к")
        assert (holder["key"], holder["task"], holder["fence"]) == ("ключ", "задача", lease.fence)
        assert store.check() == []
        assert store.release([lease]) == [True]
        assert client.connection_pool._available_connections == []
        store.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


@pytest.fixture
def tls_url(private_redis: StartServer, certificate: tuple[Path, Path]) -> str:
    cert, key = certificate
    server = private_redis()
    with server.client() as client:
        try:
            client.config_set("tls-cert-file", str(cert), "tls-key-file", str(key), "tls-auth-clients", "no")
        except redis.ResponseError as exc:
            pytest.skip(f"this redis-server has no TLS: {exc}")
        # The plain port is not needed any more; the TLS one takes its number.
        client.config_set("port", 0, "tls-port", server.port)
    return f"rediss://127.0.0.1:{server.port}/0"


def test_tls_verifies_the_certificate_unless_told_otherwise(tls_url: str, certificate: tuple[Path, Path]) -> None:
    for query in (f"ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs={certificate[0]}", "ssl_cert_reqs=CERT_NONE"):
        store = open_store(f"{tls_url}?{query}")
        assert isinstance(store, RedisStore)
        lease = granted(store)
        assert store.release([lease]) == [True]
        store.close()
    store = open_store(tls_url)
    with pytest.raises(StoreUnavailable, match=r"(?i)certificate") as caught:
        store.acquire(claim())
    assert isinstance(caught.value.__cause__, redis.ConnectionError | ssl.SSLError)
