"""The checker accepts what a lock may answer, and refuses what it may not: histories written by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from tests.lab.checker import check
from tests.lab.history import Operation, Outcome
from tests.lab.models import FencedMutex, FifoQueue, Model, Mutex, OwnerMutex, Permits
from tests.lab.picture import draw, shrink


def op(
    name: str,
    owner: str,
    start: float,
    end: float = math.inf,
    outcome: Outcome = "ok",
    *,
    fence: int = 0,
    ttl: float = 10.0,
    **more: Any,
) -> Operation:
    if end == math.inf:
        outcome = "unknown"
    return Operation(name, owner, start, end, outcome, fence=fence, ttl=ttl, more=more)


def got(owner: str, start: float, end: float = math.inf, fence: int = 0, ttl: float = 10.0) -> Operation:
    return op("acquire", owner, start, end, fence=fence, ttl=ttl)


def refused(owner: str, start: float, end: float) -> Operation:
    return op("acquire", owner, start, end, "fail")


def released(owner: str, start: float, end: float = math.inf, fence: int = 0) -> Operation:
    return op("release", owner, start, end, fence=fence)


def not_ours(owner: str, start: float, end: float, fence: int = 1) -> Operation:
    return op("release", owner, start, end, "fail", fence=fence)


def renewed(owner: str, start: float, end: float, fence: int, ttl: float = 10.0, outcome: Outcome = "ok") -> Operation:
    return op("renew", owner, start, end, outcome, fence=fence, ttl=ttl)


def waits(owner: str, start: float, end: float, number: int) -> Operation:
    return op("enqueue", owner, start, end, answer="ticket", number=number)


def polled(owner: str, start: float, end: float, number: int, answer: str = "ticket") -> Operation:
    return op("poll", owner, start, end, answer=answer, number=number)


def confirmed(owner: str, start: float, end: float) -> Operation:
    return op("confirm", owner, start, end, answer="lease", fence=1)


MUTEX, OWNED, FENCED, STRICT, LINE = Mutex(), OwnerMutex(), FencedMutex(), FencedMutex(strict=True), FifoQueue()

LEGAL: dict[str, tuple[Model, Sequence[Operation]]] = {
    "one after the other": (MUTEX, [got("a", 0, 1), released("a", 2, 3), got("b", 4, 5)]),
    "the second got it while the first gave it back": (MUTEX, [got("a", 0, 1), released("a", 2, 9), got("b", 3, 4)]),
    "refused while it may have been held": (MUTEX, [got("a", 0, 5), refused("b", 1, 2)]),
    "nobody knows whether it was released": (MUTEX, [got("a", 0, 1), released("a", 2), got("b", 4, 5)]),
    "asked again": (OWNED, [got("a", 0, 1), got("a", 2, 3), refused("b", 4, 5), released("a", 6, 7)]),
    "a release of another's does nothing": (OWNED, [got("a", 0, 1), not_ours("b", 2, 3), refused("c", 4, 5)]),
    "a grant without an answer keeps others out": (OWNED, [got("a", 0), refused("b", 1, 2), refused("b", 90, 91)]),
    "or it does not": (OWNED, [got("a", 0), got("b", 1, 2)]),
    "fences grow": (FENCED, [got("a", 0, 1, 5), released("a", 2, 3, 5), got("b", 4, 5, 6)]),
    "an expired holder is replaced": (FENCED, [got("a", 0, 1, 1, ttl=2), got("b", 1.9, 2.1, 2)]),
    "and learns of it": (
        FENCED,
        [got("a", 0, 1, 1, ttl=2), got("b", 2, 3, 2), renewed("a", 4, 5, 1, outcome="fail"), not_ours("a", 6, 7)],
    ),
    "an expired holder that nobody replaced is renewed": (
        FENCED,
        [got("a", 0, 1, 1, ttl=2), renewed("a", 8, 9, 1, ttl=2), released("a", 9, 10, 1)],
    ),
    "two permits": (Permits(2), [got("a", 0, 1, 1), got("b", 2, 3, 2), released("a", 4, 5, 1), got("c", 6, 7, 3)]),
    "lost data let another in": (FENCED, [got("a", 0, 1, 1), op("lose data", "", 2, by=3), got("b", 2.5, 4, 2)]),
    "and the first may come back first": (
        FENCED,
        [got("a", 0, 1, 1), op("lose data", "", 2, by=3), renewed("a", 4, 5, 1), released("a", 6, 7, 1)],
    ),
    "first come, first served": (
        LINE,
        [waits("a", 0, 1, 1), waits("b", 2, 3, 2), confirmed("a", 3.1, 3.2), confirmed("b", 3.3, 3.4)],
    ),
    "whose work turns out to be done leaves": (
        LINE,
        [
            waits("a", 0, 0.1, 1),
            waits("b", 0.2, 0.3, 2),
            op("confirm", "a", 0.4, 0.5, "fail", answer="completed"),
            confirmed("b", 0.6, 0.7),
        ],
    ),
    "who falls silent is passed": (
        LINE,
        [waits("a", 0, 0.1, 1), waits("b", 1, 1.1, 2), polled("b", 2, 2.2, 2), confirmed("b", 2.3, 2.5)],
    ),
    "two ask in the name of one whose turn it is": (
        LINE,
        [
            waits("a", 0, 0.1, 1),
            waits("b", 0.2, 0.3, 2),
            confirmed("a", 0.4, 0.6),
            op("acquire", "a", 0.5, 0.7, answer="lease", fence=1),
            confirmed("b", 0.8, 0.9),
        ],
    ),
    "who was offered the place may take it though another is back before him": (
        LINE,
        [
            waits("a", 0, 0.1, 1),
            waits("b", 1, 1.1, 2),
            polled("b", 2.1, 2.2, 2, answer="offer"),
            waits("a", 2.3, 2.4, 1),
            confirmed("b", 2.5, 2.6),
        ],
    ),
}

ILLEGAL: dict[str, tuple[Model, Sequence[Operation]]] = {
    "two at once": (MUTEX, [got("a", 0, 1), got("b", 2, 3)]),
    "refused though nobody can have held it": (MUTEX, [got("a", 0, 1), released("a", 2, 3), refused("b", 4, 5)]),
    "a release of another's": (OWNED, [got("a", 0, 1), released("b", 2, 3)]),
    "refused because of itself": (OWNED, [got("a", 0), refused("a", 1, 2)]),
    "let in before the holder has expired": (FENCED, [got("a", 0, 1, 1, ttl=2), got("b", 1.5, 1.9, 2)]),
    "let in though the holder was renewed": (
        FENCED,
        [got("a", 0, 0.5, 1, ttl=2), renewed("a", 1, 1.1, 1, ttl=2), got("b", 2.5, 2.9, 2)],
    ),
    "a smaller fence": (FENCED, [got("a", 0, 1, 6), released("a", 2, 3, 6), got("b", 4, 5, 5)]),
    "the same fence for two": (FENCED, [got("a", 0, 1, 6), released("a", 2, 3, 6), got("b", 4, 5, 6)]),
    "another fence for the same lease": (FENCED, [got("a", 0, 1, 6), got("a", 2, 3, 7)]),
    "renewed after its release": (FENCED, [got("a", 0, 1, 1), released("a", 2, 3, 1), renewed("a", 4, 5, 1)]),
    "renewed after its place was taken": (
        FENCED,
        [got("a", 0, 1, 1, ttl=2), got("b", 3, 4, 2), renewed("a", 5, 6, 1), released("b", 7, 8, 2)],
    ),
    "lost while it was held": (FENCED, [got("a", 0, 1, 1), renewed("a", 2, 3, 1, outcome="fail")]),
    "contended though it was released": (STRICT, [got("a", 0, 1, 1), released("a", 2, 3, 1), refused("b", 4, 5)]),
    "three of two": (Permits(2), [got("a", 0, 1, 1), got("b", 2, 3, 2), got("c", 4, 5, 3)]),
    "let in when the data had not been lost any more": (
        FENCED,
        [got("a", 0, 1, 1), op("lose data", "", 2, by=3), renewed("a", 4, 5, 1), got("b", 6, 7, 2)],
    ),
    "a newcomer before one that waits": (LINE, [waits("a", 0, 0.1, 1), confirmed("b", 1, 1.1)]),
    "one that has had its turn before one that waits": (
        LINE,
        [
            waits("a", 0, 0.1, 1),
            waits("b", 0.2, 0.3, 2),
            confirmed("a", 0.4, 0.6),
            op("acquire", "a", 0.7, 0.8, answer="lease", fence=2),
        ],
    ),
    "the second before the first": (LINE, [waits("a", 0, 0.1, 1), waits("b", 0.2, 0.3, 2), confirmed("b", 1, 1.1)]),
}


@pytest.mark.parametrize("case", LEGAL)
def test_a_legal_history_is_accepted(case: str) -> None:
    model, operations = LEGAL[case]
    assert check(operations, model).legal is True


@pytest.mark.parametrize("case", ILLEGAL)
def test_an_illegal_history_is_refused(case: str) -> None:
    model, operations = ILLEGAL[case]
    assert check(operations, model).legal is False


def test_a_search_that_takes_too_long_says_so() -> None:
    # Any twelve of them may have happened before what cannot be explained.
    operations = [*(got(str(n), 0.0) for n in range(12)), renewed("nobody", 3, 4, 2)]
    assert check(operations, Permits(12, strict=True), budget=100).legal is None
    assert check(operations, Permits(12, strict=True)).legal is False


def test_of_a_long_history_the_picture_shows_the_two_that_collide() -> None:
    operations: list[Operation] = []
    for n in range(200):
        fence, t = n + 1, float(n)
        operations += [got(f"o{n}", t, t + 0.1, fence), released(f"o{n}", t + 0.8, t + 0.9, fence)]
        operations.append(refused(f"x{n}", t + 0.2, t + 0.3))
    operations.append(got("thief", 150.3, 150.4, 1000))

    def is_illegal(some: Sequence[Operation]) -> bool:
        return check(some, FENCED).legal is False

    assert is_illegal(operations)
    kept = shrink(operations, is_illegal)
    assert {each.owner for each in kept} == {"o150", "thief"}
    assert [str(each) for each in kept] == ["acquire → ok #151", "acquire → ok #1000"]
    picture = draw(kept, check(kept, FENCED).stuck)
    assert "!" in picture
    assert "thief" in picture
