"""What every store of locks does, as tests that a store's own tests inherit.

::

    from celery_distlock.testing import StoreContract

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self):                      # fresh and empty
            with closing(MyStore(...)) as store:
                yield store

        @pytest.fixture
        def other_store(self):                # optional: a second client of the same data
            with closing(MyStore(...)) as store:
                yield store

Real expiry is part of the contract, so a run waits for a few dozen leases of :attr:`StoreContract.ttl` seconds. A store
whose clock can be set overrides :meth:`StoreContract.wait`.

A store whose leases live as long as their client's session sets :attr:`StoreContract.sessions`, gives the tests a
``mortal_store`` of its own, and overrides :meth:`StoreContract.expire` and :meth:`StoreContract.fall_silent`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from celery_distlock.lease import (
    Claim,
    Completed,
    Completion,
    Contended,
    Lease,
    Renewal,
    Ticket,
    deadline_of,
    new_owner,
)
from celery_distlock.stores.base import LockStore

__all__ = ["StoreContract"]

ODD_KEYS = [
    "app.tasks.charge:0f3a",
    "with blank",
    " blanks around ",
    "line\nbreak\tand tab",
    "quo'te\"s`",
    "back\\slash",
    "a/b/../c",
    "/",
    "a:b::c:",
    "{tag}",
    "}{",
    "*",
    "h?llo",
    "h[ae]llo",
    "100%",
    "100%25 %s %(x)s",
    "Straße-鍵-🔒",
    "é",  # one code point
    "e\u0301",  # the same letter in two
    "k" * 200,
]


def claim(key: str, owner: str | None = None, *, ttl: float = 30.0, **options: Any) -> Claim:
    """Return a claim by a new owner, unless one is named."""
    return Claim(key, owner or new_owner(), ttl, **options)


def granted(answer: Lease | Ticket | Contended | Completed) -> Lease:
    """Assert that the answer is a lease, and return it."""
    assert isinstance(answer, Lease), f"expected a lease, got {answer}"
    return answer


def contended(answer: Lease | Ticket | Contended | Completed) -> Contended:
    """Assert that the answer is "contended", and return it."""
    assert isinstance(answer, Contended), f"expected Contended, got {answer}"
    return answer


def at_once(count: int, function: Callable[[int], Any]) -> list[Any]:
    """Call the function with 0 … count-1 in as many threads, started together; return what they returned."""
    barrier = threading.Barrier(count)
    results: list[Any] = [None] * count

    def run(number: int) -> None:
        barrier.wait(30)
        try:
            results[number] = function(number)
        except Exception as exc:  # shown by the assertion on the results
            results[number] = exc

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a call to the store did not return"
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


class StoreContract:
    """Inherit this in a class whose name starts with ``Test`` and give it the fixture ``store``."""

    #: Seconds of the leases that are left to expire.
    ttl: float = 0.3
    #: Seconds after its ttl within which a silent holder's key must be free.
    slack: float = 1.0
    #: Whether a lease lives as long as the session of its client, and no claim has a ttl of its own: when the session
    #: ends, all its leases are lost at once, and closing the store ends it.
    sessions: bool = False

    @pytest.fixture
    def other_store(self, store: LockStore) -> LockStore:
        """Return a second client of the same data; override it where there can be one."""
        return store

    @pytest.fixture
    def mortal_store(self, store: LockStore) -> LockStore:
        """Return the client whose leases the tests let expire."""
        return store

    def wait(self, seconds: float) -> None:
        """Let the store's time pass."""
        time.sleep(seconds)

    def expire(self, *leases: Lease, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Let these leases of ``mortal_store`` expire, which nobody renews; call ``meanwhile`` before it happens."""
        half = max(lease.ttl for lease in leases) / 2
        self.wait(half)
        meanwhile()
        self.wait(half + 0.05)

    def fall_silent(self, lease: Lease) -> None:
        """Let nobody keep this lease of ``mortal_store`` alive from now on. Most stores need be told nothing."""

    def longer(self, lease: Lease) -> Lease:
        """Return the lease with a ttl that outlasts the test."""
        return lease if self.sessions else replace(lease, ttl=30.0)

    def needs_own_ttl(self) -> None:
        """Skip a test of leases with a ttl of their own."""
        if self.sessions:
            pytest.skip("all leases of a session live as long as the session")

    def take(self, store: LockStore, wish: Claim) -> Lease:
        """Try to get a key whose holder has expired, for as long as a store may take to notice."""
        give_up = time.monotonic() + self.slack
        while True:
            answer = store.acquire(wish)
            if isinstance(answer, Lease):
                return answer
            assert time.monotonic() < give_up, f"an expired holder still bars the way: {answer}"
            time.sleep(0.02)

    def owners(self, store: LockStore, key: str) -> list[str]:
        """Return the owners listed for a key."""
        return [holder["owner"] for holder in store.holders(key)]

    # --- granting -----------------------------------------------------------------------------------------------

    def test_a_free_key_is_granted(self, store: LockStore) -> None:
        wish = claim("k")
        lease = granted(store.acquire(wish))
        assert (lease.key, lease.owner, lease.ttl) == ("k", wish.owner, store.lease_ttl(wish.ttl))
        assert lease.fence > 0

    def test_a_lease_is_believed_for_its_ttl_less_the_drift_from_before_the_request(self, store: LockStore) -> None:
        before = time.monotonic()
        lease = granted(store.acquire(claim("k", ttl=30.0)))
        after = time.monotonic()
        assert deadline_of(before, lease.ttl) <= lease.deadline <= deadline_of(after, lease.ttl)

    def test_a_held_key_is_contended(self, store: LockStore) -> None:
        granted(store.acquire(claim("k")))
        assert contended(store.acquire(claim("k"))).key == "k"

    def test_a_key_held_through_another_client_is_contended(self, store: LockStore, other_store: LockStore) -> None:
        lease = granted(store.acquire(claim("k")))
        answer = contended(other_store.acquire(claim("k")))
        assert [holder["owner"] for holder in answer.holders] == [lease.owner]

    def test_contention_names_the_holder(self, store: LockStore) -> None:
        record = {"task": "shop.charge", "id": "8c1f", "host": "web1", "pid": 4711, "identifier": "Jürgen 🔑"}
        lease = granted(store.acquire(claim("k", record=record)))
        holder = contended(store.acquire(claim("k", record={"id": "other"}))).holder
        assert holder is not None
        assert {name: holder.get(name) for name in record} == record
        assert (holder["key"], holder["owner"], holder["fence"]) == ("k", lease.owner, lease.fence)

    def test_contention_says_how_long_the_holder_will_be_believed(self, store: LockStore) -> None:
        lease = granted(store.acquire(claim("k", ttl=30.0)))
        holder = contended(store.acquire(claim("k"))).holder
        assert holder is not None
        assert lease.ttl * 0.7 < holder["remaining"] <= lease.ttl * 1.01

    def test_different_keys_do_not_contend(self, store: LockStore) -> None:
        granted(store.acquire(claim("k1")))
        granted(store.acquire(claim("k2")))

    def test_one_owner_may_hold_two_keys(self, store: LockStore) -> None:
        first = granted(store.acquire(claim("k1", "me")))
        granted(store.acquire(claim("k2", "me")))
        assert store.release([first]) == [True]
        assert self.owners(store, "k2") == ["me"]

    def test_acquire_does_not_wait_for_the_holder(self, store: LockStore) -> None:
        granted(store.acquire(claim("k", ttl=30.0)))
        began = time.monotonic()
        contended(store.acquire(claim("k")))
        assert time.monotonic() - began < 5.0

    def test_a_contended_claim_leaves_nothing_behind(self, store: LockStore) -> None:
        lease = granted(store.acquire(claim("k")))
        contended(store.acquire(claim("k", "loser")))
        assert store.release([lease]) == [True]
        assert store.holders() == []
        granted(store.acquire(claim("k", "third")))

    # --- asking twice is asking once ------------------------------------------------------------------------------

    def test_asking_again_returns_the_same_lease_with_the_same_fence(self, store: LockStore) -> None:
        wish = claim("k")
        first = granted(store.acquire(wish))
        second = granted(store.acquire(wish))
        assert second.fence == first.fence
        assert self.owners(store, "k") == [wish.owner]

    def test_asking_again_through_another_client_returns_the_same_fence(
        self, store: LockStore, other_store: LockStore
    ) -> None:
        wish = claim("k")
        assert granted(store.acquire(wish)).fence == granted(other_store.acquire(wish)).fence

    def test_asking_again_starts_the_time_anew(self, store: LockStore) -> None:
        self.needs_own_ttl()
        first = granted(store.acquire(claim("k", "me", ttl=self.ttl)))
        second = granted(store.acquire(claim("k", "me", ttl=30.0)))
        assert second.deadline > first.deadline + 20.0
        self.expire(first)
        contended(store.acquire(claim("k")))

    def test_asking_again_takes_no_second_place(self, store: LockStore) -> None:
        wish = claim("k", limit=2)
        granted(store.acquire(wish))
        granted(store.acquire(wish))
        granted(store.acquire(claim("k", limit=2)))

    def test_asking_again_when_all_places_are_taken_is_still_granted(self, store: LockStore) -> None:
        wishes = [claim("k", limit=2) for _ in range(2)]
        fences = [granted(store.acquire(wish)).fence for wish in wishes]
        assert [granted(store.acquire(wish)).fence for wish in wishes] == fences

    def test_one_release_is_enough_for_a_lease_asked_for_twice(self, store: LockStore) -> None:
        wish = claim("k")
        store.acquire(wish)
        assert store.release([granted(store.acquire(wish))]) == [True]
        granted(store.acquire(claim("k")))

    def test_an_expired_owner_who_asks_again_while_nobody_came_is_granted(
        self, store: LockStore, mortal_store: LockStore
    ) -> None:
        first = granted(mortal_store.acquire(claim("k", "me", ttl=self.ttl)))
        self.expire(first)
        again = granted(mortal_store.acquire(claim("k", "me")))
        assert again.fence >= first.fence
        assert self.owners(store, "k") == ["me"]
        contended(store.acquire(claim("k")))

    # --- release --------------------------------------------------------------------------------------------------

    def test_a_released_key_can_be_granted_at_once(self, store: LockStore, other_store: LockStore) -> None:
        lease = granted(store.acquire(claim("k")))
        assert store.release([lease]) == [True]
        granted(other_store.acquire(claim("k")))

    def test_releasing_twice_answers_false_the_second_time(self, store: LockStore) -> None:
        lease = granted(store.acquire(claim("k")))
        assert store.release([lease]) == [True]
        assert store.release([lease]) == [False]

    def test_a_lease_named_twice_in_one_release_is_released_once(self, store: LockStore) -> None:
        lease = granted(store.acquire(claim("k")))
        assert store.release([lease, lease]) == [True, False]

    def test_release_by_another_owner_changes_nothing(self, store: LockStore) -> None:
        lease = granted(store.acquire(claim("k")))
        assert store.release([replace(lease, owner=new_owner())]) == [False]
        assert self.owners(store, "k") == [lease.owner]
        assert store.renew([lease]) == [Renewal.HELD]

    def test_release_of_another_key_changes_nothing(self, store: LockStore) -> None:
        lease = granted(store.acquire(claim("k")))
        assert store.release([replace(lease, key="k2")]) == [False]
        assert self.owners(store, "k") == [lease.owner]

    def test_release_after_a_takeover_leaves_the_new_holder_alone(
        self, store: LockStore, mortal_store: LockStore
    ) -> None:
        old = granted(mortal_store.acquire(claim("k", ttl=self.ttl)))
        self.expire(old)
        new = self.take(store, claim("k"))
        assert mortal_store.release([old]) == [False]
        assert self.owners(store, "k") == [new.owner]
        contended(store.acquire(claim("k")))

    def test_release_after_expiry_leaves_nothing(self, store: LockStore, mortal_store: LockStore) -> None:
        lease = granted(mortal_store.acquire(claim("k", ttl=self.ttl)))
        self.expire(lease)
        mortal_store.release([lease])
        assert store.holders() == []
        granted(store.acquire(claim("k")))

    def test_a_lease_can_be_released_through_another_client(self, store: LockStore, other_store: LockStore) -> None:
        lease = granted(store.acquire(claim("k")))
        assert other_store.release([lease]) == [True]
        assert store.holders() == []

    def test_a_lease_can_be_released_in_another_thread(self, store: LockStore) -> None:
        lease = granted(store.acquire(claim("k")))
        assert at_once(1, lambda _: store.release([lease])) == [[True]]

    def test_releasing_one_key_leaves_the_others_alone(self, store: LockStore) -> None:
        leases = [granted(store.acquire(claim(f"k{n}"))) for n in range(5)]
        assert store.release([leases[2]]) == [True]
        assert store.renew(leases) == [Renewal.HELD] * 2 + [Renewal.GONE] + [Renewal.HELD] * 2

    def test_released_leases_are_answered_in_order(self, store: LockStore) -> None:
        leases = [granted(store.acquire(claim(f"k{n}"))) for n in range(4)]
        store.release([leases[1], leases[2]])
        assert store.release(leases) == [True, False, False, True]

    def test_many_leases_are_released_in_one_call(self, store: LockStore) -> None:
        leases = [granted(store.acquire(claim(f"k{n}"))) for n in range(200)]
        assert store.release(leases) == [True] * 200
        assert store.holders() == []

    def test_empty_batches_do_nothing(self, store: LockStore) -> None:
        lease = granted(store.acquire(claim("k")))
        assert store.renew([]) == []
        assert store.release([]) == []
        store.forget([])
        assert self.owners(store, "k") == [lease.owner]

    # --- a shortest time ----------------------------------------------------------------------------------------

    @pytest.fixture
    def resting_store(self, store: LockStore) -> LockStore:
        """Return the store, if it keeps the place of a lease that was released too early."""
        if not store.rests:
            pytest.skip("this store keeps no shortest time")
        return store

    def test_a_place_that_rests_is_taken_until_its_time_is_over(self, resting_store: LockStore) -> None:
        store = resting_store
        lease = granted(store.acquire(claim("k", record={"id": "8c1f"})))
        assert store.release([replace(lease, rest=3 * self.ttl)]) == [True]
        (holder,) = contended(store.acquire(claim("k"))).holders
        assert (holder.get("id"), holder.get("resting")) == ("8c1f", True)
        assert 0 < holder["remaining"] <= 3 * self.ttl
        self.wait(3 * self.ttl + 0.02)
        assert store.holders("k") == []
        # At once: nobody could speak up for it.
        granted(store.acquire(claim("k")))

    def test_nobody_renews_or_releases_a_place_that_rests(self, resting_store: LockStore) -> None:
        store = resting_store
        lease = granted(store.acquire(claim("k")))
        store.release([replace(lease, rest=30.0)])
        assert store.renew([lease]) == [Renewal.GONE]
        assert store.release([lease]) == [False]
        contended(store.acquire(claim("k", owner=lease.owner)))

    def test_a_place_rests_on_although_its_client_has_gone(
        self, resting_store: LockStore, mortal_store: LockStore
    ) -> None:
        store = resting_store
        lease = granted(mortal_store.acquire(claim("k")))
        mortal_store.release([replace(lease, rest=4 * self.ttl)])
        mortal_store.close()
        contended(store.acquire(claim("k")))
        self.wait(4 * self.ttl + 0.02)
        granted(store.acquire(claim("k")))

    def test_places_that_rest_count_as_any(self, resting_store: LockStore) -> None:
        store = resting_store
        first, second = (granted(store.acquire(claim("k", limit=2))) for _ in range(2))
        store.release([replace(first, rest=3 * self.ttl)])
        contended(store.acquire(claim("k", limit=2)))
        self.wait(3 * self.ttl + 0.02)
        granted(store.acquire(claim("k", limit=2)))
        assert store.renew([second]) == [Renewal.HELD]

    def test_a_lease_that_was_lost_does_not_rest(self, resting_store: LockStore, mortal_store: LockStore) -> None:
        store = resting_store
        old = granted(mortal_store.acquire(claim("k", ttl=self.ttl)))
        self.expire(old)
        new = self.take(store, claim("k"))
        assert mortal_store.release([replace(old, rest=30.0)]) == [False]
        assert self.owners(store, "k") == [new.owner]

    # --- renewal --------------------------------------------------------------------------------------------------

    def test_a_renewed_lease_is_held_beyond_its_first_ttl(self, store: LockStore) -> None:
        self.needs_own_ttl()
        lease = granted(store.acquire(claim("k", ttl=self.ttl)))
        assert store.renew([replace(lease, ttl=30.0)]) == [Renewal.HELD]
        self.expire(lease)
        contended(store.acquire(claim("k")))

    def test_each_lease_is_renewed_for_its_own_ttl(self, store: LockStore) -> None:
        self.needs_own_ttl()
        short, long = [granted(store.acquire(claim(key, ttl=self.ttl))) for key in ("short", "long")]
        assert store.renew([short, replace(long, ttl=30.0)]) == [Renewal.HELD] * 2
        self.expire(short)
        self.take(store, claim("short"))
        contended(store.acquire(claim("long")))

    def test_a_lease_that_is_not_renewed_expires_although_its_neighbour_is(
        self, store: LockStore, mortal_store: LockStore
    ) -> None:
        renewed, silent = [granted(one.acquire(claim("k", ttl=self.ttl, limit=2))) for one in (store, mortal_store)]
        assert store.renew([self.longer(renewed)]) == [Renewal.HELD]
        self.expire(silent)
        newcomer = self.take(store, claim("k", limit=2))
        assert sorted(self.owners(store, "k")) == sorted([renewed.owner, newcomer.owner])

    def test_a_lease_can_be_renewed_through_another_client(self, store: LockStore, other_store: LockStore) -> None:
        lease = granted(store.acquire(claim("k")))
        assert other_store.renew([lease]) == [Renewal.HELD]

    def test_renewal_keeps_the_fence_and_the_record(self, store: LockStore) -> None:
        lease = granted(store.acquire(claim("k", record={"task": "shop.charge"})))
        store.renew([lease])
        [holder] = store.holders("k")
        assert (holder["fence"], holder["task"]) == (lease.fence, "shop.charge")

    def test_a_released_lease_is_gone_and_never_re_created(self, store: LockStore) -> None:
        lease = granted(store.acquire(claim("k")))
        store.release([lease])
        assert store.renew([lease]) == [Renewal.GONE]
        assert store.holders() == []
        granted(store.acquire(claim("k")))

    def test_a_released_lease_is_gone_although_somebody_else_holds_the_key_now(self, store: LockStore) -> None:
        old = granted(store.acquire(claim("k")))
        store.release([old])
        new = granted(store.acquire(claim("k")))
        assert store.renew([old, new]) == [Renewal.GONE, Renewal.HELD]

    def test_an_owner_who_was_never_granted_the_key_is_gone(self, store: LockStore) -> None:
        lease = granted(store.acquire(claim("k")))
        stranger = replace(lease, owner=new_owner())
        assert store.renew([stranger]) == [Renewal.GONE]
        assert self.owners(store, "k") == [lease.owner]
        store.release([lease])
        assert store.renew([stranger]) == [Renewal.GONE]
        assert store.holders() == []

    def test_an_expired_lease_is_held_again_when_nobody_came(self, store: LockStore) -> None:
        self.needs_own_ttl()
        lease = granted(store.acquire(claim("k", ttl=self.ttl)))
        self.expire(lease)
        assert store.renew([replace(lease, ttl=30.0)]) == [Renewal.HELD]
        assert self.owners(store, "k") == [lease.owner]
        contended(store.acquire(claim("k")))

    def test_a_lease_whose_place_was_given_away_is_lost(self, store: LockStore, mortal_store: LockStore) -> None:
        old = granted(mortal_store.acquire(claim("k", ttl=self.ttl)))
        self.expire(old)
        new = self.take(store, claim("k"))
        assert mortal_store.renew([old]) == [Renewal.LOST]
        assert self.owners(store, "k") == [new.owner]

    def test_a_lost_lease_stays_lost_after_the_new_holder_is_done(
        self, store: LockStore, mortal_store: LockStore
    ) -> None:
        old = granted(mortal_store.acquire(claim("k", ttl=self.ttl)))
        self.expire(old)
        store.release([self.take(store, claim("k"))])
        assert mortal_store.renew([old]) == [Renewal.LOST]
        assert mortal_store.renew([old]) == [Renewal.LOST], "the store told it only once"
        assert store.holders() == []

    def test_renewals_are_answered_in_order(self, store: LockStore, mortal_store: LockStore) -> None:
        lost = granted(mortal_store.acquire(claim("lost", ttl=self.ttl)))
        self.expire(lost)
        self.take(store, claim("lost"))
        held, gone, also_held = [granted(mortal_store.acquire(claim(key))) for key in ("held", "gone", "also held")]
        mortal_store.release([gone])
        assert mortal_store.renew([held, gone, lost, also_held]) == [
            Renewal.HELD,
            Renewal.GONE,
            Renewal.LOST,
            Renewal.HELD,
        ]

    def test_many_leases_are_renewed_in_one_call(self, store: LockStore) -> None:
        leases = [granted(store.acquire(claim(f"k{n}"))) for n in range(200)]
        assert store.renew(leases) == [Renewal.HELD] * 200

    # --- expiry ---------------------------------------------------------------------------------------------------

    def test_a_silent_holders_key_is_granted_after_its_deadline_and_within_ttl_and_slack(
        self, mortal_store: LockStore, other_store: LockStore
    ) -> None:
        lease = granted(mortal_store.acquire(claim("k", ttl=self.ttl)))
        self.fall_silent(lease)
        asked_from = time.monotonic()
        wish, answer = claim("k"), None
        while not isinstance(answer, Lease):
            answer = other_store.acquire(wish)
            answered = time.monotonic()
            assert answered < asked_from + lease.ttl + self.slack, f"still not granted: {answer}"
            time.sleep(0.005)
        assert answered >= lease.deadline, "granted to a second holder while the first one was right to believe it"

    def test_an_expired_holder_stays_listed_until_it_is_replaced(self, store: LockStore) -> None:
        self.needs_own_ttl()
        old = granted(store.acquire(claim("k", ttl=self.ttl)))
        self.expire(old)
        assert self.owners(store, "k") == [old.owner]
        assert store.holders("k")[0]["remaining"] < 0
        new = self.take(store, claim("k"))
        assert self.owners(store, "k") == [new.owner]

    def test_a_takeover_has_a_greater_fence(self, store: LockStore, mortal_store: LockStore) -> None:
        old = granted(mortal_store.acquire(claim("k", ttl=self.ttl)))
        self.expire(old)
        assert self.take(store, claim("k")).fence > old.fence

    def test_a_takeover_happens_once(self, store: LockStore, mortal_store: LockStore) -> None:
        old = granted(mortal_store.acquire(claim("k", ttl=self.ttl)))
        self.expire(old)
        wishes = [claim("k") for _ in range(6)]
        answers: list[Lease | Contended | Completed] = []
        give_up = time.monotonic() + self.slack
        while not any(isinstance(answer, Lease) for answer in answers):
            assert time.monotonic() < give_up, f"an expired holder still bars the way: {answers[-1]}"
            answers = at_once(6, lambda n: store.acquire(wishes[n]))
        assert [type(answer) for answer in answers].count(Lease) == 1

    def test_a_lost_holder_does_not_get_its_key_back_from_the_new_one(
        self, store: LockStore, mortal_store: LockStore
    ) -> None:
        old = granted(mortal_store.acquire(claim("k", "old", ttl=self.ttl)))
        self.expire(old)
        self.take(store, claim("k", "new"))
        contended(mortal_store.acquire(claim("k", "old")))
        assert self.owners(store, "k") == ["new"]

    # --- several holders ------------------------------------------------------------------------------------------

    def test_as_many_as_the_limit_may_hold_a_key_and_no_more(self, store: LockStore) -> None:
        leases = [granted(store.acquire(claim("k", limit=3))) for _ in range(3)]
        answer = contended(store.acquire(claim("k", limit=3)))
        assert [holder["owner"] for holder in answer.holders] == [lease.owner for lease in leases]

    def test_one_released_place_lets_one_in(self, store: LockStore) -> None:
        leases = [granted(store.acquire(claim("k", limit=3))) for _ in range(3)]
        store.release([leases[1]])
        granted(store.acquire(claim("k", limit=3)))
        contended(store.acquire(claim("k", limit=3)))

    def test_holders_of_one_key_have_different_fences(self, store: LockStore) -> None:
        assert len({granted(store.acquire(claim("k", limit=5))).fence for _ in range(5)}) == 5

    def test_only_the_expired_one_of_several_holders_is_replaced(
        self, store: LockStore, mortal_store: LockStore
    ) -> None:
        silent = granted(mortal_store.acquire(claim("k", ttl=self.ttl, limit=2)))
        lively = granted(store.acquire(claim("k", limit=2)))
        self.expire(silent)
        newcomer = self.take(store, claim("k", limit=2))
        contended(store.acquire(claim("k", limit=2)))
        assert mortal_store.renew([silent]) == [Renewal.LOST]
        assert store.renew([lively, newcomer]) == [Renewal.HELD, Renewal.HELD]

    def test_an_expired_holder_keeps_its_place_while_another_one_is_free(self, store: LockStore) -> None:
        self.needs_own_ttl()
        silent = granted(store.acquire(claim("k", ttl=self.ttl, limit=2)))
        self.expire(silent)
        newcomer = granted(store.acquire(claim("k", limit=2)))
        assert store.renew([silent, newcomer]) == [Renewal.HELD, Renewal.HELD]

    def test_one_newcomer_replaces_one_expired_holder(self, store: LockStore) -> None:
        self.needs_own_ttl()
        silent = [granted(store.acquire(claim("k", ttl=self.ttl, limit=2))) for _ in range(2)]
        self.expire(*silent)
        self.take(store, claim("k", limit=2))
        assert sorted(store.renew(silent)) == [Renewal.HELD, Renewal.LOST]

    # --- fences ---------------------------------------------------------------------------------------------------

    def test_fences_grow_from_grant_to_grant(self, store: LockStore, other_store: LockStore) -> None:
        fences = []
        for n in range(30):
            lease = granted((store, other_store)[n % 2].acquire(claim("k")))
            fences.append(lease.fence)
            store.release([lease])
        assert fences == sorted(set(fences))

    def test_fences_are_integers_that_json_and_doubles_keep_exactly(self, store: LockStore) -> None:
        lease = granted(store.acquire(claim("k")))
        [holder] = store.holders("k")
        assert type(lease.fence) is type(holder["fence"]) is int
        assert lease.fence == holder["fence"] < 2**53

    # --- an acquire without an answer ---------------------------------------------------------------------------------

    def test_an_unknown_lease_that_was_released_is_never_granted_later(self, store: LockStore) -> None:
        assert store.release([Lease.unknown("k", "orphan", 30.0)]) == [False]
        contended(store.acquire(claim("k", "orphan")))
        assert store.holders() == []

    def test_an_unknown_lease_that_was_granted_is_given_back_and_barred(self, store: LockStore) -> None:
        granted(store.acquire(claim("k", "orphan")))
        assert store.release([Lease.unknown("k", "orphan", 30.0)]) == [True]
        contended(store.acquire(claim("k", "orphan")))
        assert store.holders() == []

    def test_releasing_an_unknown_lease_bars_nobody_else(self, store: LockStore) -> None:
        store.release([Lease.unknown("k", "orphan", 30.0)])
        granted(store.acquire(claim("k", "somebody else")))

    def test_releasing_an_unknown_lease_bars_its_owner_from_this_key_only(self, store: LockStore) -> None:
        store.release([Lease.unknown("k", "orphan", 30.0)])
        granted(store.acquire(claim("k2", "orphan")))

    def test_releasing_an_unknown_lease_leaves_the_holder_alone(self, store: LockStore) -> None:
        lease = granted(store.acquire(claim("k")))
        assert store.release([Lease.unknown("k", "orphan", 30.0)]) == [False]
        assert store.renew([lease]) == [Renewal.HELD]
        answer = contended(store.acquire(claim("k", "orphan")))
        assert [holder["owner"] for holder in answer.holders] == [lease.owner]

    def test_an_ordinary_release_bars_nobody(self, store: LockStore) -> None:
        first = granted(store.acquire(claim("k", "me")))
        store.release([first])
        assert granted(store.acquire(claim("k", "me"))).fence > first.fence

    # --- completion records ---------------------------------------------------------------------------------------

    def complete(self, store: LockStore, completion: Completion) -> None:
        lease = granted(store.acquire(claim(completion.key)))
        assert store.release([lease], [completion]) == [True]

    def test_a_completed_run_is_told_so(self, store: LockStore, other_store: LockStore) -> None:
        run = Completion("k", "id:0:0", 30.0)
        self.complete(store, run)
        assert other_store.acquire(claim("k", completion=run)) == Completed("k", "id:0:0")
        assert store.holders() == []

    def test_a_completed_run_is_told_so_although_somebody_holds_the_key(self, store: LockStore) -> None:
        run = Completion("k", "id:0:0", 30.0)
        self.complete(store, run)
        granted(store.acquire(claim("k")))
        assert store.acquire(claim("k", completion=run)) == Completed("k", "id:0:0")

    def test_a_run_that_is_not_completed_is_granted(self, store: LockStore) -> None:
        self.complete(store, Completion("k", "id:0:0", 30.0))
        granted(store.acquire(claim("k", completion=Completion("k", "id:1:0", 30.0))))

    def test_a_release_without_completion_leaves_no_record(self, store: LockStore) -> None:
        run = Completion("k", "id:0:0", 30.0)
        store.release([granted(store.acquire(claim("k", completion=run)))])
        granted(store.acquire(claim("k", completion=run)))

    def test_a_completed_run_means_nothing_to_a_claim_that_does_not_ask(self, store: LockStore) -> None:
        self.complete(store, Completion("k", "id:0:0", 30.0))
        granted(store.acquire(claim("k")))

    def test_a_run_completed_under_one_key_is_not_completed_under_another(self, store: LockStore) -> None:
        self.complete(store, Completion("k", "id:0:0", 30.0))
        granted(store.acquire(claim("k2", completion=Completion("k2", "id:0:0", 30.0))))

    def test_each_completion_of_a_batch_goes_with_its_own_lease(self, store: LockStore) -> None:
        leases = [granted(store.acquire(claim(f"k{n}"))) for n in range(3)]
        runs = [Completion(f"k{n}", f"run{n}", 30.0) for n in range(3)]
        assert store.release(leases, [runs[0], None, runs[2]]) == [True] * 3
        answers = [store.acquire(claim(run.key, completion=run)) for run in runs]
        assert [type(answer) for answer in answers] == [Completed, Lease, Completed]

    def test_a_forgotten_completion_is_granted(self, store: LockStore) -> None:
        runs = [Completion("k", "run0", 30.0), Completion("k", "run1", 30.0)]
        for run in runs:
            self.complete(store, run)
        store.forget([runs[0]])
        assert isinstance(store.acquire(claim("k", completion=runs[1])), Completed)
        granted(store.acquire(claim("k", completion=runs[0])))

    def test_a_completion_is_recorded_although_the_lease_was_lost_meanwhile(
        self, store: LockStore, mortal_store: LockStore
    ) -> None:
        # The record says that the work was done, not who may do it.
        run = Completion("k", "id:0:0", 30.0)
        old = granted(mortal_store.acquire(claim("k", ttl=self.ttl)))
        self.expire(old)
        self.take(store, claim("k"))
        assert mortal_store.release([old], [run]) == [False]
        assert store.acquire(claim("k", completion=run)) == Completed("k", "id:0:0")

    def test_forgetting_what_was_never_completed_is_no_error(self, store: LockStore) -> None:
        lease = granted(store.acquire(claim("k")))
        store.forget([Completion("k", "never", 30.0), Completion("k2", "never", 30.0)])
        assert store.renew([lease]) == [Renewal.HELD]

    def test_a_completion_vanishes_with_its_ttl(self, store: LockStore) -> None:
        short, long = Completion("k", "short", self.ttl), Completion("k", "long", 30.0)
        self.complete(store, long)
        self.complete(store, short)
        self.wait(self.ttl + 0.05)
        assert isinstance(store.acquire(claim("k", completion=long)), Completed)
        self.take(store, claim("k", completion=short))

    # --- who holds what -------------------------------------------------------------------------------------------

    def test_a_free_key_has_no_holders(self, store: LockStore) -> None:
        granted(store.acquire(claim("k")))
        assert store.holders("another") == []

    def test_holders_of_all_keys_are_listed(self, store: LockStore, other_store: LockStore) -> None:
        leases = [granted(store.acquire(claim(f"k{n}"))) for n in range(3)]
        listed = {(holder["key"], holder["owner"], holder["fence"]) for holder in other_store.holders()}
        assert listed == {(lease.key, lease.owner, lease.fence) for lease in leases}

    def test_holders_of_many_keys_are_listed_once_each(self, store: LockStore) -> None:
        keys = [f"k{n}" for n in range(500)]
        for key in keys:
            granted(store.acquire(claim(key)))
        assert sorted(holder["key"] for holder in store.holders()) == sorted(keys)

    def test_holders_are_listed_by_prefix(self, store: LockStore) -> None:
        for key in ("order:1", "order:2", "orders", "reorder:1", "Order:1"):
            granted(store.acquire(claim(key)))
        assert sorted(holder["key"] for holder in store.holders(prefix="order:")) == ["order:1", "order:2"]

    @pytest.mark.parametrize("prefix", ["*", "h?", "h[ae]", "h[", "h\\", "^", "%", "_"])
    def test_a_prefix_is_text_and_no_pattern(self, store: LockStore, prefix: str) -> None:
        for key in ("hallo", "hello", "h", "aaa", prefix + "llo"):
            granted(store.acquire(claim(key)))
        assert [holder["key"] for holder in store.holders(prefix=prefix)] == [prefix + "llo"]

    def test_a_key_is_no_prefix(self, store: LockStore) -> None:
        granted(store.acquire(claim("order:1")))
        assert store.holders("order:") == []

    def test_holders_of_one_key_are_listed_oldest_first(self, store: LockStore) -> None:
        ttls = [20.0, 10.0, 30.0]
        leases = [granted(store.acquire(claim("k", ttl=ttl, limit=3))) for ttl in ttls]
        store.renew([leases[0]])
        assert self.owners(store, "k") == [lease.owner for lease in leases]

    def test_a_holder_is_listed_as_it_described_itself(self, store: LockStore) -> None:
        record = {
            "since": 1795168028.590227,
            "task": "shop.charge",
            "id": "8c1f",
            "retries": 2,
            "attempt": 3,
            "depth": 1,
            "host": "wéb1",
            "pid": 4711,
            "identifier": 'said "hi"',
        }
        lease = granted(store.acquire(claim("k", ttl=30.0, record=record)))
        [holder] = store.holders("k")
        assert {name: holder.get(name) for name in record} == record
        assert lease.ttl * 0.7 < holder["remaining"] <= lease.ttl * 1.01

    def test_a_holder_that_did_not_describe_itself_is_listed(self, store: LockStore) -> None:
        lease = granted(store.acquire(claim("k")))
        [holder] = store.holders("k")
        assert set(holder) >= {"key", "owner", "fence", "remaining"}
        assert holder["owner"] == lease.owner

    @pytest.mark.parametrize("key", ODD_KEYS, ids=ascii)
    def test_any_text_is_a_key(self, store: LockStore, key: str) -> None:
        run = Completion(key, "run", 30.0)
        lease = granted(store.acquire(claim(key)))
        answer = contended(store.acquire(claim(key)))
        assert (lease.key, answer.key) == (key, key)
        assert [holder["key"] for holder in store.holders(key)] == [key]
        assert [holder["key"] for holder in store.holders(prefix=key)] == [key]
        assert store.renew([lease]) == [Renewal.HELD]
        assert store.release([lease], [run]) == [True]
        assert store.acquire(claim(key, completion=run)) == Completed(key, "run")
        store.forget([run])
        assert store.holders() == []

    def test_odd_keys_are_all_different(self, store: LockStore) -> None:
        leases = [granted(store.acquire(claim(key))) for key in ODD_KEYS]
        assert sorted(holder["key"] for holder in store.holders()) == sorted(ODD_KEYS)
        assert store.release(leases) == [True] * len(ODD_KEYS)

    # --- a client's life ------------------------------------------------------------------------------------------

    def test_a_store_has_a_name(self, store: LockStore) -> None:
        assert isinstance(store.name, str)
        assert store.name

    def test_closing_a_store_leaves_its_leases_alone(self, store: LockStore) -> None:
        self.needs_own_ttl()
        lease = granted(store.acquire(claim("k")))
        store.close()
        contended(store.acquire(claim("k")))
        assert store.renew([lease]) == [Renewal.HELD]
        store.close()
        assert store.release([lease]) == [True]

    def test_a_closed_store_can_be_used_again(self, store: LockStore) -> None:
        store.close()
        lease = granted(store.acquire(claim("k")))
        contended(store.acquire(claim("k")))
        store.close()
        store.release([lease])
        assert store.holders() == []

    def test_closing_twice_is_no_error(self, store: LockStore) -> None:
        store.close()
        store.close()

    def test_one_of_many_threads_gets_the_key(self, store: LockStore, other_store: LockStore) -> None:
        for number in range(5):
            key = f"k{number}"
            answers = at_once(8, lambda n, key=key: (store, other_store)[n % 2].acquire(claim(key)))  # type: ignore[misc]
            winners = [answer.owner for answer in answers if isinstance(answer, Lease)]
            assert len(winners) == 1
            losers = [answer for answer in answers if isinstance(answer, Contended)]
            assert [loser.holder["owner"] for loser in losers if loser.holder] == winners * 7

    def test_as_many_threads_as_the_limit_get_the_key(self, store: LockStore) -> None:
        answers = at_once(8, lambda _: store.acquire(claim("k", limit=3)))
        assert [type(answer) for answer in answers].count(Lease) == 3
        assert len(store.holders("k")) == 3

    def test_threads_that_ask_as_one_owner_get_one_lease(self, store: LockStore) -> None:
        wish = claim("k")
        assert len({granted(answer).fence for answer in at_once(8, lambda _: store.acquire(wish))}) == 1
        assert self.owners(store, "k") == [wish.owner]

    def test_a_lease_released_by_many_threads_is_released_once(self, store: LockStore) -> None:
        lease = granted(store.acquire(claim("k")))
        assert sorted(at_once(8, lambda _: store.release([lease]))) == [[False]] * 7 + [[True]]

    def test_nothing_is_listed_after_much_use(self, store: LockStore) -> None:
        for number in range(100):
            key = f"k{number % 7}"
            lease = granted(store.acquire(claim(key)))
            contended(store.acquire(claim(key)))
            store.renew([lease])
            store.release([lease])
        assert store.holders() == []
