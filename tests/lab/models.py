"""What a lock may answer: sequential models, each a state and the steps that an operation may take from it.

A model knows no clock. An expiry is an internal step: each holder (and waiter) in a state carries the earliest time at
which it may be taken for gone, computed from when its last operation was *invoked*, which is before the store can have
begun to count. A step is told the latest time at which it can happen; whoever may be gone by then may be left out of
account. That expiry may happen late, or never, is part of the contract: an expired holder stays until somebody comes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tests.lab.history import Operation

__all__ = ["FencedMutex", "FifoQueue", "LeaseModel", "Model", "Mutex", "OwnerMutex", "Permits"]


class Model(Protocol):
    """A sequential specification."""

    @property
    def initial(self) -> Hashable:
        """The state before everything."""

    def select(self, operations: Sequence[Operation]) -> list[Operation]:
        """Return the operations that mean anything to this model."""

    def steps(self, state: Hashable, operation: Operation, latest: float) -> Iterator[Hashable]:
        """Yield the states in which the operation, with the answer it had, may leave the object.

        Arguments:
            state: before it.
            operation: an open one is taken to happen here.
            latest: the last moment (monotonic seconds) at which it may happen.
        """


@dataclass(frozen=True)
class Mutex:
    """A plain mutex: ``acquire`` and ``release``, whoever asks."""

    initial: bool = False

    def select(self, operations: Sequence[Operation]) -> list[Operation]:
        """Return these two."""
        return [each for each in operations if each.op in ("acquire", "release")]

    def steps(self, state: Hashable, operation: Operation, latest: float) -> Iterator[Hashable]:
        """Yield what may come."""
        wanted = operation.op == "acquire"
        if operation.outcome == "fail":
            if state == wanted:
                yield state
        elif state != wanted:
            yield wanted


@dataclass(frozen=True)
class OwnerMutex:
    """A mutex that knows its owner: who asks again has it, and nobody releases what is another's."""

    initial: str | None = None

    def select(self, operations: Sequence[Operation]) -> list[Operation]:
        """Return these two."""
        return [each for each in operations if each.op in ("acquire", "release")]

    def steps(self, state: Hashable, operation: Operation, latest: float) -> Iterator[Hashable]:
        """Yield what may come."""
        mine = state == operation.owner
        match operation.op, operation.outcome:
            case "acquire", "fail":
                if state is not None and not mine:
                    yield state
            case "acquire", _:
                if state is None or mine:
                    yield operation.owner
            case "release", "fail":
                if not mine:
                    yield state
            case "release", _:
                if mine:
                    yield None


@dataclass(frozen=True)
class Held:
    """A lease in a state: ``until`` is the earliest time at which its place may be given away."""

    owner: str
    fence: int
    until: float


@dataclass(frozen=True)
class Leases:
    """The state of :class:`LeaseModel`.

    Attributes:
        holders: in the order of their owners.
        last: the largest fence that is known to have been given out.
        ghosts: owners whose leases the store has lost together with its data.
    """

    holders: tuple[Held, ...] = ()
    last: int = 0
    ghosts: frozenset[str] = frozenset()

    def of(self, owner: str) -> Held | None:
        return next((each for each in self.holders if each.owner == owner), None)

    def with_(self, held: Held) -> Leases:
        others = self.without(held.owner)
        holders = tuple(sorted((*others.holders, held), key=lambda one: one.owner))
        return replace(others, holders=holders, last=max(self.last, held.fence), ghosts=self.ghosts - {held.owner})

    def without(self, *owners: str) -> Leases:
        return replace(self, holders=tuple(each for each in self.holders if each.owner not in owners))


#: Operations that may be answered with a lease.
_GRANTING = ("acquire", "enqueue", "confirm", "pass_on")


