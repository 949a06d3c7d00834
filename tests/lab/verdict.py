"""What a run has shown: every guarantee, judged from the history alone."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.belief import Span, spans
from tests.lab.calm import Break, breaks
from tests.lab.checker import check
from tests.lab.history import Operation, load, operations
from tests.lab.liveness import late
from tests.lab.models import FencedMutex, FifoQueue, Model, Permits
from tests.lab.picture import draw, shrink
from tests.lab.trusted import Crowd, crowds, disordered, shrinking_fences

__all__ = ["Verdict", "judge"]

#: The most operations that a picture shows.
MANY = 40
#: Seconds that are spent on making a picture smaller.
PATIENCE = 30.0


@dataclass
class Verdict:
    """What was found.

    Attributes:
        violations: of guarantees, each in words, some with a picture.
        excused: overlaps that are the doing of a fault which may do that.
        undecided: searches that were given up.
        counts: how much there was to judge.
    """

    violations: list[str] = field(default_factory=list)
    excused: list[Crowd] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def judge(folder: Path, *, ttl: float, silence: float, searches: bool = True) -> Verdict:
    """Judge a history.

    Arguments:
        folder: with the files of a run whose processes have all ended.
        ttl: seconds for which a holder believes in its lock without a word from its store.
        silence: seconds for which the store believes a holder that is silent.
        searches: whether to search for legal orders, too.
    """
    events = load(folder)
    verdict = Verdict()
    broken = breaks(events)
    believed = spans(events, folder)
    by_key: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations(events):
        by_key[operation.key].append(operation)
    verdict.counts = {
        "operations": sum(map(len, by_key.values())),
        "grants": sum(each.more.get("answer") == "lease" for mine in by_key.values() for each in mine),
        "holds": len(believed),
        "unknown": sum(each.open for mine in by_key.values() for each in mine),
    }
    _exclusion(verdict, believed, broken, ttl)
    for earlier, later in disordered(believed):
        if not any(each.renumbers(earlier.start, later.start) for each in broken):
            verdict.violations.append(f"{later.key!r}: a holder's fence did not grow: {earlier}, then {later}")
    for key, mine in sorted(by_key.items()):
        limit = max((int(each.more.get("limit") or 1) for each in mine), default=1)
        if limit == 1:
            for larger, smaller in shrinking_fences(mine):
                if not any(each.renumbers(larger.invoked, smaller.returned) for each in broken):
                    verdict.violations.append(f"{key!r}: a fence did not grow: {larger} before {smaller}")
        verdict.violations += late(key, mine, events, silence)
        if searches:
            _search(verdict, key, mine, limit, broken)
    return verdict


def _exclusion(verdict: Verdict, believed: Sequence[Span], broken: Sequence[Break], ttl: float) -> None:
    for crowd in crowds(believed):
        *older, newest = crowd.spans
        unexplained = [
            one
            for one in older
            if not any(each.excuses(one.start, newest.start, min(one.end, newest.end), ttl) for each in broken)
        ]
        if len(unexplained) < newest.limit:
            verdict.excused.append(crowd)
        else:
            verdict.violations.append(f"too many believed in {crowd}")


def _search(verdict: Verdict, key: str, mine: list[Operation], limit: int, broken: Sequence[Break]) -> None:
    # Those who wait may be kept a place that nobody has yet.
    strict = not any(each.op == "enqueue" for each in mine)
    leases = FencedMutex(strict=strict) if limit == 1 else Permits(limit, strict=strict)
    optional = [
        Operation(each.what, "", each.since, outcome="unknown", key=key, more={"by": each.by, "fences": each.fences})
        for each in broken
    ]
    for name, model in (("leases", leases), ("line", FifoQueue(limit))):
        _search_one(verdict, f"{key!r}, {name}", [*_once(mine), *optional], model)


def _once(operations: Sequence[Operation]) -> list[Operation]:
    """Leave out what was asked again and again without an answer: the first may happen whenever the others may."""
    asked: set[tuple[str, str, int]] = set()
    kept = []
    for operation in operations:
        what = operation.op, operation.owner, operation.fence
        if operation.open and what in asked:
            continue
        if operation.open:
            asked.add(what)
        kept.append(operation)
    return kept


def _search_one(verdict: Verdict, name: str, mine: Sequence[Operation], model: Model) -> None:
    found = check(mine, model)
    if found.legal is None:
        verdict.undecided.append(f"{name}: given up after {found.looked} configurations")
    elif not found.legal:
        patience = time.monotonic() + PATIENCE

        def is_illegal(some: Sequence[Operation]) -> bool:
            return time.monotonic() < patience and check(some, model, budget=20_000).legal is False

        part = shrink(model.select(mine), is_illegal)
        stuck = check(part, model).stuck or found.stuck
        if len(part) > MANY:
            # It could not be made smaller in time: what was last before it must do.
            end = max(each.invoked for each in stuck)
            part = sorted((each for each in part if each.invoked <= end), key=lambda one: one.invoked)[-MANY:]
        verdict.violations.append(f"{name}: no order explains\n{draw(part, stuck)}")
