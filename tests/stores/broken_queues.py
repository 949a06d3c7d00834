"""Memory stores that queue with one mistake each, to see that the contract notices it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from celery_distlock.lease import Claim, Completed, Completion, Contended, Holder, Lease, Offer, Ticket
from celery_distlock.stores import memory
from celery_distlock.stores.base import EventLoop, Listener
from celery_distlock.stores.memory import MemoryStore

Answer = Lease | Contended | Completed
Place = Ticket | Offer


class EnqueuesDifferently(MemoryStore):
    """To be told how."""

    def different(self, claim: Claim, ticket: int | None) -> tuple[Claim, int | None]:
        raise NotImplementedError

    def enqueue(
        self, claim: Claim, *, listener: str = "", ticket: int | None = None
    ) -> Lease | Ticket | Contended | Completed:
        different, ticket = self.different(claim, ticket)
        answer = super().enqueue(different, listener=listener, ticket=ticket)
        return replace(answer, claim=claim) if isinstance(answer, Ticket) else answer


class ServesTheLastFirst(EnqueuesDifferently):
    falling = itertools.count(2**52, -1)

    def different(self, claim: Claim, ticket: int | None) -> tuple[Claim, int | None]:
        return claim, next(self.falling) if ticket is None else ticket


class KnowsNoTickets(EnqueuesDifferently):
    def different(self, claim: Claim, ticket: int | None) -> tuple[Claim, int | None]:
        return claim, None


class GivesTheSameNumberTwice(EnqueuesDifferently):
    def different(self, claim: Claim, ticket: int | None) -> tuple[Claim, int | None]:
        return claim, 7 if ticket is None else ticket


class OffersOneTooMany(EnqueuesDifferently):
    def different(self, claim: Claim, ticket: int | None) -> tuple[Claim, int | None]:
        return replace(claim, limit=claim.limit + 1), ticket


class KnowsNoLimitInTheLine(EnqueuesDifferently):
    def different(self, claim: Claim, ticket: int | None) -> tuple[Claim, int | None]:
        return replace(claim, limit=1), ticket


class LetsLargerLimitsOvertake(EnqueuesDifferently):
    def different(self, claim: Claim, ticket: int | None) -> tuple[Claim, int | None]:
        return claim, 7 if claim.limit > 1 else ticket


class IgnoresCompletionsInTheLine(EnqueuesDifferently):
    def different(self, claim: Claim, ticket: int | None) -> tuple[Claim, int | None]:
        return replace(claim, completion=None), ticket

    def confirm(self, claims: Sequence[Claim]) -> list[Lease | Completed | None]:
        return super().confirm([replace(claim, completion=None) for claim in claims])


class GivesNewPlacesWhenAskedAgain(MemoryStore):
    def enqueue(
        self, claim: Claim, *, listener: str = "", ticket: int | None = None
    ) -> Lease | Ticket | Contended | Completed:
        if not any(holder["owner"] == claim.owner for holder in self.holders(claim.key)):
            super().withdraw([claim])
        return super().enqueue(claim, listener=listener, ticket=ticket)


class ContendsWithItsOwnOffer(MemoryStore):
    def _offered(self, claim: Claim) -> bool:
        return any(holder["owner"] == claim.owner and holder.get("offered") for holder in self.holders(claim.key))

    def acquire(self, claim: Claim) -> Answer:
        return Contended(claim.key) if self._offered(claim) else super().acquire(claim)

    def enqueue(
        self, claim: Claim, *, listener: str = "", ticket: int | None = None
    ) -> Lease | Ticket | Contended | Completed:
        return Contended(claim.key) if self._offered(claim) else super().enqueue(claim, listener=listener)


class ContendsWithItsOwnLease(MemoryStore):
    def acquire(self, claim: Claim) -> Answer:
        held = claim.owner in [holder["owner"] for holder in self.holders(claim.key)]
        return Contended(claim.key) if held else super().acquire(claim)


class GivesNumbersUnasked(MemoryStore):
    def acquire(self, claim: Claim) -> Answer:
        return super().acquire(replace(claim, draws=True))


class LetsNewcomersOvertake(MemoryStore):
    def acquire(self, claim: Claim) -> Answer:
        while True:
            answer = super().acquire(claim)
            offered = [h for h in self.holders(claim.key) if h.get("offered")]
            if isinstance(answer, Lease) or not offered:
                return answer
            super().withdraw([Claim(claim.key, holder["owner"], 1.0) for holder in offered])


class LetsNewcomersReplaceDeadHolders(MemoryStore):
    def acquire(self, claim: Claim) -> Answer:
        dead = [holder for holder in self.holders(claim.key) if holder["remaining"] <= 0]
        if not dead:
            return super().acquire(claim)
        with self._table.mutex:
            queue = self._table.queues.pop(claim.key, None)
        answer = super().acquire(claim)
        if queue is not None:
            self._table.queues[claim.key] = queue
        return answer


class ForgetsNobody(MemoryStore):
    claim_ttl = property(lambda self: 3600.0, lambda self, value: None)


class ForgetsTooSoon(MemoryStore):
    claim_ttl = property(lambda self: self._half, lambda self, value: setattr(self, "_half", value / 2))


class DoesNotKeepPlaces(MemoryStore):
    def poll(self, places: Sequence[Place], *, listener: str = "") -> list[Place | None]:
        table: Any = self._table
        table.refresh = lambda waiter, now: None
        try:
            return super().poll(places, listener=listener)
        finally:
            del table.refresh


class ExtendsOffersWhenPolled(MemoryStore):
    def poll(self, places: Sequence[Place], *, listener: str = "") -> list[Place | None]:
        answers = super().poll(places, listener=listener)
        for answer in answers:
            if isinstance(answer, Offer):
                held = self._table.holders[answer.key][answer.owner]
                if held.offer is not None:
                    self._table.refresh(held.offer, self._clock())
        return answers


class GivesNewNumbersToWhoComesBack(MemoryStore):
    def poll(self, places: Sequence[Place], *, listener: str = "") -> list[Place | None]:
        gone = [place for place in places if not self._table.waiter(place.key, place.owner)]
        gone = [place for place in gone if place.owner not in self._table.holders.get(place.key, {})]
        new = {place.owner: replace(place, number=2**52) for place in gone}
        return super().poll([new.get(place.owner, place) for place in places], listener=listener)


class NeverLetsAnybodyComeBack(MemoryStore):
    def poll(self, places: Sequence[Place], *, listener: str = "") -> list[Place | None]:
        gone = [
            not self._table.waiter(place.key, place.owner) and place.owner not in self._table.holders.get(place.key, {})
            for place in places
        ]
        answers = iter(super().poll([place for place, out in zip(places, gone, strict=True) if not out]))
        return [None if out else next(answers) for out in gone]


class LetsDeadHoldersBlockTheLine(MemoryStore):
    def poll(self, places: Sequence[Place], *, listener: str = "") -> list[Place | None]:
        if any(holder["remaining"] <= 0 for holder in self.holders()):
            return list(places)
        return super().poll(places, listener=listener)


class LetsWaitersReplaceTheLiving(MemoryStore):
    def poll(self, places: Sequence[Place], *, listener: str = "") -> list[Place | None]:
        old = [Lease(h["key"], h["owner"], h["fence"], 1.0, 0.0) for h in self.holders() if h["remaining"] < 1.0]
        super().release(old)
        return super().poll(places, listener=listener)


class AnswersPollsInAnyOrder(MemoryStore):
    def poll(self, places: Sequence[Place], *, listener: str = "") -> list[Place | None]:
        return super().poll(places, listener=listener)[::-1]


class ForgetsTheListenerOfWhoComesBack(MemoryStore):
    def poll(self, places: Sequence[Place], *, listener: str = "") -> list[Place | None]:
        return super().poll(places)


class SaysThatNobodyIsAhead(MemoryStore):
    def poll(self, places: Sequence[Place], *, listener: str = "") -> list[Place | None]:
        answers = super().poll(places, listener=listener)
        return [replace(answer, ahead=0) if isinstance(answer, Ticket) else answer for answer in answers]


class ConfirmsAnything(MemoryStore):
    def confirm(self, claims: Sequence[Claim]) -> list[Lease | Completed | None]:
        answers = [self.acquire(claim) for claim in claims]
        return [None if isinstance(answer, Contended) else answer for answer in answers]


class ConfirmsForTheTimeOfTheOffer(MemoryStore):
    def confirm(self, claims: Sequence[Claim]) -> list[Lease | Completed | None]:
        leases = super().confirm([replace(claim, ttl=self.claim_ttl) for claim in claims])
        return [
            replace(lease, ttl=claim.ttl, deadline=time.monotonic() + claim.ttl - 0.3)
            if isinstance(lease, Lease)
            else lease
            for lease, claim in zip(leases, claims, strict=True)
        ]


class LeavesConfirmedOffersOnOffer(MemoryStore):
    def holders(self, key: str | None = None, *, prefix: str = "") -> list[Holder]:
        return [{**holder, "offered": True} for holder in super().holders(key, prefix=prefix)]


class ConfirmsOnce(MemoryStore):
    def confirm(self, claims: Sequence[Claim]) -> list[Lease | Completed | None]:
        offered = {(h["key"], h["owner"]) for h in self.holders() if h.get("offered")}
        leases = super().confirm(claims)
        return [lease if (c.key, c.owner) in offered else None for c, lease in zip(claims, leases, strict=True)]


class WithdrawsLeases(MemoryStore):
    def withdraw(self, claims: Sequence[Claim]) -> None:
        held = [Lease(h["key"], h["owner"], h["fence"], 1.0, 0.0) for h in self.holders()]
        wanted = {(claim.key, claim.owner) for claim in claims}
        super().release([lease for lease in held if (lease.key, lease.owner) in wanted])
        super().withdraw(claims)


class WithdrawsTheWholeLine(MemoryStore):
    def withdraw(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            queue = self._table.queues.get(claim.key)
            super().withdraw([Claim(claim.key, owner, 1.0) for owner in list(queue.by_owner if queue else ())])
        super().withdraw(claims)


class KeepsWhatWasDeclined(MemoryStore):
    def withdraw(self, claims: Sequence[Claim]) -> None:
        offered = {(h["key"], h["owner"]) for h in self.holders() if h.get("offered")}
        super().withdraw([claim for claim in claims if (claim.key, claim.owner) not in offered])


class WithdrawsNobody(MemoryStore):
    def withdraw(self, claims: Sequence[Claim]) -> None:
        pass


class LeavesTheUnknownInTheLine(MemoryStore):
    def release(self, leases: Sequence[Lease], completions: Sequence[Completion | None] = ()) -> list[bool]:
        waiting = [self._table.waiter(lease.key, lease.owner) if lease.fence == 0 else None for lease in leases]
        answers = super().release(leases, completions)
        for waiter in waiting:
            if waiter is not None:
                self._table.join(waiter, self._clock())
        return answers


class ListsWaitersAsHolders(MemoryStore):
    def holders(self, key: str | None = None, *, prefix: str = "") -> list[Holder]:
        waiting: list[Holder] = [
            {"key": name, "owner": owner, "fence": 1, "remaining": 1.0}
            for name, queue in self._table.queues.items()
            for owner in queue.by_owner
            if key in (None, name)
        ]
        return super().holders(key, prefix=prefix) + waiting


class HidesWhatIsOnOffer(MemoryStore):
    def holders(self, key: str | None = None, *, prefix: str = "") -> list[Holder]:
        return [h for h in super().holders(key, prefix=prefix) if not h.get("offered")]


class GivesNoHints(MemoryStore):
    def enqueue(
        self, claim: Claim, *, listener: str = "", ticket: int | None = None
    ) -> Lease | Ticket | Contended | Completed:
        return super().enqueue(claim, ticket=ticket)


class GivesHintsOfReleasesOnly(MemoryStore):
    def withdraw(self, claims: Sequence[Claim]) -> None:
        listening = dict(memory._listening)
        memory._listening.clear()
        super().withdraw(claims)
        memory._listening.update(listening)


class TellsEveryListener(MemoryStore):
    callbacks: list[Callable[[str, str], None]] = []  # noqa: RUF012  # shared on purpose

    def listen(
        self,
        on_offer: Callable[[str, str], None],
        on_gap: Callable[[], None] = lambda: None,
        loop: EventLoop | None = None,
    ) -> Listener:
        self.callbacks.append(on_offer)

        def tell(key: str, owner: str) -> None:
            for callback in self.callbacks:
                callback(key, owner)

        return super().listen(tell, on_gap)


class HearsOnAfterItIsClosed(MemoryStore):
    def listen(
        self,
        on_offer: Callable[[str, str], None],
        on_gap: Callable[[], None] = lambda: None,
        loop: EventLoop | None = None,
    ) -> Listener:
        listener = super().listen(on_offer, on_gap)
        listener.close = lambda: None  # type: ignore[method-assign]
        return listener
