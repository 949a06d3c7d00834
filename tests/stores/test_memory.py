"""What is special about the memory store: who shares its data, its clock, and that it forgets in time."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest

from celery_distlock.errors import LockConfigError
from celery_distlock.lease import Claim, Completed, Completion, Contended, Lease, Renewal, Ticket
from celery_distlock.stores.memory import MemoryStore

HOUR = 3600.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Iterator[MemoryStore]:
    store = MemoryStore(str(uuid.uuid4()), clock=clock)
    yield store
    store.drop()


def lease_of(store: MemoryStore, key: str = "k", owner: str = "me", ttl: float = 10.0, limit: int = 1) -> Lease:
    answer = store.acquire(Claim(key, owner, ttl, limit))
    assert isinstance(answer, Lease)
    return answer


def entries(store: MemoryStore) -> int:
    """Count everything that the store's table remembers."""
    table = store._table
    parts = (table.listed, table.tombstones, table.barred, table.completions, table.patience)
    return (
        len(table.holders)
        + len(table.queues)
        + len(table.hints)
        + sum(len(part._entries) + len(part._due) for part in parts)
    )


# Who shares the data.


def test_stores_of_one_name_share_their_data(store: MemoryStore, clock: Clock) -> None:
    lease_of(store)
    same = MemoryStore.from_url(store.name, options={"clock": clock})
    assert isinstance(same.acquire(Claim("k", "you", 10.0)), Contended)


def test_stores_of_another_name_share_nothing(store: MemoryStore, clock: Clock) -> None:
    lease_of(store)
    other = MemoryStore.from_url(f"{store.name}-other", options={"clock": clock})
    lease_of(other, owner="you")
    other.drop()


def test_stores_of_another_prefix_share_nothing(store: MemoryStore, clock: Clock) -> None:
    lease_of(store)
    other = MemoryStore.from_url(store.name, prefix="other", options={"clock": clock})
    lease_of(other, owner="you")
    other.drop()


def test_data_outlive_the_store_object() -> None:
    url = f"memory://{uuid.uuid4()}"
    lease = lease_of(MemoryStore.from_url(url))
    assert MemoryStore.from_url(url).release([lease]) == [True]
    MemoryStore.from_url(url).drop()


@pytest.mark.parametrize("url", ["memory://", "memory://name", "memory://Name/sub"])
def test_the_name_of_a_store_is_its_url(url: str) -> None:
    assert MemoryStore.from_url(url).name == url


