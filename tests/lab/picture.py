"""The shortest offending part of a history, as a picture in text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tests.lab.history import Operation

__all__ = ["draw", "shrink"]

_WIDTH = 100


def shrink(operations: Sequence[Operation], is_illegal: Callable[[Sequence[Operation]], bool]) -> list[Operation]:
    """Return a part of an illegal history that is illegal, too, and as short as could be found.

    What is left out never makes a legal history illegal: the end of the history; an owner with all that it did, and the
    refusals that it may have been the reason of; single refusals and renewals.

    Arguments:
        operations: of one key, illegal.
        is_illegal: tells whether a history is.
    """
    kept = _shortest_prefix(sorted(operations, key=lambda one: one.invoked), is_illegal)
    size = max(1, len({each.owner for each in kept}) // 2)
    while True:
        owners = list(dict.fromkeys(each.owner for each in kept))
        for start in range(0, len(owners), size):
            fewer = _without(kept, set(owners[start : start + size]))
            if len(fewer) < len(kept) and is_illegal(fewer):
                kept = fewer
                break
        else:
            if size == 1:
                break
            size //= 2
    for operation in [each for each in kept if each.op in ("renew", "poll") or _is_refusal(each)]:
        fewer = [each for each in kept if each is not operation]
        if is_illegal(fewer):
            kept = fewer
    return kept


def _shortest_prefix(
    operations: Sequence[Operation], is_illegal: Callable[[Sequence[Operation]], bool]
) -> list[Operation]:
    returns = sorted(each.returned for each in operations if not each.open)
    low, high = 0, len(returns) - 1
    while low < high:
        middle = (low + high) // 2
        if is_illegal(_until(operations, returns[middle])):
            high = middle
        else:
            low = middle + 1
    shortest = _until(operations, returns[high]) if returns else list(operations)
    # A search that was given up on the way has misled us.
    return shortest if is_illegal(shortest) else list(operations)


def _until(operations: Sequence[Operation], end: float) -> list[Operation]:
    """Return what is known at a time: whatever has not returned by then may have happened."""
    return [
        each
        if each.returned <= end or each.open
        else Operation(
            each.op,
            each.owner,
            each.invoked,
            math.inf,
            "unknown",
            each.key,
            each.fence if each.op in ("release", "renew") else 0,
            each.ttl,
            each.pid,
            {**each.more, "answer": None},
        )
        for each in operations
        if each.invoked <= end
    ]


def _is_refusal(operation: Operation) -> bool:
    answer = operation.more.get("answer", "contended")
    return operation.outcome == "fail" and operation.op not in ("renew", "release") and answer in ("contended", "none")


def _without(operations: Sequence[Operation], owners: set[str]) -> list[Operation]:
    theirs = [each for each in operations if each.owner in owners]
    if not theirs:
        return list(operations)
    start = min(each.invoked for each in theirs)
    end = max(each.returned for each in theirs)
    return [
        each
        for each in operations
        if each.owner not in owners and not (_is_refusal(each) and each.invoked <= end and each.returned >= start)
    ]


def draw(operations: Sequence[Operation], stuck: Sequence[Operation] = ()) -> str:
    """Return the picture: a line for each operation, time from left to right; ``!`` marks what cannot be explained.

    Moments that mean something are spread evenly: the picture shows what was before what, the numbers how long it took.
    """
    ordered = sorted(operations, key=lambda one: (one.invoked, one.returned))
    if not ordered:
        return "(nothing)"
    moments = sorted({each.invoked for each in ordered} | {each.returned for each in ordered} - {math.inf})
    zero = moments[0]
    step = max(1, min(8, _WIDTH // len(moments)))
    column = {moment: index * step for index, moment in enumerate(moments)}
    width = len(moments) * step + 1
    names = {
        owner: f"{chr(65 + n % 26)}{n // 26 or ''}" for n, owner in enumerate(dict.fromkeys(o.owner for o in ordered))
    }
    lines = [f"{'ms':>17}  owner  what"]
    for each in ordered:
        left = column[each.invoked]
        if each.returned == math.inf:
            bar = "├" + "╌" * (width - left - 1)
            end = "…"
        else:
            right = column[each.returned]
            bar = "├" + "─" * (right - left - 1) + "┤"
            end = f"{1000 * (each.returned - zero):.1f}"
        times = f"{1000 * (each.invoked - zero):.1f}–{end}"
        mark = "!" if each in stuck else " "
        lines.append(f"{times:>17} {mark} {names[each.owner]:<4} {' ' * left}{bar} {each}")
    lines += [f"{name} = owner {owner}, pid {_pid(ordered, owner)}" for owner, name in names.items()]
    return "\n".join(lines)


def _pid(operations: Sequence[Operation], owner: str) -> int:
    return next(each.pid for each in operations if each.owner == owner)
