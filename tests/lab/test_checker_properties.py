"""Histories of a real store, taken in order and then blurred, are legal; with one thing changed they are not."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from celery_distlock.lease import Claim, Lease, Renewal
from celery_distlock.stores.memory import MemoryStore
from tests.lab.checker import check
from tests.lab.history import Operation, Outcome
from tests.lab.models import FencedMutex, Permits

_names = itertools.count()
OWNERS = ("a", "b", "c", "d")
TTL = 1000.0

Step = tuple[str, str]
steps = st.lists(
    st.tuples(st.sampled_from(("acquire", "renew", "release")), st.sampled_from(OWNERS)), min_size=1, max_size=40
)
#: How long before and after the moment of its effect an operation was under way, and whether its answer was lost.
blur = st.tuples(st.floats(0.0, 4.0), st.floats(0.0, 4.0), st.booleans())


def performed(program: Sequence[Step], limit: int = 1) -> list[Operation]:
    """Do all this with a store, one after the other: the operation number n happens at time n, and takes no time."""
    store = MemoryStore.from_url(f"memory://checker{next(_names)}")
    leases: dict[str, Lease] = {}
    done = []
    for time, (op, owner) in enumerate(program):
        lease = leases.get(owner)
        outcome: Outcome
        if op == "acquire":
            # An owner is one execution: who has released comes back as somebody else.
            answer = store.acquire(Claim("k", owner, TTL, limit))
            outcome = "ok" if isinstance(answer, Lease) else "fail"
            if isinstance(answer, Lease):
                lease = leases[owner] = answer
        elif lease is None:
            continue
        elif op == "renew":
            outcome = "ok" if store.renew([lease])[0] in (Renewal.HELD, Renewal.REASSERTED) else "fail"
        else:
            outcome = "ok" if store.release([lease])[0] else "fail"
        fence = lease.fence if lease is not None and not (op == "acquire" and outcome == "fail") else 0
        done.append(Operation(op, owner, time - 0.1, time + 0.1, outcome, fence=fence, ttl=TTL))
    return done


def blurred(operations: Sequence[Operation], blurs: Sequence[tuple[float, float, bool]]) -> list[Operation]:
    """Have each be under way for longer, so that they overlap, and lose some answers."""
    found = []
    for operation, (before, after, lost) in zip(operations, itertools.cycle(blurs)):
        changes = {"invoked": operation.invoked - before, "returned": operation.returned + after}
        if lost:
            changes["returned"] = math.inf
        one = dataclasses.replace(operation, **changes)  # type: ignore[arg-type]
        found.append(dataclasses.replace(one, outcome="unknown", fence=0) if lost and one.outcome == "ok" else one)
    return [each for each in found if not (each.returned == math.inf and each.outcome == "fail")]


@settings(deadline=None)
@given(steps, st.lists(blur, min_size=1, max_size=10), st.sampled_from((1, 2)))
def test_what_a_store_has_answered_is_legal_however_it_is_blurred(
    program: list[Step], blurs: list[tuple[float, float, bool]], limit: int
) -> None:
    model = FencedMutex(strict=True) if limit == 1 else Permits(limit, strict=True)
    operations = performed(program, limit)
    assert check(operations, model).legal is True
    assert check(blurred(operations, [(before, after, False) for before, after, _ in blurs]), model).legal is True
    loose = dataclasses.replace(model, strict=False)
    assert check(blurred(operations, blurs), loose).legal is not False


@settings(deadline=None, max_examples=50)
@given(steps, st.data())
def test_a_grant_in_the_middle_of_a_hold_is_refused(program: list[Step], data: st.DataObject) -> None:
    operations = performed([*program, *(("release", owner) for owner in OWNERS), ("acquire", "a"), ("release", "a")])
    releases = [each for each in operations if each.op == "release" and each.outcome == "ok"]
    release = data.draw(st.sampled_from(releases))
    time = release.invoked - 0.3
    thief = Operation("acquire", "thief", time - 0.1, time + 0.1, fence=10**18, ttl=TTL)
    assert check([*operations, thief], FencedMutex()).legal is False


@settings(deadline=None, max_examples=50)
@given(steps, st.data())
def test_two_fences_exchanged_are_refused(program: list[Step], data: st.DataObject) -> None:
    free = [("release", owner) for owner in OWNERS]
    operations = performed([*program, *free, ("acquire", "d"), ("release", "d"), ("acquire", "a")])
    fences = sorted({each.fence for each in operations if each.fence})
    one, other = sorted(data.draw(st.lists(st.sampled_from(fences), min_size=2, max_size=2, unique=True)))
    exchanged = {one: other, other: one}
    changed = [dataclasses.replace(each, fence=exchanged.get(each.fence, each.fence)) for each in operations]
    assert check(changed, FencedMutex()).legal is False


@settings(deadline=None, max_examples=50)
@given(steps, st.data())
def test_a_renewal_after_the_release_is_refused(program: list[Step], data: st.DataObject) -> None:
    operations = performed([*program, *(("release", owner) for owner in OWNERS), ("acquire", "a"), ("release", "a")])
    releases = [each for each in operations if each.op == "release" and each.outcome == "ok"]
    release = data.draw(st.sampled_from(releases))
    late = dataclasses.replace(release, op="renew", invoked=release.returned + 0.1, returned=release.returned + 0.2)
    assert check([*operations, late], FencedMutex()).legal is False
