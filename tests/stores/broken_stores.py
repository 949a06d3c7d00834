"""Memory stores with one mistake each, to see that the contract notices it."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Sequence
from dataclasses import replace

from celery_distlock.lease import Claim, Completed, Completion, Contended, Holder, Lease, Renewal
from celery_distlock.stores.memory import MemoryStore

Answer = Lease | Contended | Completed


def _leases(holders: Sequence[Holder]) -> list[Lease]:
    return [Lease(h["key"], h["owner"], h["fence"], 30.0, 0.0) for h in holders]


class ReleasesForAnybody(MemoryStore):
    def release(self, leases: Sequence[Lease], completions: Sequence[Completion | None] = ()) -> list[bool]:
        super().release(leases, completions)
        return [any(super(ReleasesForAnybody, self).release(_leases(self.holders(lease.key)))) for lease in leases]


class ContendsWithItself(MemoryStore):
    def acquire(self, claim: Claim) -> Answer:
        if any(holder["owner"] == claim.owner for holder in self.holders(claim.key)):
            return Contended(claim.key, tuple(self.holders(claim.key)))
        return super().acquire(claim)


class GrantsAnewWhenAskedAgain(MemoryStore):
    def acquire(self, claim: Claim) -> Answer:
        super().release(_leases([h for h in self.holders(claim.key) if h["owner"] == claim.owner]))
        return super().acquire(claim)


class AnswersButDoesNotExtendWhenAskedAgain(MemoryStore):
    def acquire(self, claim: Claim) -> Answer:
        for holder in self.holders(claim.key):
            if holder["owner"] == claim.owner:
                return Lease(claim.key, claim.owner, holder["fence"], claim.ttl, time.monotonic() + claim.ttl)
        return super().acquire(claim)


class HasOneFenceForAll(MemoryStore):
    """Callers see one fence; inside, the owners tell the leases apart."""

    def acquire(self, claim: Claim) -> Answer:
        answer = super().acquire(claim)
        return replace(answer, fence=7) if isinstance(answer, Lease) else answer

    def _real(self, leases: Sequence[Lease]) -> list[Lease]:
        real = {(h["key"], h["owner"]): h["fence"] for h in super().holders()}
        return [replace(lease, fence=lease.fence and real.get((lease.key, lease.owner), 2**53)) for lease in leases]

    def renew(self, leases: Sequence[Lease]) -> list[Renewal]:
        return super().renew(self._real(leases))

    def release(self, leases: Sequence[Lease], completions: Sequence[Completion | None] = ()) -> list[bool]:
        return super().release(self._real(leases), completions)

    def holders(self, key: str | None = None, *, prefix: str = "") -> list[Holder]:
        holders = super().holders(key, prefix=prefix)
        for holder in holders:
            holder["fence"] = 7
        return holders


class ReCreatesWhatWasReleased(MemoryStore):
    def renew(self, leases: Sequence[Lease]) -> list[Renewal]:
        answers = super().renew(leases)
        for number, (lease, answer) in enumerate(zip(leases, answers, strict=True)):
            if answer == Renewal.GONE and isinstance(self.acquire(Claim(lease.key, lease.owner, lease.ttl)), Lease):
                answers[number] = Renewal.HELD
        return answers


class KnowsNoLimit(MemoryStore):
    def acquire(self, claim: Claim) -> Answer:
        return super().acquire(replace(claim, limit=1))


class GrantsOneTooMany(MemoryStore):
    def acquire(self, claim: Claim) -> Answer:
        return super().acquire(replace(claim, limit=claim.limit + 1 if claim.limit > 1 else 1))


class ForgetsTombstones(MemoryStore):
    def renew(self, leases: Sequence[Lease]) -> list[Renewal]:
        return [Renewal.GONE if answer == Renewal.LOST else answer for answer in super().renew(leases)]


class TellsOfALossOnlyWhileTheKeyIsHeld(MemoryStore):
    def renew(self, leases: Sequence[Lease]) -> list[Renewal]:
        return [
            Renewal.GONE if answer == Renewal.LOST and not self.holders(lease.key) else answer
            for lease, answer in zip(leases, super().renew(leases), strict=True)
        ]


class SaysLostForEveryOtherHolder(MemoryStore):
    def renew(self, leases: Sequence[Lease]) -> list[Renewal]:
        return [
            Renewal.LOST if answer == Renewal.GONE and self.holders(lease.key) else answer
            for lease, answer in zip(leases, super().renew(leases), strict=True)
        ]


class IgnoresCompletions(MemoryStore):
    def acquire(self, claim: Claim) -> Answer:
        return super().acquire(replace(claim, completion=None))


class KeepsCompletionsForEver(MemoryStore):
    def release(self, leases: Sequence[Lease], completions: Sequence[Completion | None] = ()) -> list[bool]:
        return super().release(leases, [c and replace(c, ttl=1e9) for c in completions])


class RecordsOnlyWhatItReleased(MemoryStore):
    def release(self, leases: Sequence[Lease], completions: Sequence[Completion | None] = ()) -> list[bool]:
        held = {(h["key"], h["owner"]) for h in self.holders()}
        pairs = zip(leases, completions, strict=False)
        return super().release(leases, [c if (lease.key, lease.owner) in held else None for lease, c in pairs])


class ForgetsEveryCompletionOfTheKey(MemoryStore):
    def __init__(self, name: str = "", **options: object) -> None:
        super().__init__(name, **options)  # type: ignore[arg-type]
        self.runs: list[Completion] = []

    def release(self, leases: Sequence[Lease], completions: Sequence[Completion | None] = ()) -> list[bool]:
        self.runs += [completion for completion in completions if completion]
        return super().release(leases, completions)

    def forget(self, completions: Sequence[Completion]) -> None:
        super().forget([run for run in self.runs if run.key in {completion.key for completion in completions}])


class NeverForgets(MemoryStore):
    def forget(self, completions: Sequence[Completion]) -> None:
        pass


class AsksForTheLockBeforeTheCompletion(MemoryStore):
    def acquire(self, claim: Claim) -> Answer:
        contended = Contended(claim.key, tuple(self.holders(claim.key)))
        return contended if contended.holders and claim.completion else super().acquire(claim)


class DropsHoldersWhenTheyExpire(MemoryStore):
    def _drop_expired(self) -> None:
        super().release(_leases([h for h in super().holders() if h["remaining"] <= 0]))

    def acquire(self, claim: Claim) -> Answer:
        self._drop_expired()
        return super().acquire(claim)

    def renew(self, leases: Sequence[Lease]) -> list[Renewal]:
        self._drop_expired()
        return super().renew(leases)

    def holders(self, key: str | None = None, *, prefix: str = "") -> list[Holder]:
        return [holder for holder in super().holders(key, prefix=prefix) if holder["remaining"] > 0]


class ReplacesEveryExpiredHolder(MemoryStore):
    def acquire(self, claim: Claim) -> Answer:
        if claim.owner not in {h["owner"] for h in self.holders(claim.key)}:
            expired = [h for h in self.holders(claim.key) if h["remaining"] <= 0]
            super().release(_leases(expired))
        return super().acquire(claim)


class NeverExpires(MemoryStore):
    def acquire(self, claim: Claim) -> Answer:
        holders = self.holders(claim.key)
        if len(holders) >= claim.limit and claim.owner not in {holder["owner"] for holder in holders}:
            return Contended(claim.key, tuple(holders))
        return super().acquire(claim)


class ExpiresTooSoon(MemoryStore):
    def acquire(self, claim: Claim) -> Answer:
        answer = super().acquire(replace(claim, ttl=claim.ttl * 0.9))
        if isinstance(answer, Lease):
            lost = claim.ttl - answer.ttl
            return replace(answer, ttl=claim.ttl, deadline=answer.deadline + lost * 0.99)
        return answer


class RenewsEverythingWithTheFirstTtl(MemoryStore):
    def renew(self, leases: Sequence[Lease]) -> list[Renewal]:
        return super().renew([replace(lease, ttl=leases[0].ttl) for lease in leases])


class RenewsWithoutExtending(MemoryStore):
    def renew(self, leases: Sequence[Lease]) -> list[Renewal]:
        remaining = {(h["key"], h["owner"]): h["remaining"] for h in self.holders()}
        return super().renew([replace(lease, ttl=remaining.get((lease.key, lease.owner), 0.0)) for lease in leases])


class BarsNobody(MemoryStore):
    def release(self, leases: Sequence[Lease], completions: Sequence[Completion | None] = ()) -> list[bool]:
        fences = {(h["key"], h["owner"]): h["fence"] for h in self.holders()}
        known = [replace(lease, fence=fences.get((lease.key, lease.owner), 2**53)) for lease in leases]
        return super().release(known, completions)


class BarsEverybody(MemoryStore):
    def release(self, leases: Sequence[Lease], completions: Sequence[Completion | None] = ()) -> list[bool]:
        return super().release([replace(lease, fence=0) for lease in leases], completions)


class BarsWithoutReleasing(MemoryStore):
    def release(self, leases: Sequence[Lease], completions: Sequence[Completion | None] = ()) -> list[bool]:
        held = {(h["key"], h["owner"]): h for h in self.holders()}
        return [
            False
            if lease.fence == 0 and (lease.key, lease.owner) in held
            else super(BarsWithoutReleasing, self).release([lease], completions[n : n + 1])[0]
            for n, lease in enumerate(leases)
        ]


class AnswersInAnyOrder(MemoryStore):
    def renew(self, leases: Sequence[Lease]) -> list[Renewal]:
        return super().renew(leases)[::-1]

    def release(self, leases: Sequence[Lease], completions: Sequence[Completion | None] = ()) -> list[bool]:
        return super().release(leases, completions)[::-1]


class AlwaysSaysReleased(MemoryStore):
    def release(self, leases: Sequence[Lease], completions: Sequence[Completion | None] = ()) -> list[bool]:
        return [True for _ in super().release(leases, completions)]


class TakesPrefixesForPatterns(MemoryStore):
    def holders(self, key: str | None = None, *, prefix: str = "") -> list[Holder]:
        if key is not None:
            return super().holders(key)
        return [holder for holder in super().holders() if fnmatch.fnmatchcase(holder["key"], prefix + "*")]


class NamesNoHolder(MemoryStore):
    def acquire(self, claim: Claim) -> Answer:
        answer = super().acquire(claim)
        return Contended(claim.key) if isinstance(answer, Contended) else answer


class ListsTheYoungestFirst(MemoryStore):
    def holders(self, key: str | None = None, *, prefix: str = "") -> list[Holder]:
        return super().holders(key, prefix=prefix)[::-1]


class CountsTheDeadlineFromTheAnswer(MemoryStore):
    def acquire(self, claim: Claim) -> Answer:
        answer = super().acquire(claim)
        return replace(answer, deadline=time.monotonic() + claim.ttl) if isinstance(answer, Lease) else answer


class ChecksAndThenActs(MemoryStore):
    """No mutex: looks whether the key is free, is interrupted, and grants."""

    def acquire(self, claim: Claim) -> Answer:
        free = not any(h["remaining"] > 0 for h in self.holders(claim.key))
        time.sleep(0.002)
        if free:
            super().release(_leases(self.holders(claim.key)))
        return super().acquire(claim)
