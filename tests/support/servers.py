"""Which servers a test may use, and what to do where one is not installed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import pytest

from tests.support.redis_server import DATABASES, RedisServer

__all__ = ["Databases", "fresh_databases", "in_ci", "missing", "place_locks"]


def in_ci() -> bool:
    """Whether this run must not skip what it cannot test (the environment sets ``CI``)."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def missing(package: str) -> NoReturn:
    """Skip the test because a server is not installed; in CI, fail it."""
    reason = f"{package} is not installed (make servers; Debian package: {package})"
    if in_ci():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@dataclass(frozen=True)
class Databases:
    """URLs of three empty databases of one Redis server; with ``--locks``, of another store for locks."""

    server: RedisServer
    broker: str
    results: str
    locks: str


_next = 1
_locks: Callable[[], str] | None = None


def place_locks(fresh: Callable[[], str] | None) -> None:
    """Have the locks of all tests live elsewhere than in Redis from now on; ``fresh`` makes an empty store's URL."""
    global _locks
    _locks = fresh


def fresh_databases(server: RedisServer) -> Databases:
    """Return three empty databases; no two tests in a row get the same ones. Locks may live elsewhere."""
    global _next
    urls = []
    for _ in range(3):
        db, _next = _next, _next % (DATABASES - 1) + 1
        with server.client(db) as client:
            client.flushdb()
        urls.append(server.url_of(db))
    broker, results, locks = urls
    return Databases(server, broker, results, locks if _locks is None else _locks())
