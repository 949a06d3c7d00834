"""The store contract, on every store there is."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing

import pytest

from celery_distlock.stores import open_store
from celery_distlock.stores.base import LockStore
from celery_distlock.stores.memory import MemoryStore
from celery_distlock.testing import QueueingContract, UniquenessContract


class TestMemoryStore(QueueingContract, UniquenessContract):
    @pytest.fixture
    def store(self) -> Iterator[LockStore]:
        store = MemoryStore(f"contract-{uuid.uuid4()}")
        yield store
        store.drop()

    @pytest.fixture
    def other_store(self, store: MemoryStore) -> LockStore:
        return MemoryStore.from_url(store.name)


class TestRedisStore(QueueingContract, UniquenessContract):
    @pytest.fixture
    def store(self, redis_url: str) -> Iterator[LockStore]:
        with closing(open_store(redis_url, prefix="contract")) as store:
            yield store

    @pytest.fixture
    def other_store(self, redis_url: str) -> Iterator[LockStore]:
        with closing(open_store(redis_url, prefix="contract")) as store:
            yield store
