"""The fuzz counter: exact under a lock, and not without one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from celery_distlock.lease import Claim, Completed, Completion, Contended, Lease, new_owner
from celery_distlock.stores import open_store
from celery_distlock.stores.base import LockStore
from celery_distlock.stores.memory import MemoryStore
from celery_distlock.testing import fuzz_counter
from tests.support.zookeeper_ensemble import ZooKeeperEnsemble


@pytest.fixture
def memory_store() -> Iterator[MemoryStore]:
    store = MemoryStore(str(uuid.uuid4()))
    yield store
    store.drop()


def test_threads_count_exactly_under_a_memory_lock(memory_store: MemoryStore) -> None:
    report = fuzz_counter(lambda: memory_store, threads=8, increments=20)
    assert report.counted == 160
    assert report.contended > 0
    assert memory_store.holders() == []


def test_threads_count_exactly_under_a_redis_lock(redis_url: str) -> None:
    report = fuzz_counter(partial(open_store, redis_url, prefix="fuzz"), threads=8, increments=20)
    assert report.counted == 160
    assert report.contended > 0


def test_processes_count_exactly_under_a_redis_lock(redis_url: str) -> None:
    report = fuzz_counter(partial(open_store, redis_url, prefix="fuzz"), threads=1, processes=4, increments=40)
    assert report.counted == 160
    assert report.contended > 0


def test_processes_with_threads_count_exactly_under_a_redis_lock(redis_url: str) -> None:
    report = fuzz_counter(partial(open_store, redis_url, prefix="fuzz"), threads=3, processes=2, increments=20)
    assert report.counted == 120


@pytest.mark.parametrize("where", ["zookeeper_url", "ensemble_url"])
def test_threads_count_exactly_under_a_zookeeper_lock(where: str, request: pytest.FixtureRequest) -> None:
    url = f"{request.getfixturevalue(where)}?timeout=20"
    report = fuzz_counter(partial(open_store, url, prefix="fuzz"), threads=8, increments=10)
    assert report.counted == 80
    assert report.contended > 0


@pytest.mark.parametrize("where", ["zookeeper_url", "ensemble_url"])
def test_processes_with_threads_count_exactly_under_a_zookeeper_lock(
    where: str, request: pytest.FixtureRequest
) -> None:
    url = f"{request.getfixturevalue(where)}?timeout=20"
    report = fuzz_counter(partial(open_store, url, prefix="fuzz"), threads=2, processes=3, increments=15)
    assert report.counted == 90


def test_processes_count_exactly_while_the_leader_of_an_ensemble_is_killed_and_comes_back(
    ensemble: ZooKeeperEnsemble, ensemble_url: str
) -> None:
    """A session outlives its server, so nobody loses the lock; commands wait for the next leader."""
    counting = partial(open_store, f"{ensemble_url}?timeout=40&session_timeout=40", prefix="fuzz")
    with ensemble.losing_leaders() as killed:
        while len(killed) < 2:  # a fast machine has counted to the end before the second is dead
            report = fuzz_counter(counting, threads=2, processes=2, increments=60, ttl=40.0, timeout=100.0)
            assert report.counted == 240


def test_the_counters_file_is_made_in_the_given_folder_and_removed(memory_store: MemoryStore, tmp_path: Path) -> None:
    seen: list[Path] = []

    class Looks(MemoryStore):
        def release(self, leases: Sequence[Lease], completions: Sequence[Completion | None] = ()) -> list[bool]:
            seen.extend(tmp_path.iterdir())
            return super().release(leases, completions)

    looks = Looks(memory_store.name.removeprefix("memory://"))
    fuzz_counter(lambda: looks, threads=1, increments=1, directory=tmp_path)
    assert len(seen) == 1
    assert list(tmp_path.iterdir()) == []


class GrantsEverybody(MemoryStore):
    """Every claim gets a key of its own."""

    def acquire(self, claim: Claim) -> Lease | Contended | Completed:
        return super().acquire(replace(claim, key=new_owner()))


class GrantsOldFences(MemoryStore):
    def acquire(self, claim: Claim) -> Lease | Contended | Completed:
        answer = super().acquire(claim)
        return replace(answer, fence=7) if isinstance(answer, Lease) else answer

    def release(self, leases: Sequence[Lease], completions: Sequence[Completion | None] = ()) -> list[bool]:
        return super().release([replace(lease, fence=0) for lease in leases], completions)


def open_memory() -> LockStore:
    return MemoryStore("fuzz-of-each-process")


def open_nothing() -> LockStore:
    raise ConnectionError("no such store")


def test_threads_without_exclusion_are_found_out() -> None:
    with pytest.raises(AssertionError):
        # So many that none is done before the next one has begun.
        fuzz_counter(lambda: GrantsEverybody("fuzz-everybody"), threads=4, increments=300)
    MemoryStore("fuzz-everybody").drop()


def test_a_lost_increment_is_found_out_although_the_fences_grow(memory_store: MemoryStore, tmp_path: Path) -> None:
    class LosesAnIncrement(MemoryStore):
        def release(self, leases: Sequence[Lease], completions: Sequence[Completion | None] = ()) -> list[bool]:
            [file] = tmp_path.iterdir()
            count, fence = file.read_text().split()
            if count == "2":
                file.write_text(f"1 {fence}")
                self.release = super().release  # type: ignore[method-assign]
            return super().release(leases, completions)

    store = LosesAnIncrement(memory_store.name.removeprefix("memory://"))
    with pytest.raises(AssertionError, match="3 increments were made under the lock, 2 were counted"):
        fuzz_counter(lambda: store, threads=1, increments=3, directory=tmp_path)


def test_processes_that_do_not_share_their_store_are_found_out() -> None:
    with pytest.raises(AssertionError, match=r"were counted|granted after fence|half written"):
        fuzz_counter(open_memory, threads=1, processes=2, increments=250)


def test_fences_that_do_not_grow_are_found_out(memory_store: MemoryStore) -> None:
    with pytest.raises(AssertionError, match="granted after fence"):
        fuzz_counter(lambda: GrantsOldFences(memory_store.name), threads=1, increments=2)
    MemoryStore(memory_store.name).drop()


def test_a_key_that_never_comes_free_ends_in_a_timeout(memory_store: MemoryStore) -> None:
    memory_store.acquire(Claim("fuzz-counter", new_owner(), 60.0))
    with pytest.raises(TimeoutError):
        fuzz_counter(lambda: memory_store, threads=1, increments=1, timeout=0.05)


def test_what_a_store_raises_in_a_process_is_told() -> None:
    with pytest.raises(AssertionError, match="ConnectionError: no such store"):
        fuzz_counter(open_nothing, threads=1, processes=1, increments=1)
