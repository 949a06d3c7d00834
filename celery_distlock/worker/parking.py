"""Tasks that wait for their turn in the main process: ``lock_on_contention="wait"``.

Authority
    The store says whose turn it is (:class:`~celery_distlock.stores.base.Queueing`); this module stands in line for
    the parked, and hands them to the pool when their turn has come.

A parked task, and the thread in which it happens::

    consumer's thread              the line's thread                       listener's
    park ─────────────────────────▶ enqueue ─ Lease ───────────────┐
                                       │ Ticket                    │
                                       ▼                           │
                                    in line, polled in one batch   │
                                       │ ◀─ an offer ──────────────┼────── hint
                                       ├─ a slot is free: confirm ─┤
                                       │                           ▼
                                       │                  handed over (lease)
    run: cell GRANTED, to the pool ◀───┼───────────────────────────┘
                                       └─ no slot: the place is declined, and with it those of all others of this key
    climb: the first one joins the  ◀──┘   that are parked here; they keep their tickets
    pool's own line, and asks again
    when it has got there; then the
    others stand in line again

So a lock is never held by a task that cannot start, and first in, first out holds among those that can.

What each failure does
    * A hint is lost: the next poll brings the offer.
    * The store does not answer: everybody stays parked, and is in line again, with its ticket, when it does.
    * The connection to the broker is lost: the broker delivers what was parked again; all places are given up.
    * The consumer is busy (solo pool, a blocked event loop): what was handed over and not taken is declined.
    * Revoked or expired: at once, in the main process. ``lock_timeout``: :class:`LockTimeout`, also at once.
    * ``distlock_max_park``: the task asks once more, and is published again with its ticket.
    * This process dies: its places expire within the claim ttl.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from celery import states
from celery.app.trace import TraceInfo
from celery.worker import state

from celery_distlock.errors import LockTimeout, StoreUnavailable, describe
from celery_distlock.held import give_back
from celery_distlock.lease import Claim, Lease, Ticket
from celery_distlock.line import Line, Waiter, enter
from celery_distlock.options import LockOptions, store_settings
from celery_distlock.signals import lock_parked, lock_woken
from celery_distlock.task.parked import Wish
from celery_distlock.task.redelivery import completion_of
from celery_distlock.task.run import SINCE_HEADER, label_of
from celery_distlock.worker.shelf import put_aside
from celery_distlock.worker.slots import free_slots
from celery_distlock.worker.visibility import Visibility

if TYPE_CHECKING:
    from celery_distlock.worker.warden import Warden

__all__ = ["Parking", "Waited"]

log = logging.getLogger(__name__)

#: Seconds for which the consumer may leave a lease that was handed over to it.
_HANDING_PATIENCE = 0.1
#: Seconds between two tries to reach a store that does not answer.
_RETRY_PAUSE = 0.2
#: Seconds that the worker's end waits until the store knows.
_FAREWELL = 1.0


class Waited(NamedTuple):
    """What a request has that was parked, when it is handed to the pool.

    Attributes:
        number: of its ticket, if it got one.
        lease: what it was granted; None if it has to ask.
        room: whether it may be parked again.
    """

    number: int | None
    lease: Lease | None
    room: bool


class _Parked(Waiter):
    """A request in line. The line's thread calls it."""

    def __init__(self, parking: Parking, request: Any, wish: Wish, options: LockOptions) -> None:
        super().__init__(wish.claim)
        self.parking = parking
        self.request = request
        self.store = request.task._lock_store
        self.number = wish.number
        self.since = wish.since
        self.holder = wish.holder
        self.group = (self.store, wish.claim.key)
        self.parked_at = time.time()
        #: Monotonic times after which it may wait no more: because of the options, or in this worker.
        self.late_at = math.inf if options.timeout is None else _monotonic(wish.since + options.timeout)
        self.leaves_at = _last_moment(request)
        self.expires_at = math.inf if request.expires is None else _monotonic(_timestamp(request.expires))
        #: What follows once its place has been given up.
        self.then: Callable[[], None] | None = None
        self.line: Line = enter(self.store, self)

    def left(self) -> None:
        """Go on with what follows."""
        super().left()
        then, self.then = self.then, None
        if then is not None:
            self.parking.soon(then)

    @property
    def position(self) -> int | None:
        """How many wait before it, as the store said last; None if it is not in line."""
        return self.place.ahead if isinstance(self.place, Ticket) else None

    @property
    def ends_at(self) -> float:
        """When something is to be done about it, whatever the store says."""
        return min(self.late_at, self.leaves_at, self.expires_at)

    def offered(self) -> None:
        """Confirm soon."""
        self.parking.offered(self)

    def refused(self) -> None:
        """Ask anew, as another owner: this one was barred."""
        self.parking.wake(self)


