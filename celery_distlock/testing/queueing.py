"""What every store that queues does, as tests that a store's own tests inherit beside :class:`StoreContract`.

::

    class TestMyStore(QueueingContract, StoreContract):
        @pytest.fixture
        def store(self): ...

Real expiry is part of it: where somebody falls silent, the stores get a short
:attr:`~celery_distlock.stores.base.Queueing.claim_ttl`. Everywhere else places outlast whatever holds a machine up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import pytest

from celery_distlock.lease import (
    Claim,
    Completed,
    Completion,
    Contended,
    Lease,
    Offer,
    Renewal,
    Ticket,
    deadline_of,
    new_owner,
)
from celery_distlock.stores.base import LockStore, Queueing
from celery_distlock.testing.contract import ODD_KEYS, StoreContract, at_once, claim, contended, granted

__all__ = ["QueueingContract"]


class _Store(LockStore, Queueing):
    """What the fixtures are; nobody inherits it."""


Place = Ticket | Offer

#: Seconds for which a hint is waited for.
HINT_PATIENCE = 5.0
#: Seconds for which places are kept where nobody is to lose one.
_LASTING = 60.0

#: Marks tests in which somebody loses a place by silence, or would.
somebody_is_silent = pytest.mark.usefixtures("short_claims")


def ticket(answer: Lease | Ticket | Contended | Completed | Offer | None) -> Ticket:
    """Assert that the answer is a place in the line, and return it."""
    assert isinstance(answer, Ticket), f"expected a ticket, got {answer}"
    return answer


def offer(answer: Lease | Ticket | Contended | Completed | Offer | None) -> Offer:
    """Assert that the answer is an offer, and return it."""
    assert isinstance(answer, Offer), f"expected an offer, got {answer}"
    return answer


class Hints:
    """What a listener has heard."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []
        self.gaps = 0
        self._change = threading.Condition()

    def on_offer(self, key: str, owner: str) -> None:
        with self._change:
            self.heard.append((key, owner))
            self._change.notify_all()

    def on_gap(self) -> None:
        with self._change:
            self.gaps += 1
            self._change.notify_all()

    def wait(self, predicate: Callable[[], bool], what: str) -> None:
        with self._change:
            assert self._change.wait_for(predicate, HINT_PATIENCE), f"{what}; heard: {self.heard}"

    def wait_for(self, key: str, owner: str) -> None:
        self.wait(lambda: (key, owner) in self.heard, f"no hint for {owner} on {key!r}")


@contextmanager
def listening(store: Queueing) -> Iterator[tuple[str, Hints]]:
    """Listen, and return the listener's name and what it hears, once it can hear."""
    hints = Hints()
    with closing(store.listen(hints.on_offer, hints.on_gap)) as listener:
        hints.wait(lambda: hints.gaps > 0, "the listener was never ready")
        yield listener.name, hints