@dataclass(frozen=True)
class LeaseModel:
    """A key of a store of leases.

    Arguments:
        limit: how many may hold it.
        fenced: whether every new grant has a larger fence than all before.
        strict: whether "contended" needs somebody who holds. Not where others wait: a place may be kept for one of
            them, and an answer may come from a server that is a moment behind.
    """

    limit: int = 1
    fenced: bool = True
    strict: bool = False

    initial = Leases()

    def select(self, operations: Sequence[Operation]) -> list[Operation]:
        """Return what grants, renews, releases, or breaks something."""
        judged = [each for each in operations if self._judges(each)]
        if self.strict:
            return judged
        # That somebody was let in of whom nothing was ever seen explains nothing, but for a refusal.
        seen = {each.owner for each in judged if each.outcome == "ok"}
        return [each for each in judged if not (each.open and each.op in _GRANTING and each.owner not in seen)]

    def _judges(self, operation: Operation) -> bool:
        answer = operation.more.get("answer")
        if operation.op in _GRANTING:
            if operation.outcome == "fail":
                return self.strict and answer in (None, "contended")
            return answer in (None, "lease")
        if operation.op == "renew":
            # One that may have happened only makes the lease last longer, which it need not.
            return not operation.open
        if operation.op == "release":
            # Of an unknown lease: whether there was one is not known.
            return operation.outcome != "fail" or operation.fence != 0
        return operation.op in ("lose data", "expire all")

    def steps(self, state: Hashable, operation: Operation, latest: float) -> Iterator[Leases]:
        """Yield what may come."""
        assert isinstance(state, Leases)
        match operation.op:
            case "renew":
                yield from self._renewed(state, operation)
            case "release":
                yield from self._released(state, operation)
            case "lose data":
                last = 0 if operation.more.get("fences") else state.last
                ghosts = state.ghosts | {each.owner for each in state.holders}
                yield Leases(last=last, ghosts=ghosts)
            case "expire all":
                yield replace(state, holders=tuple(replace(each, until=-math.inf) for each in state.holders))
            case "pass_on":
                yield from self._granted(state.without(str(operation.more.get("from"))), operation, latest)
            case _ if operation.outcome == "fail":
                others = [each for each in state.holders if each.owner != operation.owner]
                if len(others) >= self.limit:
                    yield state
            case _:
                yield from self._granted(state, operation, latest)

    def _granted(self, state: Leases, operation: Operation, latest: float) -> Iterator[Leases]:
        known = state.of(operation.owner)
        held = Held(operation.owner, operation.fence, operation.invoked + operation.ttl)
        if known is not None:
            # Asking twice is asking once. What an open operation was granted was known to nobody until now.
            if not operation.fence or not known.fence or known.fence == operation.fence:
                yield state.with_(replace(held, fence=operation.fence or known.fence))
            return
        if self.fenced and operation.fence and operation.fence <= state.last:
            return
        room = self._with_room(state, latest)
        if room is not None:
            yield room.with_(held)

    def _with_room(self, state: Leases, latest: float) -> Leases | None:
        """Return the state with one place left at least, the longest expired gone for it; None if that cannot be."""
        surplus = len(state.holders) - self.limit + 1
        if surplus <= 0:
            return state
        gone = sorted((each.until, each.owner) for each in state.holders if each.until <= latest)[:surplus]
        return state.without(*(owner for _, owner in gone)) if len(gone) == surplus else None

    def _renewed(self, state: Leases, operation: Operation) -> Iterator[Leases]:
        known = state.of(operation.owner)
        held = Held(operation.owner, operation.fence, operation.invoked + operation.ttl)
        if operation.outcome == "fail":
            if known is None:
                yield replace(state, ghosts=state.ghosts - {operation.owner})
            elif known.until <= operation.returned:
                # Evicted without a successor, as by a session's end.
                yield state.without(operation.owner)
        elif known is not None:
            if known.fence in (0, operation.fence):
                yield state.with_(held)
        elif operation.owner in state.ghosts and len(state.holders) < self.limit:
            yield state.with_(held)

    @staticmethod
    def _released(state: Leases, operation: Operation) -> Iterator[Leases]:
        known = state.of(operation.owner)
        over = replace(state.without(operation.owner), ghosts=state.ghosts - {operation.owner})
        if operation.outcome == "fail":
            if known is None or known.until <= operation.returned:
                yield over
        elif known is not None or operation.owner in state.ghosts:
            yield over
        elif operation.fence == 0 and not operation.open:
            # Of an unknown lease: it may have been a place that was offered.
            yield state


def FencedMutex(*, strict: bool = False) -> LeaseModel:
    """Return the model of a key that one may hold, and whose fences grow."""
    return LeaseModel(limit=1, fenced=True, strict=strict)


def Permits(limit: int, *, strict: bool = False) -> LeaseModel:
    """Return the model of a key that so many may hold; its fences are only names."""
    return LeaseModel(limit=limit, fenced=False, strict=strict)


