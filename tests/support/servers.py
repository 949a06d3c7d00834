"""Which servers a test may use, and what to do where one is not installed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NoReturn

import pytest

from tests.support.redis_server import DATABASES, RedisServer

__all__ = ["Databases", "fresh_databases", "in_ci", "missing"]


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
    """URLs of three empty databases of one Redis server."""

    server: RedisServer
    broker: str
    results: str
    locks: str


_next = 1


def fresh_databases(server: RedisServer) -> Databases:
    """Return three empty databases; no two tests in a row get the same ones."""
    global _next
    urls = []
    for _ in range(3):
        db, _next = _next, _next % (DATABASES - 1) + 1
        with server.client(db) as client:
            client.flushdb()
        urls.append(server.url_of(db))
    return Databases(server, *urls)
