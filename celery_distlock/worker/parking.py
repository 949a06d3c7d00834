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
    climb: the first one joins the  ◀──┘   that are parked here; they are aside, and keep their tickets
    pool's own line, and asks again
    when it has got there; after that
    the others stand in line again

So a lock is never held by a task that cannot start, and first in, first out holds among those that can. To decline is
up to the line's thread alone: the consumer may be busy for as long as a task of a solo pool runs.

Of each key only the first few stand in the store's line; the others of this worker stand behind them, and keep the
numbers that they have drawn (:mod:`.row`).

An offer that the listener hears of is confirmed right there, if its thread may be used for that: to wake the line's
thread first can take as long as the question to the store.

An owner that has left the line does not come back: a question under its name may be under way, or the release of what
it was granted. Who is back in line has a new one.

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
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.worker import state

from celery_distlock.errors import LockTimeout, StoreUnavailable, describe
from celery_distlock.lease import Lease, Ticket
from celery_distlock.options import LockOptions
from celery_distlock.signals import lock_parked, lock_woken
from celery_distlock.task.parked import Wish
from celery_distlock.task.run import SINCE_HEADER
from celery_distlock.worker.parked_request import ParkedRequest, Waited
from celery_distlock.worker.row import Row
from celery_distlock.worker.shelf import put_aside
from celery_distlock.worker.slots import free_slots

if TYPE_CHECKING:
    from celery_distlock.worker.supervised import Supervised
    from celery_distlock.worker.warden import Warden

__all__ = ["Parking"]

log = logging.getLogger(__name__)

#: Seconds for which the consumer may leave a lease that was handed over to it.
_HANDING_PATIENCE = 0.1
#: Seconds for which those who are aside wait until one who has got a slot has asked, and between two looks.
_ASKING_PATIENCE, _ASKING_PAUSE = 1.0, 0.005
#: Seconds between two tries to reach a store that does not answer.
_RETRY_PAUSE = 0.2
#: Seconds that the worker's end waits until the store knows.
_FAREWELL = 1.0

#: A store and a key in it.
_Group = tuple[Any, str]


