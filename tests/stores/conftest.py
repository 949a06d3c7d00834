"""Stores for tests that look behind them: of Redis, unless a module has others of these names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
import redis

from celery_distlock.lease import Claim, Lease, new_owner
from celery_distlock.stores.base import LockStore
from celery_distlock.stores.redis import RedisStore
from celery_distlock.stores.redis.layout import Layout
from celery_distlock.stores.zookeeper import ZooKeeperStore


class Behind:
    """The data behind a store: what tests look at and tamper with."""

    def __init__(self, client: redis.Redis, prefix: str = "distlock") -> None:
        self.client = client
        self.layout = Layout(prefix)

    def keys(self) -> set[str]:
        """Every Redis key except the meta hashes."""
        return {key for key in self.client.scan_iter(count=1000) if not key.endswith("}:meta")}

    def name(self, kind: str, key: str) -> str:
        return self.layout.of_kind(kind, key).decode()

    def meta(self, key: str) -> str:
        return self.name("h", key).partition("}")[0] + "}:meta"

    def expire(self, *leases: Lease) -> None:
        """Let the time of these leases be over, as the server sees it."""
        for lease in leases:
            self.client.zadd(self.name("h", lease.key), {lease.owner: 1.0}, xx=True)

    def condemned_long_ago(self, lease: Lease) -> None:
        """Let the lease have expired, and somebody have asked it to speak up, a while ago."""
        self.expire(lease)
        self.client.hset(self.name("r", lease.key), f"{lease.owner}:condemned", "1")

    def now(self) -> float:
        seconds, micros = self.client.time()
        return float(seconds * 1_000_000 + micros)

    def queue(self, key: str, owner: str, *, ticket: float, seconds: float) -> None:
        """Put a waiter in the line, alive for so many seconds."""
        self.client.zadd(self.name("w", key), {owner: ticket})
        self.client.zadd(self.name("d", key), {owner: self.now() + seconds * 1e6})
        for kind in "wd":
            self.client.expire(self.name(kind, key), 60)


def claim(key: str = "k", owner: str | None = None, ttl: float = 30.0, **more: Any) -> Claim:
    """Return a claim, of a new owner unless one is named."""
    return Claim(key, owner or new_owner(), ttl, **more)


def granted(store: LockStore, key: str = "k", owner: str | None = None, ttl: float = 30.0, **more: Any) -> Lease:
    """Acquire a key that must be free."""
    answer = store.acquire(claim(key, owner, ttl, **more))
    assert isinstance(answer, Lease), answer
    return answer


@pytest.fixture
def open_redis() -> Iterator[Callable[..., RedisStore]]:
    """A factory of Redis stores, closed at the test's end."""
    with ExitStack() as stack:

        def make(url: str, **options: Any) -> RedisStore:
            store = RedisStore(url=url, **options)
            stack.callback(store.close)
            return store

        yield make


@pytest.fixture
def open_zookeeper(zookeeper_url: str) -> Iterator[Callable[..., ZooKeeperStore]]:
    """A factory of ZooKeeper stores, each with a session of its own; closed at the test's end."""
    with ExitStack() as stack:

        def make(url: str = zookeeper_url, **options: Any) -> ZooKeeperStore:
            return stack.enter_context(closing(ZooKeeperStore(url, **options)))

        yield make


@pytest.fixture
def store(redis_url: str, open_redis: Callable[..., RedisStore]) -> RedisStore:
    """A store on an empty database."""
    return open_redis(redis_url)


@pytest.fixture
def behind(redis_url: str) -> Iterator[Behind]:
    """The data of the store."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield Behind(client)
