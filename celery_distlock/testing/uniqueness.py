"""What every store of tokens does, as tests that a store's own tests inherit beside :class:`StoreContract`.

::

    class TestMyStore(UniquenessContract, StoreContract):
        @pytest.fixture
        def store(self): ...
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from celery_distlock.lease import Claim, Lease, Renewal, deadline_of, new_owner
from celery_distlock.stores.base import LockStore, Uniqueness
from celery_distlock.testing.contract import StoreContract, at_once
from celery_distlock.tokens import Begun, Duplicate, Reserved, Superseded, Token, running_key

__all__ = ["UniquenessContract"]


class _Store(LockStore, Uniqueness):
    """What the fixtures are; nobody inherits it."""


def token(task_id: str, key: str = "k", *, ttl: float = 30.0, **options: Any) -> Token:
    """Return the token of a message."""
    return Token(key, task_id, ttl, **options)


def run_of(task_id: str, key: str = "k", *, owner: str | None = None, ttl: float = 30.0) -> Claim:
    """Return the claim of a delivery that starts to run."""
    return Claim(running_key(key), owner or new_owner(), ttl, record={"id": task_id})


def start(store: _Store, task_id: str, key: str = "k", **options: Any) -> Lease:
    """Begin a message that is granted the running key, and return its lease."""
    claim = run_of(task_id, key, **options)
    sent = time.monotonic()
    answer = store.begin(token(task_id, key), claim)
    assert isinstance(answer, Begun), f"expected it to begin, got {answer}"
    assert answer.fence > 0, "it was not granted the running key"
    ttl = store.lease_ttl(claim.ttl)
    return Lease(claim.key, claim.owner, answer.fence, ttl, deadline_of(sent, ttl))


class UniquenessContract(StoreContract):
    """Inherit this in a class whose name starts with ``Test`` and give it the fixture ``store``."""

    # --- queued -------------------------------------------------------------------------------------------------

    def test_the_first_message_is_accepted_and_a_second_one_learns_its_id(self, store: _Store) -> None:
        assert store.reserve(token("first")) == Reserved()
        assert store.reserve(token("second")) == Duplicate("first")

    def test_a_message_published_through_another_client_counts(self, store: _Store, other_store: _Store) -> None:
        store.reserve(token("first"))
        assert other_store.reserve(token("second")) == Duplicate("first")

    def test_other_keys_are_other_messages(self, store: _Store) -> None:
        store.reserve(token("first", "a"))
        assert store.reserve(token("second", "b")) == Reserved()

    def test_the_same_id_passes(self, store: _Store) -> None:
        store.reserve(token("first"))
        assert store.reserve(token("first")) == Reserved()
        assert store.reserve(token("second")) == Duplicate("first")

    def test_a_message_that_has_started_is_not_queued_any_more(self, store: _Store) -> None:
        store.reserve(token("first"))
        assert store.begin(token("first"), None) == Begun(0)
        assert store.reserve(token("second")) == Reserved()

    def test_the_start_of_another_message_frees_nothing(self, store: _Store) -> None:
        store.reserve(token("first"))
        assert store.begin(token("stranger"), None) == Begun(0)
        assert store.reserve(token("second")) == Duplicate("first")

    def test_one_that_never_starts_is_forgotten_after_its_ttl(self, store: _Store) -> None:
        store.reserve(token("first", ttl=self.ttl))
        self.wait(self.ttl + 0.05)
        assert store.reserve(token("second")) == Reserved()

    def test_asking_again_starts_its_time_anew(self, store: _Store) -> None:
        store.reserve(token("first", ttl=self.ttl))
        store.reserve(token("first", ttl=30.0))
        self.wait(self.ttl + 0.05)
        assert store.reserve(token("second")) == Duplicate("first")

    def test_one_that_will_not_start_is_cancelled(self, store: _Store) -> None:
        store.reserve(token("first"))
        store.cancel(token("first"), window=True)
        assert store.reserve(token("second")) == Reserved()

    def test_nobody_cancels_another_ones(self, store: _Store) -> None:
        store.reserve(token("first", window=30.0))
        store.cancel(token("stranger"), window=True)
        assert store.reserve(token("second")) == Duplicate("first")
        assert store.reserve(token("second", queued=False, window=30.0)) == Duplicate("first")

    def test_of_many_at_once_one_is_accepted_and_all_others_learn_its_id(
        self, store: _Store, other_store: _Store
    ) -> None:
        stores = (store, other_store)
        answers = at_once(16, lambda number: stores[number % 2].reserve(token(f"m{number}")))
        (winner,) = [number for number, answer in enumerate(answers) if answer == Reserved()]
        assert [answer for answer in answers if answer != Reserved()] == [Duplicate(f"m{winner}")] * 15

    # --- running ------------------------------------------------------------------------------------------------

    def test_one_that_runs_counts_for_those_who_say_so(self, store: _Store) -> None:
        store.reserve(token("first", running=True))
        start(store, "first")
        assert store.reserve(token("second", running=True)) == Duplicate("first")
        assert store.reserve(token("third", running=False)) == Reserved()

    def test_its_lease_is_an_ordinary_one(self, store: _Store) -> None:
        store.reserve(token("first", running=True))
        lease = start(store, "first")
        assert [holder.get("id") for holder in store.holders(running_key("k"))] == ["first"]
        assert store.renew([lease]) == [Renewal.HELD]
        assert store.release([lease]) == [True]
        assert store.reserve(token("second", running=True)) == Reserved()

    def test_between_its_place_and_its_lease_nobody_gets_in(self, store: _Store, other_store: _Store) -> None:
        for number in range(20):
            mine = f"first{number}"
            store.reserve(token(mine, running=True))
            leases: list[Any] = at_once(
                2,
                lambda who, mine=mine, number=number: (  # type: ignore[misc]
                    start(store, mine) if who else other_store.reserve(token(f"second{number}", running=True))
                ),
            )
            assert leases[0] == Duplicate(mine)
            store.release([leases[1]])

    def test_a_silent_runner_counts_until_its_lease_ends(self, store: _Store, mortal_store: _Store) -> None:
        self.expire(start(mortal_store, "first", ttl=self.ttl))
        assert store.reserve(token("second", running=True)) == Reserved()
        assert start(store, "second").fence > 0

    def test_while_another_delivery_runs_a_message_begins_without_a_lease(self, store: _Store) -> None:
        first = start(store, "first")
        assert store.begin(token("stranger"), run_of("stranger")) == Begun(0)
        assert [holder["owner"] for holder in store.holders(running_key("k"))] == [first.owner]

    def test_beginning_twice_as_one_owner_is_beginning_once(self, store: _Store) -> None:
        lease = start(store, "first")
        assert start(store, "first", owner=lease.owner).fence == lease.fence

    def test_an_owner_whose_unknown_lease_was_released_is_granted_none(self, store: _Store) -> None:
        claim = run_of("first")
        store.release([Lease.unknown(claim.key, claim.owner, claim.ttl)])
        assert store.begin(token("first"), claim) == Begun(0)

    def test_a_retry_is_queued_while_its_own_run_has_not_ended(self, store: _Store) -> None:
        lease = start(store, "first")
        assert store.reserve(token("first")) == Reserved()
        store.release([lease])
        assert store.reserve(token("second", running=True)) == Duplicate("first")

    def test_locks_are_not_tokens(self, store: _Store) -> None:
        assert isinstance(store.acquire(Claim("k", new_owner(), 30.0)), Lease)
        assert store.reserve(token("first", running=True)) == Reserved()
        assert start(store, "first").fence > 0

    # --- windows ------------------------------------------------------------------------------------------------

    def test_within_its_window_no_second_one_is_accepted_whatever_became_of_the_first(self, store: _Store) -> None:
        throttled = token("first", queued=False, window=30.0)
        assert store.reserve(throttled) == Reserved()
        store.begin(throttled, None)
        store.cancel(throttled, window=False)
        assert store.reserve(token("second", queued=False, window=30.0)) == Duplicate("first")

    def test_after_its_window_a_second_one_is_accepted(self, store: _Store) -> None:
        store.reserve(token("first", queued=False, window=self.ttl))
        self.wait(self.ttl + 0.05)
        assert store.reserve(token("second", queued=False, window=self.ttl)) == Reserved()

    def test_a_duplicate_does_not_prolong_the_window(self, store: _Store) -> None:
        store.reserve(token("first", queued=False, window=3 * self.ttl))
        assert store.reserve(token("second", queued=False, window=30.0)) == Duplicate("first")
        self.wait(3 * self.ttl + 0.05)
        assert store.reserve(token("third", queued=False, window=30.0)) == Reserved()

    def test_the_window_of_one_that_never_starts_ends_with_its_ttl(self, store: _Store) -> None:
        store.reserve(token("first", queued=False, ttl=self.ttl, window=30.0))
        self.wait(self.ttl + 0.05)
        assert store.reserve(token("second", queued=False, window=30.0)) == Reserved()

    def test_the_window_of_one_that_has_started_is_longer_than_its_ttl(self, store: _Store) -> None:
        mine = token("first", queued=False, ttl=3 * self.ttl, window=30.0)
        store.reserve(mine)
        store.begin(mine, None)
        self.wait(3 * self.ttl + 0.05)
        assert store.reserve(token("second", queued=False, window=30.0)) == Duplicate("first")

    def test_one_that_was_never_published_gives_its_window_back(self, store: _Store) -> None:
        mine = token("first", queued=False, window=30.0)
        store.reserve(mine)
        store.cancel(mine, window=True)
        assert store.reserve(token("second", queued=False, window=30.0)) == Reserved()

    # --- replaced -----------------------------------------------------------------------------------------------

    def test_the_newest_replaces_the_one_that_is_queued(self, store: _Store) -> None:
        store.reserve(token("old", replaces=True))
        assert store.reserve(token("new", replaces=True)) == Reserved("old")
        assert store.begin(token("old", replaces=True), None) == Superseded("new")
        assert store.begin(token("new", replaces=True), None) == Begun(0)
        assert store.begin(token("old", replaces=True), None) == Superseded(None)

    def test_a_superseded_message_is_told_so_when_it_asks_again(self, store: _Store) -> None:
        store.reserve(token("old", replaces=True))
        store.reserve(token("new", replaces=True))
        assert store.reserve(token("old")) == Superseded("new")

    def test_only_the_latest_of_many_begins(self, store: _Store) -> None:
        names = [f"m{number}" for number in range(10)]
        for name in names:
            store.reserve(token(name, replaces=True))
        began = [name for name in names if isinstance(store.begin(token(name, replaces=True), None), Begun)]
        assert began == ["m9"]

    def test_one_that_has_started_is_not_replaced(self, store: _Store) -> None:
        store.reserve(token("old", replaces=True))
        store.begin(token("old", replaces=True), None)
        assert store.reserve(token("new", replaces=True)) == Reserved()

    def test_where_those_that_run_count_one_that_would_replace_is_superseded_itself(self, store: _Store) -> None:
        start(store, "runs")
        newer = token("new", running=True, replaces=True)
        assert store.reserve(newer) == Duplicate("runs")
        assert isinstance(store.begin(newer, run_of("new")), Superseded)

    def test_one_that_started_before_its_publisher_came_leaves_no_place_behind(self, store: _Store) -> None:
        quick = token("quick", replaces=True)
        assert store.begin(quick, None) == Begun(0)
        assert store.reserve(quick) == Reserved()
        assert store.reserve(token("next")) == Reserved()

    def test_one_that_started_before_its_publisher_came_replaces_nevertheless(self, store: _Store) -> None:
        store.reserve(token("old", replaces=True))
        quick = token("quick", replaces=True)
        assert store.begin(quick, None) == Begun(0)
        assert store.reserve(quick) == Reserved("old")
        assert isinstance(store.begin(token("old", replaces=True), None), Superseded)

    def test_one_that_started_before_its_publisher_came_replaces_none_that_came_after_its_start(
        self, store: _Store
    ) -> None:
        # Its run may have passed over what the newer one is about.
        quick = token("quick", replaces=True)
        assert store.begin(quick, None) == Begun(0)
        store.reserve(token("newer", replaces=True))
        assert store.reserve(quick) == Reserved()
        assert store.reserve(token("third")) == Duplicate("newer")
        assert store.begin(token("newer", replaces=True), None) == Begun(0)

    def test_one_that_is_superseded_at_once_leaves_no_place_behind(self, store: _Store) -> None:
        start(store, "runs")
        # It was delivered, and refused its lock, before its publisher came.
        assert store.reserve(token("new")) == Reserved()
        assert store.reserve(token("new", running=True, replaces=True)) == Duplicate("runs")
        assert store.reserve(token("third")) == Reserved()

    @pytest.mark.parametrize("name", ["id with blank", "ümläut", 'quo"te\\', "a:begun"])
    def test_an_id_may_be_any_text(self, store: _Store, name: str) -> None:
        store.reserve(token(name, replaces=True))
        assert store.reserve(token("second")) == Duplicate(name)
        start(store, name)
        assert store.reserve(token("second", running=True)) == Duplicate(name)