class Parking:
    """The tasks that wait in this worker. What is not said to run elsewhere runs in the consumer's thread."""

    def __init__(self, warden: Warden) -> None:
        self._warden = warden
        self._worker = warden.worker
        self._loop = warden.loop
        self._shelf = warden.shelf
        # By owner.
        self._parked: dict[str, ParkedRequest] = {}
        self._handed: dict[str, Lease] = {}
        self._offers: deque[ParkedRequest] = deque()
        #: Held by who asks for a lease that is to be handed over, and by who sends those aside that have none: offers
        #: are heard of in two threads.
        self._granting = threading.Lock()
        # Requests that stand in the pool's own line for others of the same key, which are aside meanwhile.
        self._climbers: dict[int, _Group] = {}
        self._rows: dict[_Group, Row[ParkedRequest]] = {}
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
        """Note that a request has asked for its lock in the slot it waited for, or will not any more."""
        if self._climbers:
            group = self._climbers.pop(id(request), None)
            if group is not None:
                # In two steps: should it be parked again just now, the others are to be behind it.
                self._loop.call(lambda: self._loop.call(partial(self._back_in_line, group)))

    def has_slot(self, supervised: Supervised) -> None:
        """Note that a request has got a slot. The others would overtake it if they were in line before it has asked."""
        if id(supervised.request) in self._climbers:
            self._loop.call(partial(self._watch_climber, supervised, time.monotonic() + _ASKING_PATIENCE))

    def _watch_climber(self, supervised: Supervised, give_up: float) -> None:
        if supervised.is_asking and time.monotonic() < give_up:
            self._loop.call_after(_ASKING_PAUSE, partial(self._watch_climber, supervised, give_up))
        else:
            self.climbed(supervised.request)

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
            for parked in sorted(self._all(), key=lambda parked: parked.parked_at)
        ]

    def _all(self) -> list[ParkedRequest]:
        return list(self._parked.values())

    def soon(self, function: Callable[[], None]) -> None:
        """Run ``function`` in the consumer's thread."""
        self._loop.call(function)

    def look_for_revoked(self) -> None:
        """Let go of what was revoked just now."""
        self._loop.call(self._look_for_revoked)

    # -- the consumer's thread ----------------------------------------------------------------------------------------

    def drop_all(self) -> list[ParkedRequest]:
        """Give up all places: the broker delivers what is parked again, somewhere. Return who is leaving."""
        leaving = self._all()
        self._parked.clear()
        self._climbers.clear()
        self._rows.clear()
        for parked in leaving:
            if not parked.aside:
                parked.line.leave(parked)
            self._give_back(parked)
            if state.requests.get(parked.request.id) is parked.request:
                del state.requests[parked.request.id]
        # Some versions of the worker forget their timers with the connection.
        self._watch_at = math.inf
        return leaving

    def close(self) -> None:
        """Park nothing more: the worker is shutting down."""
        self._closed = True
        give_up = time.monotonic() + _FAREWELL
        for parked in self.drop_all():
            parked.gone.wait(max(0.0, give_up - time.monotonic()))

    def _park(self, request: Any, wish: Wish, options: LockOptions) -> None:
        if self._is_over(request):
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
        parked = ParkedRequest(self, request, wish, options)
        if self._is_over(request):
            # In a greenlet: meanwhile.
            return
        self._parked[wish.claim.owner] = parked
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
        row = self._rows.setdefault(parked.group, Row())
        if parked.number is None and row.is_full:
            parked.aside = True
            row.drawing += 1
            parked.line.call(partial(self._draw, parked, row))
        elif row.declined:
            parked.line.forget(parked)
            row.put_behind(parked)
        else:
            self._stand(parked, row)
        self._watch_by(parked.ends_at)

    def _stand(self, parked: ParkedRequest, row: Row[ParkedRequest]) -> None:
        row[parked.owner] = parked
        parked.line.call(partial(self._enqueue, parked))

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

    def _time_over(self, parked: ParkedRequest) -> None:
        request, now = parked.request, time.monotonic()
        if now >= parked.expires_at and request.revoked():
            self._leave(parked)
        elif now >= parked.late_at:
            self._leave(parked)
            key = parked.claim.key
            log.info("Task %s[%s] gives up: lock_timeout has passed waiting for lock %r", request.name, request.id, key)
            parked.fail(LockTimeout(key, time.time() - parked.since, parked.holder))
            self._warden.never_starts(request)
        elif now >= parked.leaves_at:
            log.info("Task %s[%s] has been parked for as long as it may", request.name, request.id)
            self._leave(parked, partial(self._run, parked, None, room=False))

    def _look_for_revoked(self) -> None:
        for parked in self._all():
            if parked.request.revoked():
                self._leave(parked)

    def _leave(self, parked: ParkedRequest, then: Callable[[], None] | None = None) -> None:
        """Take a request off the shelf, and give up its place; after that, go on with ``then``."""
        self._parked.pop(parked.owner, None)
        self._shelf.take(parked.request)
        if then is not None:
            # Whoever asks again has another owner, and would stand behind its own former place.
            parked.then.append(then)
        parked.line.leave(parked)
        self._give_back(parked)
        self._gone(parked)

    def _gone(self, parked: ParkedRequest, *, took: bool = False) -> None:
        """Let others take the place of one that is not parked any more, perhaps since it took it."""
        row = self._rows.get(parked.group)
        if row is not None:
            row.pop(parked.owner, None)
            if took:
                row.took()
            self._fill(parked.group, row)

    def _fill(self, group: _Group, row: Row[ParkedRequest]) -> None:
        """Have as many stand in the store's line as are missing there."""
        for _ in range(row.missing()):
            parked = row.first()
            while parked is not None and parked.owner not in self._parked:
                parked = row.first()
            if parked is None:
                break
            back = parked.anew()
            if self._parked.pop(parked.owner, None) is None:
                # In a greenlet: meanwhile.
                continue
            self._parked[back.owner] = row[back.owner] = back
            if back.place is None:
                back.line.call(partial(self._enqueue, back))
            else:
                # The store enters it again, with its number.
                back.line.look(back)
        if row.is_over and self._rows.get(group) is row:
            del self._rows[group]

    def _is_over(self, request: Any) -> bool:
        """Return whether the broker has the message back."""
        return self._closed or bool(request.generation != self._warden.generation)

    def _run(self, parked: ParkedRequest, lease: Lease | None, *, room: bool = True) -> None:
        request = parked.request
        if self._is_over(request):
            return
        request.waited = Waited(parked.number, lease, room)
        lock_woken.send(sender=request.task, task_id=request.id, key=parked.claim.key)
        request.send_event("task-woken", key=parked.claim.key)
        self._shelf.run(request)

    def _resume(self, parked: ParkedRequest) -> None:
        """Begin with what was handed over, if that is still so."""
        owner = parked.claim.owner
        if owner not in self._parked:
            # Revoked, or the connection it came on is gone.
            self._give_back(parked)
        elif free_slots(self._worker) < 1:
            if self._give_back(parked):
                parked.line.call(partial(self._decline, parked.group))
        else:
            lease = self._handed.pop(owner, None)
            if lease is not None:
                del self._parked[owner]
                self._shelf.take(parked.request)
                self._run(parked, lease)
                self._gone(parked, took=True)

    def _give_back(self, parked: ParkedRequest) -> bool:
        """Give back what was handed over; False if nothing was, or not any more."""
        lease = self._handed.pop(parked.claim.owner, None)
        if lease is not None:
            self._warden.keeper.give_back(parked.store, lease)
        return lease is not None

    def _wake(self, parked: ParkedRequest) -> None:
        if parked.claim.owner in self._parked:
            self._leave(parked, partial(self._run, parked, None))

    def _climb(self, group: _Group) -> None:
        """Send the first of those who are aside to stand in line for a slot."""
        row = self._rows.get(group)
        if row is None or group in list(self._climbers.values()):
            return
        first = row.first()
        while first is not None and first.owner not in self._parked:
            first = row.first()
        if first is None:
            self._back_in_line(group)
        else:
            self._climbers[id(first.request)] = group
            self._leave(first, partial(self._run, first, None))

    def _back_in_line(self, group: _Group) -> None:
        row = self._rows.get(group)
        if row is not None:
            row.declined = False
            self._fill(group, row)

    def _drawn(self, parked: ParkedRequest, row: Row[ParkedRequest]) -> None:
        """Have one that has got its number stand behind the others; in line, where there are no numbers to be had."""
        row.drawing -= 1
        if parked.owner in self._parked:
            if parked.number is None and not row.keeps_behind:
                parked.aside = False
                self._stand(parked, row)
            else:
                parked.line.forget(parked)
                row.put_behind(parked)
        self._fill(parked.group, row)

    # -- the line's thread, and the listener's ------------------------------------------------------------------------

    def offered(self, parked: ParkedRequest, *, here: bool = False) -> None:
        """Confirm an offer: soon, from any thread, or ``here`` in this one."""
        self._offers.append(parked)
        if here:
            self._take_offers()
        else:
            parked.line.call(self._take_offers)

    def wake(self, parked: ParkedRequest) -> None:
        """Have the executor ask."""
        self._loop.call(lambda: self._wake(parked))

    def _enqueue(self, parked: ParkedRequest) -> None:
        if parked.claim.owner not in self._parked or parked.aside:
            return
        parked.claim = parked.claim_now()
        try:
            answer = parked.line.enqueue(parked, parked.number)
        except StoreUnavailable as error:
            log.debug("Task %s[%s] has no place in line yet: %s", parked.request.name, parked.request.id, error)
            parked.line.call_after(_RETRY_PAUSE, partial(self._enqueue, parked))
            return
        if isinstance(answer, Ticket):
            parked.number = answer.number
        elif isinstance(answer, Lease):
            with self._granting:
                self._hand_over([(parked, answer)])
        else:
            # The executor says why not: it is Completed, or its owner was barred.
            parked.asking = False
            self.wake(parked)

    def _draw(self, parked: ParkedRequest, row: Row[ParkedRequest]) -> None:
        """Get a number, which is worth a place in the line."""
        if parked.owner in self._parked:
            try:
                parked.number = parked.line.queue.draw(parked.claim.key)
            except StoreUnavailable as error:
                log.debug("Task %s[%s] has no number yet: %s", parked.request.name, parked.request.id, error)
                parked.line.call_after(_RETRY_PAUSE, partial(self._draw, parked, row))
                return
        self._loop.call(partial(self._drawn, parked, row))

    def _take_offers(self) -> None:
        with self._granting:
            declined = self._confirm_offers()
        for parked in declined:
            parked.line.call(partial(self._decline_offer, parked))

    def _confirm_offers(self) -> list[ParkedRequest]:
        """Confirm as many offers as there are slots; return the others, one for each key."""
        offers: dict[str, ParkedRequest] = {}
        while self._offers:
            parked = self._offers.popleft()
            owner = parked.claim.owner
            if owner in self._parked and not parked.granted and not parked.aside:
                offers[owner] = parked
        if not offers:
            return []
        free = free_slots(self._worker) - len(self._handed)
        offered = list(offers.values())
        taken, declined = offered[: max(0, free)], offered[max(0, free) :]
        for store in {parked.store for parked in taken}:
            batch = [parked for parked in taken if parked.store is store]
            for parked in batch:
                parked.claim = parked.claim_now()
            answers = batch[0].line.confirm(batch)
            granted = []
            for parked, answer in zip(batch, answers, strict=True):
                if isinstance(answer, Lease):
                    granted.append((parked, answer))
                elif answer is not None:
                    parked.asking = False
                    self.wake(parked)
            self._hand_over(granted)
        return list({parked.group: parked for parked in declined}.values())

    def _decline_offer(self, parked: ParkedRequest) -> None:
        """Decline an offer for which there is no slot, if it is one."""
        try:
            if parked.line.is_offered(parked):
                self._decline(parked.group)
        except StoreUnavailable:
            self._decline(parked.group)

    def _decline(self, group: _Group) -> None:
        """Have all of this key leave the line until one of them has got a slot."""
        row = self._rows.get(group)
        if row is None:
            return
        with self._granting:
            row.decline()
            for parked in list(row.values()):
                if parked.owner not in self._handed:
                    row.put_behind(parked)
                    parked.line.leave(parked)
        self._loop.call(partial(self._climb, group))

    def _hand_over(self, granted: list[tuple[ParkedRequest, Lease]]) -> None:
        for parked, lease in granted:
            if parked.granted:
                # The answer to another question is the same lease.
                continue
            parked.granted = True
            parked.asking = False
            parked.line.forget(parked)
            self._handed[parked.claim.owner] = lease
            self._loop.call(partial(self._resume, parked))
            parked.line.call_after(_HANDING_PATIENCE, partial(self._take_back, parked))

    def _take_back(self, parked: ParkedRequest) -> None:
        if self._give_back(parked):
            log.debug("lock %r: the consumer is busy; its turn is given to the next one", parked.claim.key)
            self._decline(parked.group)