@dataclass(frozen=True)
class Waiting:
    """A place in the line. ``served``: it has had its turn, whether or not it has heard of it."""

    number: int
    owner: str
    until: float
    served: bool = False


@dataclass(frozen=True)
class FifoQueue:
    """The line of a key: whoever is granted it has had his turn, those before him, but for as many as may hold, gone.

    Arguments:
        limit: how many may hold the key.
        claim_ttl: seconds for which a waiter that is not heard of keeps its place.
    """

    limit: int = 1
    claim_ttl: float = 2.0

    initial: tuple[Waiting, ...] = ()

    def select(self, operations: Sequence[Operation]) -> list[Operation]:
        """Return what grants, or is about a place.

        Whoever is told of one lease twice, since two have asked in its name, had its turn once: at the latest when the
        first of them was told. Other models see to it that the second was right.
        """
        judged: list[Operation] = []
        granted: dict[tuple[str, int], int] = {}
        for each in operations:
            if not self._judges(each):
                continue
            if each.op not in _GRANTING or each.more.get("answer") != "lease":
                judged.append(each)
                continue
            at = granted.setdefault((each.owner, each.fence), len(judged))
            if at == len(judged):
                judged.append(each)
            else:
                first = judged[at]
                invoked, returned = min(first.invoked, each.invoked), min(first.returned, each.returned)
                judged[at] = replace(first, invoked=invoked, returned=returned)
        return judged

    @staticmethod
    def _judges(operation: Operation) -> bool:
        answer = operation.more.get("answer")
        if operation.op in _GRANTING:
            # An open one that joined the line without a word is in nobody's way for longer than its claim's ttl.
            return answer in ("lease", "ticket", "completed")
        if operation.op == "poll":
            return operation.outcome == "ok"
        # Only the release of an unknown lease gives up a place.
        gives_up = operation.op == "withdraw" or (operation.op == "release" and operation.fence == 0)
        return gives_up or operation.op in ("lose data", "expire all")

    def steps(self, state: Hashable, operation: Operation, latest: float) -> Iterator[tuple[Waiting, ...]]:
        """Yield what may come."""
        assert isinstance(state, tuple)
        line: tuple[Waiting, ...] = state
        mine = next((each for each in line if each.owner == operation.owner), None)
        others = tuple(each for each in line if each is not mine)
        number = int(operation.more.get("number") or 0)
        match operation.op, operation.more.get("answer"):
            case (("lose data" | "expire all"), _):
                # Those who wait come back in any order.
                yield ()
            case (("withdraw" | "release"), _):
                if mine is not None or not operation.open:
                    yield self._looked_at(others, latest)
            case _, "completed":
                # There is nothing to wait for any more.
                yield self._looked_at(others, latest)
            case "pass_on", _:
                yield line
            case _, "ticket":
                served = mine is not None and mine.served and mine.number == number
                yield self._looked_at((*others, self._waiting(number, operation, served)), latest)
            case "poll", _:
                # It may have been entered again by this very question. An offer's time is not made longer.
                place = mine if mine is not None else self._waiting(number, operation, False)
                looked = self._looked_at((*others, place), latest)
                if next(each for each in looked if each.owner == operation.owner).served:
                    yield looked
            case _, "lease":
                looked = self._looked_at(line, latest)
                turn = next((each for each in looked if each.owner == operation.owner), None)
                if turn.served if turn is not None else self._alive(looked, latest) < self.limit:
                    yield self._looked_at(others, latest)

    def _waiting(self, number: int, operation: Operation, served: bool) -> Waiting:
        return Waiting(number, operation.owner, operation.invoked + self.claim_ttl, served)

    @staticmethod
    def _alive(line: tuple[Waiting, ...], latest: float) -> int:
        return sum(each.until > latest for each in line)

    def _looked_at(self, line: tuple[Waiting, ...], latest: float) -> tuple[Waiting, ...]:
        """Put the line in order, and note whose turn it is; those who may be gone are left out of account."""
        looked: list[Waiting] = []
        before = 0
        for each in sorted(line, key=lambda one: (one.number, one.owner)):
            looked.append(replace(each, served=True) if before < self.limit else each)
            before += each.until > latest
        return tuple(looked)