class QueueingContract(StoreContract):
    """Inherit this in a class whose name starts with ``Test`` and give it the fixture ``store``."""

    #: Seconds for which the stores keep the places of silent waiters, where somebody falls silent. Others have half of
    #: it to be heard of, however busy the machine is.
    claim_ttl: float = 1.0
    #: Whether a waiter that was gone, or declined, comes back to its old place by its ticket's number. Where places are
    #: numbered by the store itself it stands at the end.
    keeps_tickets: bool = True

    @pytest.fixture(autouse=True)
    def _lasting_claims(self, store: _Store, other_store: _Store) -> None:
        store.claim_ttl = other_store.claim_ttl = _LASTING

    @pytest.fixture
    def short_claims(self, _lasting_claims: None, store: _Store, other_store: _Store) -> None:
        """Have the stores give up the places of those who are silent for :attr:`claim_ttl` seconds."""
        store.claim_ttl = other_store.claim_ttl = self.claim_ttl

    def needs_tickets(self) -> None:
        """Skip a test of places that are had back."""
        if not self.keeps_tickets:
            pytest.skip("who comes back stands at the end")

    def hold(self, store: _Store, key: str = "k", **options: Any) -> Lease:
        """Get a key that is free."""
        return granted(store.acquire(claim(key, **options)))

    def join(self, store: _Store, key: str = "k", owner: str | None = None, **options: Any) -> Ticket:
        """Join the line for a key that is held."""
        return ticket(store.enqueue(claim(key, owner, **options)))

    def offered(self, store: _Store, places: Sequence[Place], within: float) -> tuple[Offer, list[Place | None]]:
        """Poll until one of these waiters is offered a place; return the offer and how all stand."""
        give_up = time.monotonic() + within
        while True:
            now = store.poll(places)
            offers = [place for place in now if isinstance(place, Offer)]
            if offers:
                assert len(offers) == 1, f"one place was offered to several: {offers}"
                return offers[0], now
            assert time.monotonic() < give_up, f"nobody was offered the place: {now}"
            places = [place for place in now if place is not None]
            time.sleep(0.02)

    def confirmed(self, store: _Store, place: Place) -> Lease:
        """Turn an offer into a lease."""
        [lease] = store.confirm([place.claim])
        assert isinstance(lease, Lease), f"the offer could not be confirmed: {lease}"
        return lease

    def let_them_fall_silent(self) -> None:
        """Let more time pass than a waiter may be silent."""
        self.wait(self.claim_ttl + 0.05)

    # --- joining the line -----------------------------------------------------------------------------------------

    def test_a_free_key_is_granted_to_who_enqueues(self, store: _Store) -> None:
        before = time.monotonic()
        wish = claim("k", limit=2)
        lease = granted(store.enqueue(wish))
        ttl = store.lease_ttl(wish.ttl)
        assert (lease.key, lease.owner, lease.ttl, lease.limit) == ("k", wish.owner, ttl, 2)
        assert deadline_of(before, ttl) <= lease.deadline <= deadline_of(time.monotonic(), ttl)
        assert store.renew([lease]) == [Renewal.HELD]

    def test_who_enqueues_for_a_held_key_gets_a_ticket(self, store: _Store, other_store: _Store) -> None:
        self.hold(store)
        wish = claim("k")
        place = ticket(other_store.enqueue(wish))
        assert (place.key, place.owner, place.claim, place.ahead) == ("k", wish.owner, wish, 0)
        assert type(place.number) is int
        assert 0 < place.number < 2**53

    def test_tickets_grow_in_order_of_arrival_and_count_who_is_ahead(self, store: _Store, other_store: _Store) -> None:
        self.hold(store)
        places: list[Ticket] = []
        for n in range(10):
            places.append(self.join((store, other_store)[n % 2]))
        assert [place.ahead for place in places] == list(range(10))
        numbers = [place.number for place in places]
        assert numbers == sorted(set(numbers))

    def test_waiters_are_no_holders(self, store: _Store) -> None:
        lease = self.hold(store)
        self.join(store)
        assert self.owners(store, "k") == [lease.owner]
        assert len(store.holders()) == 1

    def test_enqueueing_again_keeps_the_place(self, store: _Store, other_store: _Store) -> None:
        self.hold(store)
        first = self.join(store)
        self.join(store)
        again = ticket(other_store.enqueue(first.claim))
        assert (again.number, again.ahead) == (first.number, 0)

    def test_a_holder_who_enqueues_gets_its_own_lease(self, store: _Store) -> None:
        wish = claim("k")
        lease = granted(store.acquire(wish))
        assert granted(store.enqueue(wish)).fence == lease.fence

    def test_different_keys_have_different_lines(self, store: _Store) -> None:
        leases = [self.hold(store, key) for key in ("k1", "k2")]
        places = [self.join(store, key) for key in ("k1", "k2")]
        store.release(leases[1:])
        one, two = store.poll(places)
        assert ticket(one).ahead == 0
        assert offer(two).key == "k2"

    # --- first in, first out --------------------------------------------------------------------------------------

    def test_a_place_that_rests_is_offered_when_its_time_is_over(self, store: _Store) -> None:
        if not store.rests:
            pytest.skip("this store keeps no shortest time")
        lease = self.hold(store)
        first = self.join(store)
        assert first.ahead == 0
        rest = 3 * self.ttl
        released = time.monotonic()
        store.release([replace(lease, rest=rest)])
        (place,) = store.poll([first])
        # The waiter is told when it can pay to ask again.
        assert ticket(place).look_at <= time.monotonic() + rest + 0.1
        offer, _ = self.offered(store, [first], rest + self.slack)
        assert offer.owner == first.owner
        assert time.monotonic() >= released + rest

    def test_a_released_key_is_offered_to_the_first_waiter_only(self, store: _Store) -> None:
        lease = self.hold(store)
        places = [self.join(store) for _ in range(3)]
        store.release([lease])
        first, *others = store.poll(places)
        assert (offer(first).key, offer(first).owner) == ("k", places[0].owner)
        assert offer(first).number == places[0].number
        assert [ticket(other).ahead for other in others] == [0, 1]

    def test_waiters_are_served_first_in_first_out(self, store: _Store, other_store: _Store) -> None:
        lease = self.hold(store)
        waiting: list[Place] = [self.join((store, other_store)[n % 2]) for n in range(12)]
        while waiting:
            store.release([lease])
            [found, *others] = other_store.poll(waiting)
            lease = self.confirmed(store, offer(found))
            waiting = [ticket(other) for other in others]
        assert store.release([lease]) == [True]
        assert store.holders() == []

    def test_a_newcomer_does_not_overtake_who_was_offered_the_key(self, store: _Store, other_store: _Store) -> None:
        lease = self.hold(store)
        first = self.join(store)
        store.release([lease])
        contended(other_store.acquire(claim("k")))
        newcomer = self.join(other_store)
        assert offer(store.poll([first])[0])
        assert ticket(store.poll([newcomer])[0])

    def test_a_newcomer_does_not_overtake_who_waits(self, store: _Store, other_store: _Store) -> None:
        lease = self.hold(store)
        first, second = self.join(store), self.join(store)
        store.release([lease])
        store.release([self.confirmed(store, first)])
        contended(other_store.acquire(claim("k")))
        assert self.join(other_store).ahead == 0, "only the one that was offered the key is before it"
        assert offer(store.poll([second])[0])

    def test_a_newcomer_does_not_overtake_who_waits_for_an_expired_holder(
        self, store: _Store, mortal_store: _Store
    ) -> None:
        lease = self.hold(mortal_store, ttl=self.ttl)
        first = self.join(store)
        self.expire(lease, meanwhile=lambda: store.poll([first]))
        contended(store.acquire(claim("k")))
        place, _ = self.offered(store, [first], self.slack)
        self.confirmed(store, place)
        assert mortal_store.renew([lease]) == [Renewal.LOST]

    def test_a_newcomer_with_a_larger_limit_does_not_overtake(self, store: _Store) -> None:
        self.hold(store)
        first = self.join(store, limit=1)
        contended(store.acquire(claim("k", limit=5)))
        newcomer = self.join(store, limit=5)
        assert newcomer.ahead == 1
        store.withdraw([first.claim])
        assert offer(store.poll([newcomer])[0])

    # --- offers ---------------------------------------------------------------------------------------------------

    @somebody_is_silent
    def test_an_offer_ends_at_its_deadline_and_no_later(self, store: _Store) -> None:
        lease = self.hold(store)
        first = self.join(store)
        store.release([lease])
        [found] = store.poll([first])
        assert offer(found).deadline <= time.monotonic() + self.claim_ttl

    @somebody_is_silent
    def test_an_offered_place_is_listed_as_offered(self, store: _Store) -> None:
        lease = self.hold(store)
        first = self.join(store, record={"task": "shop.charge", "id": "8c1f"})
        store.release([lease])
        [holder] = store.holders("k")
        assert (holder["owner"], holder["task"], holder["id"]) == (first.owner, "shop.charge", "8c1f")
        assert holder["offered"] is True
        assert holder["remaining"] <= self.claim_ttl

    @somebody_is_silent
    def test_a_confirmed_offer_is_a_lease_with_the_claims_ttl(self, store: _Store, other_store: _Store) -> None:
        old = self.hold(store)
        wish = claim("k", ttl=20.0, record={"task": "shop.charge"})
        ticket(store.enqueue(wish))
        store.release([old])
        before = time.monotonic()
        [lease] = other_store.confirm([wish])
        assert isinstance(lease, Lease)
        ttl = store.lease_ttl(20.0)
        assert (lease.key, lease.owner, lease.ttl) == ("k", wish.owner, ttl)
        assert deadline_of(before, ttl) <= lease.deadline <= deadline_of(time.monotonic(), ttl)
        assert lease.fence > old.fence
        self.let_them_fall_silent()
        [holder] = store.holders("k")
        assert (holder["owner"], holder["fence"], holder["task"]) == (wish.owner, lease.fence, "shop.charge")
        assert "offered" not in holder
        assert store.renew([lease]) == [Renewal.HELD]
        contended(store.acquire(claim("k")))

    def test_confirming_twice_returns_the_same_lease(self, store: _Store) -> None:
        old = self.hold(store)
        first = self.join(store)
        store.release([old])
        assert self.confirmed(store, first).fence == self.confirmed(store, first).fence
        assert self.owners(store, "k") == [first.owner]

    def test_who_was_offered_nothing_can_confirm_nothing(self, store: _Store) -> None:
        self.hold(store)
        first = self.join(store)
        assert store.confirm([first.claim, claim("k"), claim("free")]) == [None, None, None]
        assert ticket(store.poll([first])[0]).number == first.number
        assert len(store.holders()) == 1

    @somebody_is_silent
    @pytest.mark.parametrize("how", ["acquire", "enqueue"])
    def test_who_was_offered_the_key_may_just_as_well_ask_for_it(self, store: _Store, how: str) -> None:
        old = self.hold(store)
        first = self.join(store)
        store.release([old])
        lease = granted(getattr(store, how)(first.claim))
        self.let_them_fall_silent()
        assert store.renew([lease]) == [Renewal.HELD]
        assert store.release([lease]) == [True]
        assert store.holders() == []

    @somebody_is_silent
    def test_who_was_offered_the_key_may_ask_for_it_in_another_process(
        self, store: _Store, other_store: _Store
    ) -> None:
        old = self.hold(store)
        first, second = self.join(store), self.join(store)
        store.release([old])
        lease = granted(other_store.acquire(first.claim))
        # Who stands in line here has not been heard of any more; that is nothing to who holds the key there.
        self.wait(self.claim_ttl / 2)
        store.poll([second])
        self.wait(self.claim_ttl / 2 + 0.05)
        [found] = store.poll([second])
        assert ticket(found).ahead == 0
        assert other_store.renew([lease]) == [Renewal.HELD]
        assert other_store.release([lease]) == [True]
        assert offer(store.poll([second])[0])

    def test_who_was_granted_the_key_may_ask_for_it_in_another_process(
        self, store: _Store, other_store: _Store
    ) -> None:
        wish = claim("k")
        lease = granted(store.enqueue(wish))
        again = granted(other_store.acquire(wish))
        assert again.fence == lease.fence
        assert other_store.renew([again]) == [Renewal.HELD]
        assert other_store.release([again]) == [True]
        assert store.holders() == []

    @somebody_is_silent
    def test_an_unanswered_offer_passes_on_to_the_next(self, store: _Store) -> None:
        old = self.hold(store)
        dead, alive = self.join(store), self.join(store)
        store.release([old])
        assert ticket(store.poll([alive])[0])
        self.wait(self.claim_ttl / 2)
        assert ticket(store.poll([alive])[0]), "passed on too soon"
        self.wait(self.claim_ttl / 2 + 0.05)
        place, _ = self.offered(store, [alive], self.slack)
        assert store.confirm([dead.claim]) == [None]
        assert self.confirmed(store, place).owner == alive.owner
        assert self.owners(store, "k") == [alive.owner]

    @somebody_is_silent
    def test_an_offer_that_has_ended_cannot_be_confirmed(self, store: _Store) -> None:
        old = self.hold(store)
        late = self.join(store)
        store.release([old])
        self.let_them_fall_silent()
        assert store.confirm([late.claim]) == [None]
        assert store.holders() == []

    @somebody_is_silent
    def test_polling_does_not_extend_an_offer(self, store: _Store) -> None:
        old = self.hold(store)
        first, second = self.join(store), self.join(store)
        store.release([old])
        spent, next_one = 0.0, None
        while not isinstance(next_one, Offer):
            assert spent <= self.claim_ttl + self.slack, f"still not offered: {next_one}"
            self.wait(self.claim_ttl / 3)
            spent += self.claim_ttl / 3
            slow, next_one = store.poll([first, second])
        assert ticket(slow).number == first.number or not self.keeps_tickets

    @somebody_is_silent
    def test_who_let_an_offer_pass_stands_in_its_old_place_when_it_polls_again(self, store: _Store) -> None:
        self.needs_tickets()
        old = self.hold(store)
        slow, second, third = (self.join(store) for _ in range(3))
        store.release([old])
        self.wait(self.claim_ttl / 2)
        store.poll([second, third])
        self.wait(self.claim_ttl / 2 + 0.05)
        place, _ = self.offered(store, [second, third], self.slack)
        assert place.owner == second.owner
        lease = self.confirmed(store, place)
        back, behind = store.poll([slow, third])
        assert (ticket(back).number, ticket(back).ahead) == (slow.number, 0)
        assert ticket(store.poll([third])[0]).ahead == 1, behind
        store.release([lease])
        assert offer(store.poll([back])[0])  # type: ignore[list-item]

    # --- those who die --------------------------------------------------------------------------------------------

    @somebody_is_silent
    def test_polling_keeps_places(self, store: _Store) -> None:
        lease = self.hold(store)
        first, second = self.join(store), self.join(store)
        for _ in range(4):
            self.wait(self.claim_ttl / 2)
            places = store.poll([second, first])
            assert [(ticket(p).number, ticket(p).ahead) for p in places] == [(second.number, 1), (first.number, 0)]
        store.release([lease])
        assert offer(store.poll([first])[0])

    @somebody_is_silent
    def test_a_silent_waiter_loses_its_place(self, store: _Store) -> None:
        lease = self.hold(store)
        dead, alive = self.join(store), self.join(store)
        self.wait(self.claim_ttl / 2)
        assert ticket(store.poll([alive])[0]).ahead == 1, "it lost its place too soon"
        self.wait(self.claim_ttl / 2 + 0.05)
        assert ticket(store.poll([alive])[0]).ahead == 0
        store.release([lease])
        assert offer(store.poll([alive])[0])
        assert store.confirm([dead.claim]) == [None]

    @somebody_is_silent
    def test_silent_waiters_are_in_nobodys_way(self, store: _Store) -> None:
        lease = self.hold(store)
        for _ in range(5):
            self.join(store)
        self.let_them_fall_silent()
        store.release([lease])
        lease = granted(store.acquire(claim("k")))
        store.release([lease])
        granted(store.enqueue(claim("k")))

    @somebody_is_silent
    def test_who_was_taken_for_gone_stands_in_its_old_place_when_it_polls_again(self, store: _Store) -> None:
        self.needs_tickets()
        lease = self.hold(store)
        late = self.join(store)
        self.wait(self.claim_ttl / 2)
        second = self.join(store)
        self.wait(self.claim_ttl / 2 + 0.05)
        assert ticket(store.poll([second])[0]).ahead == 0
        [back] = store.poll([late])
        assert (ticket(back).number, ticket(back).ahead) == (late.number, 0)
        assert ticket(store.poll([second])[0]).ahead == 1
        store.release([lease])
        assert offer(store.poll([ticket(back)])[0])

    def test_another_owner_may_poll_in_the_place_of_one_who_has_left(self, store: _Store) -> None:
        old = self.hold(store)
        first = self.join(store)
        store.withdraw([first.claim])
        back = ticket(store.poll([replace(first, claim=claim("k"))])[0])
        assert back.ahead == 0
        store.release([old])
        self.confirmed(store, offer(store.poll([back])[0]))

    @somebody_is_silent
    def test_who_was_taken_for_gone_and_polls_when_the_key_is_free_is_offered_it(self, store: _Store) -> None:
        lease = self.hold(store)
        late = self.join(store)
        self.let_them_fall_silent()
        store.release([lease])
        self.confirmed(store, offer(store.poll([late])[0]))

    @somebody_is_silent
    def test_a_dead_waiter_in_front_costs_the_claim_ttl_at_most(self, store: _Store) -> None:
        lease = self.hold(store)
        self.join(store)
        alive = self.join(store)
        store.release([lease])
        spent = 0.0
        while not isinstance(store.poll([alive])[0], Offer):
            assert spent <= self.claim_ttl, "still not offered"
            self.wait(self.claim_ttl / 8)
            spent += self.claim_ttl / 8

    def test_a_dead_holder_s_key_is_offered_to_the_first_waiter(self, store: _Store, mortal_store: _Store) -> None:
        old = self.hold(mortal_store, ttl=self.ttl)
        places = [self.join(store) for _ in range(2)]
        asked_from = time.monotonic()
        self.expire(old, meanwhile=lambda: store.poll(places))
        place, _ = self.offered(store, places, self.slack)
        assert place.owner == places[0].owner
        assert time.monotonic() < asked_from + old.ttl + self.slack
        assert self.confirmed(store, place).fence > old.fence
        assert mortal_store.renew([old]) == [Renewal.LOST]
        assert mortal_store.release([old]) == [False]

    def test_a_holder_that_renews_is_not_replaced_by_a_waiter(self, store: _Store) -> None:
        lease = self.hold(store, ttl=self.ttl)
        first = self.join(store)
        for _ in range(6):
            self.wait(self.ttl / 3)
            assert store.renew([lease]) == [Renewal.HELD]
            assert ticket(store.poll([first])[0])

    # --- leaving the line -----------------------------------------------------------------------------------------

    def test_who_withdraws_is_not_offered_the_key(self, store: _Store, other_store: _Store) -> None:
        lease = self.hold(store)
        first, second, third = (self.join(store) for _ in range(3))
        other_store.withdraw([first.claim])
        assert [ticket(place).ahead for place in store.poll([second, third])] == [0, 1]
        store.release([lease])
        assert store.confirm([first.claim]) == [None]
        assert offer(store.poll([second])[0])

    def test_a_declined_offer_passes_on_at_once(self, store: _Store) -> None:
        lease = self.hold(store)
        first, second = self.join(store), self.join(store)
        store.release([lease])
        store.withdraw([first.claim])
        contended(store.acquire(claim("k")))
        assert offer(store.poll([second])[0])
        store.withdraw([second.claim])
        assert store.holders() == []
        granted(store.acquire(claim("k")))

    def test_who_declined_an_offer_keeps_its_ticket(self, store: _Store) -> None:
        self.needs_tickets()
        lease = self.hold(store)
        first, second, third = (self.join(store) for _ in range(3))
        store.release([lease])
        store.withdraw([first.claim])
        lease = self.confirmed(store, second)
        back = ticket(store.enqueue(first.claim, ticket=first.number))
        assert (back.number, back.ahead) == (first.number, 0)
        assert ticket(store.poll([third])[0]).ahead == 1
        store.release([lease])
        assert offer(store.poll([back])[0])

    def test_a_ticket_may_be_used_by_another_owner(self, store: _Store) -> None:
        self.needs_tickets()
        # The next delivery of the same task.
        lease = self.hold(store)
        first, second = self.join(store), self.join(store)
        store.withdraw([first.claim])
        heir = ticket(store.enqueue(claim("k"), ticket=first.number))
        assert (heir.number, heir.ahead) == (first.number, 0)
        store.release([lease])
        assert ticket(store.poll([second])[0])
        self.confirmed(store, heir)

    def test_a_number_that_was_drawn_is_a_place_once_it_is_enqueued_with(self, store: _Store) -> None:
        held = self.hold(store)
        before = self.join(store)
        assert contended(store.acquire(claim("k"))).number is None, "nobody has asked for a number"
        number = contended(store.acquire(claim("k", draws=True))).number
        if number is None:
            pytest.skip("the places of this store are taken at once, or not at all")
        after = self.join(store)
        assert before.number < number < after.number
        assert after.ahead == 1, "nobody stands where nobody has enqueued"
        drawn = ticket(store.enqueue(claim("k"), ticket=number))
        assert (drawn.number, drawn.ahead) == (number, 1)
        store.release([held])
        for place in (before, drawn, after):
            store.release([self.confirmed(store, place)])

    def test_a_ticket_for_a_free_key_is_granted_at_once(self, store: _Store) -> None:
        lease = self.hold(store)
        first = self.join(store)
        store.withdraw([first.claim])
        store.release([lease])
        granted(store.enqueue(first.claim, ticket=first.number))

    def test_withdrawing_leaves_leases_alone(self, store: _Store) -> None:
        lease = self.hold(store)
        store.withdraw([Claim(lease.key, lease.owner, lease.ttl)])
        old = self.hold(store, "k2")
        first = self.join(store, "k2")
        store.release([old])
        confirmed = self.confirmed(store, first)
        store.withdraw([first.claim])
        assert store.renew([lease, confirmed]) == [Renewal.HELD, Renewal.HELD]

    def test_withdrawing_who_does_not_wait_is_no_error(self, store: _Store) -> None:
        lease = self.hold(store)
        first = self.join(store)
        store.withdraw([claim("k"), claim("free")])
        store.withdraw([])
        assert store.poll([]) == []
        assert store.confirm([]) == []
        assert ticket(store.poll([first])[0]).ahead == 0
        assert store.renew([lease]) == [Renewal.HELD]

    def test_releasing_an_unknown_lease_takes_its_owner_out_of_the_line_for_good(self, store: _Store) -> None:
        lease = self.hold(store)
        first, second = self.join(store), self.join(store)
        assert store.release([Lease.unknown("k", first.owner, 30.0)]) == [False]
        assert ticket(store.poll([second])[0]).ahead == 0
        assert store.poll([first]) == [None]
        contended(store.enqueue(first.claim))
        store.release([lease])
        assert offer(store.poll([second])[0])

    def test_releasing_an_unknown_lease_gives_back_what_was_offered(self, store: _Store) -> None:
        lease = self.hold(store)
        first, second = self.join(store), self.join(store)
        store.release([lease])
        store.release([Lease.unknown("k", first.owner, 30.0)])
        assert store.confirm([first.claim]) == [None]
        assert offer(store.poll([second])[0])

    # --- permits --------------------------------------------------------------------------------------------------

    def test_each_place_of_several_is_offered_to_the_next_waiter(self, store: _Store) -> None:
        leases = [self.hold(store, limit=3) for _ in range(3)]
        places: list[Place | None] = [self.join(store, limit=3) for _ in range(5)]
        store.release(leases[:1])
        kinds = [type(place) for place in store.poll([p for p in places if p])]
        assert kinds == [Offer] + [Ticket] * 4
        store.release(leases[1:])
        kinds = [type(place) for place in store.poll([p for p in places if p])]
        assert kinds == [Offer] * 3 + [Ticket] * 2
        confirmed = store.confirm([p.claim for p in places if p])
        assert [type(lease) for lease in confirmed] == [Lease] * 3 + [type(None)] * 2
        assert len({lease.fence for lease in confirmed if isinstance(lease, Lease)}) == 3
        assert self.owners(store, "k") == [p.owner for p in places[:3] if p]

    def test_several_places_that_become_free_at_once_are_all_offered(self, store: _Store) -> None:
        leases = [self.hold(store, limit=3) for _ in range(3)]
        places = [self.join(store, limit=3) for _ in range(4)]
        store.release(leases)
        assert [type(place) for place in store.poll(places)] == [Offer] * 3 + [Ticket]

    def test_a_larger_limit_takes_effect_at_once(self, store: _Store) -> None:
        self.hold(store, limit=1)
        granted(store.enqueue(claim("k", limit=2)))
        first, second = self.join(store, limit=2), self.join(store, limit=3)
        store.withdraw([first.claim])
        self.confirmed(store, offer(store.poll([second])[0]))
        granted(store.enqueue(claim("k", limit=4)))
        assert len(store.holders("k")) == 4

    def test_a_smaller_limit_waits_until_enough_have_left_and_no_place_is_lost(self, store: _Store) -> None:
        leases = [self.hold(store, limit=3) for _ in range(3)]
        first, second = self.join(store, limit=1), self.join(store, limit=1)
        for lease in leases[:2]:
            store.release([lease])
            assert ticket(store.poll([first])[0])
        store.release(leases[2:])
        lease = self.confirmed(store, offer(store.poll([first])[0]))
        assert ticket(store.poll([second])[0])
        store.release([lease])
        assert offer(store.poll([second])[0])

    def test_who_stands_behind_a_smaller_limit_waits_too(self, store: _Store) -> None:
        leases = [self.hold(store, limit=2) for _ in range(2)]
        first, second = self.join(store, limit=1), self.join(store, limit=2)
        store.release(leases[:1])
        assert [type(place) for place in store.poll([first, second])] == [Ticket, Ticket]
        store.release(leases[1:])
        assert [type(place) for place in store.poll([first, second])] == [Offer, Offer]

    # --- completion records ---------------------------------------------------------------------------------------

    def test_who_enqueues_a_completed_run_is_told_so(self, store: _Store) -> None:
        run = Completion("k", "id:0:0", 30.0)
        store.release([self.hold(store)], [run])
        assert store.enqueue(claim("k", completion=run)) == Completed("k", "id:0:0")
        self.hold(store)
        assert store.enqueue(claim("k", completion=run)) == Completed("k", "id:0:0")
        assert len(store.holders("k")) == 1

    def test_a_copy_that_is_offered_the_place_of_its_completed_original_is_told_so(self, store: _Store) -> None:
        run = Completion("k", "id:0:0", 30.0)
        lease = self.hold(store)
        copy, next_one = self.join(store, completion=run), self.join(store)
        store.release([lease], [run])
        assert offer(store.poll([copy])[0])
        assert store.confirm([copy.claim]) == [Completed("k", "id:0:0")]
        assert offer(store.poll([next_one])[0])

    # --- hints ----------------------------------------------------------------------------------------------------

    def test_a_release_gives_the_waiter_s_listener_a_hint(self, store: _Store, other_store: _Store) -> None:
        lease = self.hold(store)
        with listening(other_store) as (name, hints):
            first = ticket(other_store.enqueue(claim("k"), listener=name))
            ticket(other_store.enqueue(claim("k"), listener=name))
            assert hints.heard == []
            store.release([lease])
            hints.wait_for("k", first.owner)
            assert {owner for _, owner in hints.heard} == {first.owner}
            self.confirmed(other_store, first)

    def test_everything_that_frees_a_place_gives_a_hint(self, store: _Store) -> None:
        with listening(store) as (name, hints):
            lease = self.hold(store)
            places = [ticket(store.enqueue(claim("k"), listener=name)) for _ in range(4)]
            store.release([lease])
            hints.wait_for("k", places[0].owner)
            store.withdraw([places[0].claim])
            hints.wait_for("k", places[1].owner)
            store.release([Lease.unknown("k", places[1].owner, 30.0)])
            hints.wait_for("k", places[2].owner)
            store.release([self.confirmed(store, places[2])])
            hints.wait_for("k", places[3].owner)

    def test_each_listener_hears_of_its_own_waiters(self, store: _Store, other_store: _Store) -> None:
        lease = self.hold(store)
        with listening(store) as (one, first_hints), listening(other_store) as (two, second_hints):
            assert one != two
            first = ticket(store.enqueue(claim("k"), listener=one))
            second = ticket(store.enqueue(claim("k"), listener=two))
            store.release([lease])
            first_hints.wait_for("k", first.owner)
            store.release([self.confirmed(store, first)])
            second_hints.wait_for("k", second.owner)
            assert first_hints.heard == [("k", first.owner)]
            assert {owner for _, owner in second_hints.heard} == {second.owner}

    @somebody_is_silent
    def test_who_is_entered_again_by_a_poll_is_given_hints(self, store: _Store) -> None:
        with listening(store) as (name, hints):
            lease = self.hold(store)
            late = self.join(store)
            self.let_them_fall_silent()
            second = self.join(store)
            assert second.ahead == 0
            store.withdraw([second.claim])
            assert ticket(store.poll([late], listener=name)[0])
            store.release([lease])
            hints.wait_for("k", late.owner)

    @pytest.mark.parametrize("key", ODD_KEYS, ids=ascii)
    def test_any_text_is_a_key_to_wait_for(self, store: _Store, key: str) -> None:
        with listening(store) as (name, hints):
            lease = self.hold(store, key)
            first = ticket(store.enqueue(claim(key, "owner 1"), listener=name))
            store.release([lease])
            hints.wait_for(key, "owner 1")
            store.release([self.confirmed(store, first)])
        assert store.holders() == []

    def test_a_lost_hint_costs_nothing_but_the_time_until_the_next_poll(self, store: _Store) -> None:
        hints = Hints()
        listener = store.listen(hints.on_offer, hints.on_gap)
        lease = self.hold(store)
        first = ticket(store.enqueue(claim("k"), listener=listener.name))
        listener.close()
        store.release([lease])
        self.confirmed(store, offer(store.poll([first], listener=listener.name)[0]))
        assert hints.heard == []

    def test_a_listener_can_be_closed_twice(self, store: _Store) -> None:
        listener = store.listen(lambda key, owner: None)
        assert not listener.closed
        listener.close()
        listener.close()
        assert listener.closed

    # --- many -----------------------------------------------------------------------------------------------------

    def test_a_thousand_waiters_are_served_in_order(self, store: _Store) -> None:
        lease = self.hold(store)
        places = [self.join(store) for _ in range(1000)]
        for place in places[:20]:
            store.release([lease])
            lease = self.confirmed(store, place)
        left: Sequence[Place | None] = store.poll(places[20:])
        assert [ticket(place).ahead for place in left] == list(range(980))
        store.withdraw([place.claim for place in places[20:-1]])
        store.release([lease])
        store.release([self.confirmed(store, places[-1])])
        assert store.holders() == []
        granted(store.acquire(claim("k")))

    def test_waiters_of_many_keys_are_polled_at_once_and_answered_in_order(self, store: _Store) -> None:
        leases = [self.hold(store, f"k{n}") for n in range(20)]
        places = [self.join(store, f"k{n % 20}") for n in range(40)]
        store.release(leases[::2])
        found = store.poll(places)
        assert [(place.key, place.owner) for place in found if place] == [(place.key, place.owner) for place in places]
        assert [type(place) for place in found] == ([Offer, Ticket] * 10 + [Ticket] * 20)

    def test_threads_that_enqueue_at_once_get_one_lease_and_a_place_each(
        self, store: _Store, other_store: _Store
    ) -> None:
        answers = at_once(8, lambda n: (store, other_store)[n % 2].enqueue(claim("k")))
        assert [type(answer) for answer in answers].count(Lease) == 1
        tickets = [answer for answer in answers if isinstance(answer, Ticket)]
        assert len({place.number for place in tickets}) == 7
        assert sorted(place.ahead for place in tickets) == list(range(7))

    def test_one_of_many_newcomers_and_waiters_has_the_key_at_any_time(
        self, store: _Store, other_store: _Store
    ) -> None:
        lease = self.hold(store)
        first = self.join(store)
        wishes = [claim("k") for _ in range(6)]

        def ask(number: int) -> object:
            if number == 6:
                return store.release([lease])
            if number == 7:
                return store.confirm([first.claim])[0]
            return (store, other_store)[number % 2].acquire(wishes[number])

        answers = at_once(8, ask)
        assert not any(isinstance(answer, Lease) for answer in answers[:6]), "a newcomer overtook"
        assert self.owners(store, "k") == [first.owner]

    def test_nothing_is_listed_after_much_waiting(self, store: _Store) -> None:
        for number in range(30):
            key = f"k{number % 3}"
            lease = self.hold(store, key)
            first, second = self.join(store, key), self.join(store, key, new_owner())
            store.release([lease])
            lease = self.confirmed(store, first)
            store.withdraw([second.claim])
            store.release([lease])
        assert store.holders() == []