@pytest.mark.parametrize("url", ["redis://name", "memory", "memory://name?ttl=3", "memory://name#part"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(LockConfigError, match="memory://"):
        MemoryStore.from_url(url)


def test_an_unknown_option_is_refused_by_name() -> None:
    with pytest.raises(LockConfigError, match="socket_timeout"):
        MemoryStore.from_url("memory://name", options={"socket_timeout": 1.0})


def test_a_forked_child_starts_empty_even_if_a_thread_was_inside_the_store() -> None:
    script = """
        import os
        from celery_distlock.lease import Claim, Lease
        from celery_distlock.stores.memory import MemoryStore

        store = MemoryStore("forked")
        lease = store.acquire(Claim("k", "parent", 30.0))
        store._table.mutex.acquire()
        child = os.fork()
        if not child:
            assert store.release([lease]) == [False]
            assert isinstance(store.acquire(Claim("k", "child", 30.0)), Lease)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        store._table.mutex.release()
        assert [holder["owner"] for holder in store.holders()] == ["parent"]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=30)


# Its clock.


def test_a_lease_expires_on_the_stores_clock(store: MemoryStore, clock: Clock) -> None:
    lease_of(store, ttl=10.0)
    clock.now = 9.99
    assert isinstance(store.acquire(Claim("k", "you", 10.0)), Contended)
    clock.now = 10.0
    lease_of(store, owner="you")


def test_deadlines_are_monotonic_time_whatever_the_clock_says(store: MemoryStore, clock: Clock) -> None:
    clock.now = 1e6
    assert lease_of(store, ttl=10.0).deadline < time.monotonic() + 10.0


def test_fences_are_above_those_of_a_process_that_ended_before(store: MemoryStore) -> None:
    an_hour_ago = (time.time() - HOUR) * 1e6
    assert an_hour_ago < lease_of(store).fence < 2**53


# What it forgets, and when.


def test_nothing_is_left_after_release(store: MemoryStore) -> None:
    for number in range(1000):
        store.release([lease_of(store, f"k{number}")])
    assert len(store._table.holders) == 0
    assert entries(store) < 100


def test_renewals_leave_nothing_that_grows(store: MemoryStore, clock: Clock) -> None:
    lease = lease_of(store)
    for _ in range(10_000):
        clock.now += 1.0
        assert store.renew([lease]) == [Renewal.HELD]
    assert entries(store) < 100


def test_an_expired_holder_is_listed_for_an_hour(store: MemoryStore, clock: Clock) -> None:
    lease = lease_of(store, ttl=10.0)
    clock.now = 10.0 + HOUR - 1
    assert [holder["remaining"] for holder in store.holders()] == [1 - HOUR]
    clock.now = 10.0 + HOUR
    assert store.holders() == []
    assert store.renew([lease]) == [Renewal.GONE]


def test_a_renewed_holder_is_listed_for_an_hour_after_its_last_renewal(store: MemoryStore, clock: Clock) -> None:
    lease = lease_of(store, ttl=10.0)
    clock.now = 5.0
    store.renew([lease])
    clock.now = 10.0 + HOUR
    assert store.renew([lease]) == [Renewal.HELD]


def test_a_loss_is_remembered_for_an_hour(store: MemoryStore, clock: Clock) -> None:
    lease = lease_of(store, ttl=10.0)
    clock.now = 10.0
    lease_of(store, owner="you")
    clock.now += HOUR - 1
    assert store.renew([lease]) == [Renewal.LOST]
    clock.now += 1
    assert store.renew([lease]) == [Renewal.GONE]


def test_an_owner_who_lost_the_key_is_not_granted_it_again(store: MemoryStore, clock: Clock) -> None:
    lease_of(store, ttl=10.0)
    clock.now = 10.0
    store.release([lease_of(store, owner="you")])
    assert store.acquire(Claim("k", "me", 10.0)) == Contended("k")


def test_nothing_at_all_is_left_after_an_hour(store: MemoryStore, clock: Clock) -> None:
    for number in range(100):
        lease_of(store, f"lost{number}", ttl=10.0)
        store.release([Lease.unknown(f"barred{number}", "me", 10.0)])
        store.release([lease_of(store, f"done{number}")], [Completion(f"done{number}", "run", HOUR)])
    clock.now = 10.0
    for number in range(100):
        lease_of(store, f"lost{number}", owner="you", ttl=10.0)
    assert entries(store) > 400
    clock.now = 20.0 + HOUR
    store.holders()
    assert entries(store) == 0


def test_nothing_is_left_of_those_who_waited(store: MemoryStore, clock: Clock) -> None:
    before = entries(store)
    for key in ("k1", "k2"):
        lease = lease_of(store, key)
        for owner in ("first", "second", "third"):
            assert isinstance(store.enqueue(Claim(key, owner, 10.0)), Ticket)
        store.release([lease])
        store.withdraw([Claim(key, "first", 10.0)])
    clock.now = 2 * store.claim_ttl
    # A call that has nothing to do with them.
    assert store.holders("k3") == []
    assert store.holders() == []
    clock.now += HOUR + 10.0
    store.renew([])
    assert entries(store) == before


def test_a_completion_is_kept_for_its_own_ttl(store: MemoryStore, clock: Clock) -> None:
    run = Completion("k", "run", 2 * HOUR)
    store.release([lease_of(store)], [run])
    clock.now = 2 * HOUR - 1
    assert store.acquire(Claim("k", "me", 10.0, completion=run)) == Completed("k", "run")
    clock.now = 2 * HOUR
    assert isinstance(store.acquire(Claim("k", "me", 10.0, completion=run)), Lease)


# Data lost on purpose.


def test_a_lease_is_re_asserted_with_its_fence_after_the_data_were_dropped(store: MemoryStore) -> None:
    lease = lease_of(store)
    store.drop()
    assert store.renew([lease]) == [Renewal.REASSERTED]
    assert [(holder["owner"], holder["fence"]) for holder in store.holders()] == [("me", lease.fence)]
    assert store.renew([lease]) == [Renewal.HELD]


def test_a_lease_is_lost_for_good_if_somebody_came_after_the_data_were_dropped(store: MemoryStore) -> None:
    lease = lease_of(store)
    store.drop()
    newer = lease_of(store, owner="you")
    assert newer.fence > lease.fence
    assert store.renew([lease]) == [Renewal.LOST]
    store.release([newer])
    assert store.renew([lease]) == [Renewal.LOST]


def test_a_lease_released_after_the_data_were_dropped_is_not_re_asserted(store: MemoryStore) -> None:
    lease = lease_of(store)
    store.drop()
    assert store.release([lease]) == [False]
    assert store.renew([lease]) == [Renewal.GONE]


def test_completions_must_be_one_per_lease(store: MemoryStore) -> None:
    lease = lease_of(store)
    with pytest.raises(ValueError, match="zip"):
        store.release([lease, replace(lease, key="k2")], [None])
    assert store.renew([lease]) == [Renewal.HELD]
