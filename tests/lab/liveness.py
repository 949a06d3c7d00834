"""Bounds of time: what is released is gone, the dead hold no longer than they may, and who waits is served.

Judged from what the store answered: somebody is refused, and the answer names the reason. Only while the store, its
wires and the processes that count were well; see :mod:`.calm`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from tests.lab.calm import Windows, breaks, troubled
from tests.lab.history import Event, Operation

__all__ = ["DEAD_CHILD", "EXPIRY", "OFFER", "late"]

#: Seconds after a silent holder's time within which its key is free.
EXPIRY = 1.0
#: Seconds within which a live waiter of a free key is offered it.
OFFER = 3.0
#: Seconds after the death of a pool process by which its lock is free. The documents say "at once"; this is what a busy
#: machine needs to notice.
DEAD_CHILD = 1.0

#: Seconds for which a silent waiter keeps its place, and for which an offer is kept for it.
CLAIM_TTL = 2.0

_GRANTING = ("acquire", "enqueue", "confirm", "pass_on")


def late(key: str, operations: Sequence[Operation], events: Sequence[Event], silence: float) -> list[str]:
    """Return what took longer than it may, in words.

    Arguments:
        key: what the operations are about.
        operations: all of that key.
        events: the whole history.
        silence: seconds for which the store believes a silent holder.
    """
    store = troubled(events, "store")
    # A clock that went back has the store believe for longer; data that were lost have waiters wait for a ttl.
    longer = [(each.since, each.by + silence + 2.0) for each in breaks(events)]
    longer += [
        (event["t"], event["t"] + silence + 2 * event["seconds"] + 2.0)
        for event in events
        if event.get("event") == "clock of the store goes back"
    ]
    store = Windows((*store.windows, *longer))
    everything = Windows((*store.windows, *troubled(events, "process").windows))
    refusals = [each for each in operations if each.more.get("answer") == "contended" and each.op in _GRANTING]
    return [
        *_in_their_own_way(key, refusals),
        *_released_yet_there(key, operations, refusals),
        *_silent_yet_there(key, operations, refusals, store, silence),
        *_dead_yet_there(key, events, refusals, everything),
        *_kept_waiting(key, operations, everything, silence),
    ]


def _in_their_own_way(key: str, refusals: Sequence[Operation]) -> Iterator[str]:
    for refusal in refusals:
        if refusal.owner in (owner for owner, _ in refusal.more["holders"]):
            yield f"{key!r}: {refusal.owner} was refused since it holds the key itself"


def _released_yet_there(key: str, operations: Sequence[Operation], refusals: Sequence[Operation]) -> Iterator[str]:
    released = {each.owner: each.returned for each in operations if each.op == "release" and each.outcome == "ok"}
    for refusal in refusals:
        for owner, _ in refusal.more["holders"]:
            if refusal.invoked > released.get(owner, math.inf):
                yield (
                    f"{key!r}: {owner} was still in the way "
                    f"{1000 * (refusal.invoked - released[owner]):.0f} ms after its release was confirmed"
                )


def _silent_yet_there(
    key: str, operations: Sequence[Operation], refusals: Sequence[Operation], store: Windows, silence: float
) -> Iterator[str]:
    heard: dict[str, float] = {}
    may_hold: set[str] = set()
    for each in operations:
        if each.op in _GRANTING or each.op in ("renew", "poll"):
            # One without an answer may have been executed late, but not later than its caller waited for it.
            last = each.invoked + 5.0 if each.returned == math.inf else each.returned
            heard[each.owner] = max(heard.get(each.owner, 0.0), last)
            if each.open or each.more.get("answer") == "lease":
                may_hold.add(each.owner)
    for refusal in refusals:
        for owner, _ in refusal.more["holders"]:
            if owner not in heard:
                continue
            last = heard[owner]
            # A waiter keeps its place for a claim's ttl, and what it is then offered for another.
            time = silence if owner in may_hold else max(silence, 2 * CLAIM_TTL)
            over = refusal.invoked - (last + time + EXPIRY)
            if over > 0 and not store.touch(last, refusal.returned):
                yield f"{key!r}: {owner}, silent since {last:.3f}, was still in the way {over:.2f} s after its time"


def _dead_yet_there(
    key: str, events: Sequence[Event], refusals: Sequence[Operation], windows: Windows
) -> Iterator[str]:
    died = {event["dead"]: event["t"] for event in events if event.get("event") == "killed"}
    ended = {event["span"] for event in events if event.get("event") == "believes no more"}
    owner_of_dead = {
        event["owner"]: died[event["pid"]]
        for event in events
        if event.get("event") == "believes" and event["pid"] in died and event["span"] not in ended
    }
    for refusal in refusals:
        for owner, _ in refusal.more["holders"]:
            over = refusal.invoked - (owner_of_dead.get(owner, math.inf) + DEAD_CHILD)
            if over > 0 and not windows.touch(owner_of_dead[owner], refusal.returned):
                yield f"{key!r}: {owner}, whose process was dead, was still in the way {over:.2f} s after its time"


def _kept_waiting(key: str, operations: Sequence[Operation], windows: Windows, silence: float) -> Iterator[str]:
    limit = max((int(each.more.get("limit") or 1) for each in operations), default=1)
    if limit > 1:
        return
    held = _merged(_holds(operations, silence))
    for owner, start, end in _waits(operations):
        for free_from, free_until in _gaps(held, start, end):
            over = free_until - free_from - OFFER
            if over > 0 and not windows.touch(free_from, free_until):
                yield f"{key!r}: {owner} waited {over + OFFER:.2f} s for a free key, from {free_from:.3f} on"


def _holds(operations: Sequence[Operation], silence: float) -> Iterator[tuple[float, float]]:
    """Yield when the key may have been held: until the release was confirmed, or the holder's time was over."""
    granted: dict[str, float] = {}
    heard: dict[str, float] = {}
    released: dict[str, float] = {}
    for each in operations:
        grants = each.op in _GRANTING and (each.open or each.more.get("answer") == "lease")
        if grants:
            granted.setdefault(each.owner, each.invoked)
        if grants or each.op == "renew":
            last = each.invoked + 5.0 if each.returned == math.inf else each.returned
            heard[each.owner] = max(heard.get(each.owner, 0.0), last)
        if each.op == "release" and not each.open:
            released[each.owner] = min(released.get(each.owner, math.inf), each.returned)
    for owner, since in granted.items():
        yield since, min(released.get(owner, math.inf), heard[owner] + silence + EXPIRY)


def _waits(operations: Sequence[Operation]) -> Iterator[tuple[str, float, float]]:
    """Yield who was in the line from when to when, as far as it is certain."""
    since: dict[str, float] = {}
    last: dict[str, float] = {}
    for each in operations:
        answer = each.more.get("answer")
        if answer == "ticket" and each.op in ("enqueue", "poll"):
            if each.owner not in since:
                since[each.owner] = each.returned
            last[each.owner] = each.invoked
        elif each.owner in since and (each.op != "poll" or answer == "offer"):
            yield each.owner, since.pop(each.owner), each.invoked
    for owner, start in since.items():
        yield owner, start, last[owner]


def _merged(held: Iterator[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, end in sorted(held):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def _gaps(held: Sequence[tuple[float, float]], start: float, end: float) -> Iterator[tuple[float, float]]:
    free = start
    for begins, ends in held:
        if ends <= free:
            continue
        if begins >= end:
            break
        if begins > free:
            yield free, begins
        free = max(free, ends)
    if free < end:
        yield free, end