class Parking:
    """The tasks that wait in this worker. What is not said to run elsewhere runs in the consumer's thread."""

    def __init__(self, warden: Warden) -> None:
        self._warden = warden
        self._worker = warden.worker
        self._loop = warden.loop
        self._shelf = warden.shelf
        # By owner.
        self._parked: dict[str, _Parked] = {}
        self._handed: dict[str, Lease] = {}
        self._offers: deque[_Parked] = deque()
        # Requests that stand in the pool's own line for others of the same key, which are not in the store's meanwhile.
        self._climbers: dict[int, tuple[Any, str]] = {}
        self._aside: dict[tuple[Any, str], dict[str, _Parked]] = {}
        #: When the parked are looked at next (monotonic).
        self._watch_at = math.inf
        self._closed = False

    # -- from any thread ----------------------------------------------------------------------------------------------

    def has_room(self, options: LockOptions) -> bool:
        """Return whether one more may be parked."""
        return not self._shelf.static and not self._closed and len(self._parked) < options.max_parked

    def park(self, request: Any, wish: Wish, options: LockOptions) -> None:
        """Keep a request whose executor found its key contended."""
        self._loop.call(lambda: self._park(request, wish, options))

    def climbed(self, request: Any) -> None:
        """Note that a request has got a slot, or needs none any more."""
        if self._climbers:
            key = self._climbers.pop(id(request), None)
            if key is not None:
                self._loop.call(lambda: self._back_in_line(key))

    def listed(self) -> list[dict[str, Any]]:
        """Return what is parked now, for people: first come, first."""
        return [
            {
                "id": parked.request.id,
                "name": parked.request.name,
                "key": parked.claim.key,
                "position": parked.position,
                "ticket": parked.number,
                "since": parked.parked_at,
                "holder": parked.holder and describe(parked.holder),
            }
            for parked in self._all()
        ]

    def _all(self) -> list[_Parked]:
        return list(self._parked.values())

    def soon(self, function: Callable[[], None]) -> None:
        """Run ``function`` in the consumer's thread."""
        self._loop.call(function)

    def look_for_revoked(self) -> None:
        """Let go of what was revoked just now."""
        self._loop.call(self._look_for_revoked)

    # -- the consumer's thread ----------------------------------------------------------------------------------------

    def drop_all(self) -> None:
        """Give up all places: the broker delivers what is parked again, somewhere."""
        for parked in self._all():
            if not self._is_aside(parked):
                parked.line.leave(parked)
            if state.requests.get(parked.request.id) is parked.request:
                del state.requests[parked.request.id]
        self._parked.clear()
        self._climbers.clear()
        self._aside.clear()
        # Some versions of the worker forget their timers with the connection.
        self._watch_at = math.inf

    def close(self) -> None:
        """Park nothing more: the worker is shutting down."""
        self._closed = True
        leaving = [parked for parked in self._all() if not self._is_aside(parked)]
        self.drop_all()
        give_up = time.monotonic() + _FAREWELL
        for parked in leaving:
            parked.gone.wait(max(0.0, give_up - time.monotonic()))

    def _park(self, request: Any, wish: Wish, options: LockOptions) -> None:
        if self._closed or request.generation != self._warden.generation:
            # The broker has it back.
            return
        put_aside(request)
        if request.revoked():
            # While it asked.
            return
        request.request_dict[SINCE_HEADER] = wish.since
        if not self._shelf.put(request) or len(self._parked) >= options.max_parked:
            self._shelf.take(request)
            request.waited = Waited(wish.number, None, room=False)
            self._shelf.run(request)
            return
        state.requests[request.id] = request
        parked = self._parked[wish.claim.owner] = _Parked(self, request, wish, options)
        log.info(
            "Task %s[%s] waits for lock %r, held by %s",
            request.name,
            request.id,
            wish.claim.key,
            describe(wish.holder),
            extra={"key": wish.claim.key, "holder": wish.holder},
        )
        lock_parked.send(sender=request.task, task_id=request.id, key=wish.claim.key, reason="wait")
        request.send_event("task-parked", key=wish.claim.key)
        if parked.group in self._aside:
            # The others of its key have left the line until a slot is free.
            parked.line.forget(parked)
            self._aside[parked.group][wish.claim.owner] = parked
        else:
            parked.line.call(partial(self._enqueue, parked))
        self._watch_by(parked.ends_at)

    def _watch_by(self, when: float) -> None:
        if when < self._watch_at:
            self._watch_at = when
            self._loop.call_after(max(0.0, when - time.monotonic()), partial(self._watch, when))

    def _watch(self, when: float) -> None:
        """Look for what may not wait any longer."""
        if when != self._watch_at:
            # There is an earlier look, or this one was made.
            return
        self._watch_at = math.inf
        now = time.monotonic()
        for parked in self._all():
            if now >= parked.ends_at:
                self._time_over(parked)
        self._watch_by(min((parked.ends_at for parked in self._parked.values()), default=math.inf))

    def _time_over(self, parked: _Parked) -> None:
        request, now = parked.request, time.monotonic()
        if now >= parked.expires_at and request.revoked():
            self._leave(parked)
        elif now >= parked.late_at:
            self._leave(parked)
            key = parked.claim.key
            log.info("Task %s[%s] gives up: lock_timeout has passed waiting for lock %r", request.name, request.id, key)
            _fail(request, LockTimeout(key, time.time() - parked.since, parked.holder))
            self._warden.never_starts(request)
        elif now >= parked.leaves_at:
            log.info("Task %s[%s] has been parked for as long as it may", request.name, request.id)
            self._leave(parked, partial(self._run, parked, None, room=False))

    def _look_for_revoked(self) -> None:
        for parked in self._all():
            if parked.request.revoked():
                self._leave(parked)

    def _leave(self, parked: _Parked, then: Callable[[], None] | None = None) -> None:
        """Take a request off the shelf, and give up its place; after that, go on with ``then``."""
        in_line = not self._is_aside(parked)
        self._take(parked)
        if in_line:
            # Whoever asks again has another owner, and would stand behind its own former place.
            parked.then = then
            parked.line.leave(parked)
        elif then is not None:
            then()

    def _take(self, parked: _Parked) -> None:
        self._parked.pop(parked.claim.owner, None)
        self._aside.get(parked.group, {}).pop(parked.claim.owner, None)
        self._shelf.take(parked.request)

    def _is_aside(self, parked: _Parked) -> bool:
        return parked.claim.owner in self._aside.get(parked.group, ())

    def _run(self, parked: _Parked, lease: Lease | None, *, room: bool = True) -> None:
        request = parked.request
        request.waited = Waited(parked.number, lease, room)
        lock_woken.send(sender=request.task, task_id=request.id, key=parked.claim.key)
        request.send_event("task-woken", key=parked.claim.key)
        self._shelf.run(request)

    def _resume(self, parked: _Parked) -> None:
        """Begin with what was handed over, if that is still so."""
        lease = self._handed.pop(parked.claim.owner, None)
        if lease is None:
            return
        if parked.claim.owner not in self._parked:
            # Revoked, or the connection it came on is gone.
            give_back(parked.store, lease)
        elif free_slots(self._worker) < 1:
            give_back(parked.store, lease)
            self._climb(parked.group)
        else:
            self._take(parked)
            self._run(parked, lease)

    def _wake(self, parked: _Parked) -> None:
        if parked.claim.owner in self._parked:
            self._leave(parked, partial(self._run, parked, None))

    def _climb(self, group: tuple[Any, str]) -> None:
        """Send the first of a key's waiters to stand in line for a slot, and the others aside until it has got one."""
        waiting = [
            parked
            for parked in self._all()
            if parked.group == group and parked.claim.owner not in self._handed and not self._is_aside(parked)
        ]
        if not waiting:
            return
        if group not in self._aside:
            first = min(waiting, key=lambda parked: math.inf if parked.number is None else parked.number)
            waiting.remove(first)
            self._climbers[id(first.request)] = group
            self._leave(first, partial(self._run, first, None))
        aside = self._aside.setdefault(group, {})
        for parked in waiting:
            parked.line.leave(parked)
            aside[parked.claim.owner] = parked

    def _back_in_line(self, group: tuple[Any, str]) -> None:
        for parked in self._aside.pop(group, {}).values():
            parked.gone.clear()
            parked.line = enter(parked.store, parked)
            if parked.place is None:
                parked.line.call(partial(self._enqueue, parked))
            else:
                # The store enters it again, with its number.
                parked.line.look(parked)

    # -- the line's thread --------------------------------------------------------------------------------------------

    def offered(self, parked: _Parked) -> None:
        """Confirm an offer soon; from any thread."""
        self._offers.append(parked)
        parked.line.call(self._take_offers)

    def wake(self, parked: _Parked) -> None:
        """Have the executor ask."""
        self._loop.call(lambda: self._wake(parked))

    def _enqueue(self, parked: _Parked) -> None:
        if parked.claim.owner not in self._parked:
            return
        parked.claim = self._claim_of(parked)
        try:
            answer = parked.line.enqueue(parked, parked.number)
        except StoreUnavailable as error:
            log.debug("Task %s[%s] has no place in line yet: %s", parked.request.name, parked.request.id, error)
            parked.line.call_after(_RETRY_PAUSE, partial(self._enqueue, parked))
            return
        if isinstance(answer, Ticket):
            parked.number = answer.number
        elif isinstance(answer, Lease):
            self._hand_over([(parked, answer)])
        else:
            # The executor says why not: it is Completed, or its owner was barred.
            parked.asking = False
            self.wake(parked)

    def _take_offers(self) -> None:
        offers: dict[str, _Parked] = {}
        while self._offers:
            parked = self._offers.popleft()
            owner = parked.claim.owner
            if owner in self._parked and owner not in self._handed:
                offers[owner] = parked
        if not offers:
            return
        free = free_slots(self._worker) - len(self._handed)
        offered = list(offers.values())
        for group in {parked.group for parked in offered[max(0, free) :]}:
            self._loop.call(partial(self._climb, group))
        taken = offered[: max(0, free)]
        for store in {parked.store for parked in taken}:
            batch = [parked for parked in taken if parked.store is store]
            for parked in batch:
                parked.claim = self._claim_of(parked)
            answers = batch[0].line.confirm(batch)
            granted = []
            for parked, answer in zip(batch, answers, strict=True):
                if isinstance(answer, Lease):
                    granted.append((parked, answer))
                elif answer is not None:
                    parked.asking = False
                    self.wake(parked)
            self._hand_over(granted)

    def _hand_over(self, granted: list[tuple[_Parked, Lease]]) -> None:
        for parked, lease in granted:
            parked.asking = False
            parked.line.forget(parked)
            self._handed[parked.claim.owner] = lease
            self._loop.call(partial(self._resume, parked))
            parked.line.call_after(_HANDING_PATIENCE, partial(self._take_back, parked))

    def _take_back(self, parked: _Parked) -> None:
        lease = self._handed.pop(parked.claim.owner, None)
        if lease is not None:
            log.debug("lock %r: the consumer is busy; its turn is given to the next one", lease.key)
            give_back(parked.store, lease)
            self._loop.call(partial(self._climb, parked.group))

    @staticmethod
    def _claim_of(parked: _Parked) -> Claim:
        """Return the claim as it is to be made now: if the message may have a copy, with the completion record."""
        claim, request = parked.claim, parked.request
        record = {**claim.record, "since": time.time(), "pid": os.getpid()}
        completion = claim.completion
        if completion is None and (request.delivery_info.get("redelivered") or Visibility.exposed(request)):
            completion = completion_of(request.task, claim.key, label_of(request.request_dict))
        return replace(claim, record=record, completion=completion)


def _fail(request: Any, error: Exception) -> None:
    """Fail a request that is in no executor, with all that Celery does when its executor fails it."""
    context = request._context
    context.args, context.kwargs = request.args, request.kwargs
    try:
        raise error
    except Exception as raised:
        info = TraceInfo(states.FAILURE, raised)
        told = info.handle_failure(request.task, context, store_errors=request.store_errors)
    request.on_failure(told, return_ok=True)


def _last_moment(request: Any) -> float:
    """Return until when (monotonic) a request may be parked without being delivered again."""
    last = time.monotonic() + float(store_settings(request.task._get_app().conf).max_park)
    visible = Visibility.unrefreshed(request)
    return last if visible is None else min(last, request.received_at + visible / 2)


def _monotonic(wall_clock: float) -> float:
    return time.monotonic() + wall_clock - time.time()


def _timestamp(moment: datetime) -> float:
    # Celery's expiry is aware in UTC, or naive in the app's own zone, which is compared with naive local time.
    return (moment if moment.tzinfo else moment.astimezone(timezone.utc)).timestamp()
