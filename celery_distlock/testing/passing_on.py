"""What every store does that can pass a lease on, as tests for a store to inherit beside :class:`StoreContract`.

::

    class TestMyStore(PassingOnContract, StoreContract):
        @pytest.fixture
        def store(self): ...
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from celery_distlock.lease import Claim, Completed, Completion, Contended, Lease, Renewal, new_owner
from celery_distlock.stores.base import LockStore, PassingOn
from celery_distlock.testing.contract import StoreContract

__all__ = ["PassingOnContract"]


class _Store(LockStore, PassingOn):
    """What the fixtures are; nobody inherits it."""


def claim(**options: Any) -> Claim:
    """Return a claim on the key of these tests."""
    return Claim("k", new_owner(), **{"ttl": 30.0, **options})


def granted(store: LockStore, wish: Claim) -> Lease:
    """Return the lease that must be had for the asking."""
    answer = store.acquire(wish)
    assert isinstance(answer, Lease), f"expected a lease, got {answer}"
    return answer


class PassingOnContract(StoreContract):
    """Inherit this in a class whose name starts with ``Test`` and give it the fixture ``store``."""

    def test_a_lease_that_was_passed_on_is_the_new_owners(self, store: _Store) -> None:
        lease = granted(store, claim())
        heir = claim(record={"id": "heir"})
        passed = store.pass_on(lease, heir)
        assert isinstance(passed, Lease)
        assert (passed.key, passed.owner, passed.ttl) == ("k", heir.owner, store.lease_ttl(heir.ttl))
        assert passed.fence > lease.fence
        assert passed.remaining > passed.ttl * 0.8
        [holder] = store.holders("k")
        assert (holder["owner"], holder["id"]) == (heir.owner, "heir")
        assert store.renew([lease, passed]) == [Renewal.GONE, Renewal.HELD]
        assert store.release([lease, passed]) == [False, True]
        assert store.holders("k") == []

    def test_nobody_comes_in_between(self, store: _Store) -> None:
        passed = store.pass_on(granted(store, claim()), claim())
        assert isinstance(passed, Lease)
        assert isinstance(store.acquire(claim()), Contended)

    def test_asking_again_is_asking_once(self, store: _Store) -> None:
        lease, heir = granted(store, claim()), claim()
        first, again = store.pass_on(lease, heir), store.pass_on(lease, heir)
        assert isinstance(first, Lease)
        assert isinstance(again, Lease)
        assert first.fence == again.fence
        assert len(store.holders("k")) == 1

    def test_whatever_an_owner_has_is_passed_on_without_its_fence(self, store: _Store) -> None:
        lease = granted(store, claim())
        assert store.pass_on(Lease.unknown("k", lease.owner, 30.0), claim()) is not None

    def test_a_lease_that_is_not_there_is_not_passed_on(self, store: _Store) -> None:
        lease = granted(store, claim())
        store.release([lease])
        assert store.pass_on(lease, claim()) is None
        assert store.holders("k") == []

    def test_the_lease_of_another_grant_is_not_passed_on(self, store: _Store) -> None:
        wish = claim()
        first = granted(store, wish)
        store.release([first])
        second = granted(store, wish)
        assert store.pass_on(first, claim()) is None
        assert store.renew([second]) == [Renewal.HELD]

    def test_a_record_is_left_with_it(self, store: _Store) -> None:
        done = Completion("k", "run", 60.0)
        store.pass_on(granted(store, claim()), claim(), done)
        assert store.acquire(claim(completion=done)) == Completed("k", "run")

    def test_whoever_looks_for_a_record_is_told_of_it_instead(self, store: _Store) -> None:
        done = Completion("k", "run", 60.0)
        heir = claim()
        store.pass_on(granted(store, claim()), heir, done)
        left = Lease.unknown("k", heir.owner, 30.0)
        assert store.pass_on(left, claim(completion=done)) == Completed("k", "run")
        [holder] = store.holders("k")
        assert holder["owner"] == heir.owner
        assert isinstance(store.pass_on(left, claim(completion=Completion("k", "another", 60.0))), Lease)

    def test_nothing_is_passed_on_to_an_owner_whose_unknown_lease_was_released(self, store: _Store) -> None:
        # The question may arrive after the one who asked has given up.
        lease, wish = granted(store, claim()), claim()
        store.release([Lease.unknown("k", wish.owner, 30.0)])
        assert store.pass_on(lease, wish) is None
        assert store.renew([lease]) == [Renewal.HELD]

    # --- to nobody who would keep it alive --------------------------------------------------------------------------

    def test_a_lease_left_to_nobody_lasts_for_its_own_ttl_although_its_client_has_gone(
        self, store: _Store, mortal_store: _Store
    ) -> None:
        heir = claim(ttl=4 * self.ttl, record={"id": "heir"})
        passed = mortal_store.pass_on(granted(mortal_store, claim()), heir, unattended=True)
        assert isinstance(passed, Lease)
        assert passed.ttl == heir.ttl
        mortal_store.close()
        [holder] = store.holders("k")
        assert (holder["owner"], holder["id"]) == (heir.owner, "heir")
        assert 0 < holder["remaining"] <= heir.ttl
        assert isinstance(store.acquire(claim()), Contended)
        self.wait(heir.ttl + 0.02)
        self.take(store, claim())

    def test_whoever_comes_for_it_has_it(self, store: _Store, other_store: _Store) -> None:
        lease, heir = granted(store, claim()), claim()
        left = store.pass_on(lease, heir, unattended=True)
        assert isinstance(left, Lease)
        passed = other_store.pass_on(Lease.unknown("k", heir.owner, 30.0), claim())
        assert isinstance(passed, Lease)
        assert passed.fence > left.fence > lease.fence
        assert passed.ttl == store.lease_ttl(30.0)
        assert other_store.renew([passed]) == [Renewal.HELD]
        assert other_store.release([passed]) == [True]
        assert store.holders() == []

    def test_leaving_it_again_starts_its_time_anew(self, store: _Store) -> None:
        lease, heir = granted(store, claim()), claim(ttl=self.ttl)
        first = store.pass_on(lease, heir, unattended=True)
        again = store.pass_on(lease, replace(heir, ttl=30.0), unattended=True)
        assert isinstance(first, Lease)
        assert isinstance(again, Lease)
        assert first.fence == again.fence
        self.wait(self.ttl + 0.05)
        assert isinstance(store.acquire(claim()), Contended)

    def test_what_was_left_can_be_released(self, store: _Store, other_store: _Store) -> None:
        heir = claim()
        store.pass_on(granted(store, claim()), heir, unattended=True)
        assert other_store.release([Lease.unknown("k", heir.owner, 30.0)]) == [True]
        assert store.holders() == []
