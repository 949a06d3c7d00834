"""Tasks that wait for their turn in the main process: ``lock_on_contention="wait"``.

Authority
    The store says whose turn it is (:class:`~celery_distlock.stores.base.Queueing`); this module stands in line for
    the parked, and hands them to the pool when their turn has come.

A parked task, and the thread in which it happens::

    consumer's thread                 the line's thread                              listener's
    park ────────────────────────────▶ enqueue ─ Lease ───┐
                                          │ Ticket        │
                                          ▼               │
                                       in line, polled    │
                                       in one batch       │
                                          │ an offer      ▼                             hint
                                          └─────▶ is a slot free? ◀───────────────────────┘
                                                    │     │ no
    to the pool, cell ASKING ◀─── yes: called up ───┘     ▼
      │                                                the place is declined, and with it those of all others of this
      ▼                                                key that are parked here; they are aside, and keep their tickets
    the executor asks, as ever:                           │
    that confirms the offer                               │
                                                          │
    climb: the first one joins the pool's own line, ◀─────┘
    and asks again when it has got there; after that
    the others stand in line again

The executor turns the offer into a lease. To save it the time, this process asks in its stead while the task is on its
way to an idle pool process, where the store can be asked without waiting (:mod:`.ahead`). An executor that comes too
late, since an offer ends by itself, is refused, and its task parked again with its ticket. If it never asks, the place
is given back when its request ends.

So a lock is never held by a task that cannot start, and first in, first out holds among those that can. To decline is
up to the line's thread alone: the consumer may be busy for as long as a task of a solo pool runs.

Of each key only the first few stand in the store's line; the others of this worker stand behind them, and keep the
numbers that they have drawn (:mod:`.row`).

An owner that has left the line does not come back: a question under its name may be under way, or the release of what
it was granted. Who is back in line has a new one. One who was called up has not left; nothing is asked under its name
any more by then (:meth:`Line.take <celery_distlock.line.Line.take>`).

What each failure does
    * A hint is lost: the next poll brings the offer.
    * The store does not answer: everybody stays parked, and is in line again, with its ticket, when it does.
    * The connection to the broker is lost: the broker delivers what was parked again; all places are given up.
    * The consumer is busy (solo pool, a blocked event loop): a call it does not hear is taken back, the place declined.
    * Revoked or expired: at once, in the main process. ``lock_timeout``: :class:`LockTimeout`, also at once.
    * ``distlock_max_park``: the task asks once more, and is published again with its ticket.
    * This process dies: its places expire within the claim ttl.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.worker import state

from celery_distlock.errors import LockTimeout, StoreUnavailable, describe
from celery_distlock.lease import Claim, Lease, Ticket
from celery_distlock.line import Line
from celery_distlock.options import LockOptions
from celery_distlock.signals import lock_parked, lock_woken
from celery_distlock.task.parked import Wish
from celery_distlock.task.run import SINCE_HEADER
from celery_distlock.worker.ahead import Ahead
from celery_distlock.worker.parked_request import ParkedRequest, Waited
from celery_distlock.worker.row import Row
from celery_distlock.worker.shelf import put_aside
from celery_distlock.worker.slots import free_slots

if TYPE_CHECKING:
    from celery_distlock.worker.supervised import Supervised
    from celery_distlock.worker.warden import Warden

__all__ = ["Parking"]

log = logging.getLogger(__name__)

#: Seconds for which the consumer may leave a call unheard.
_CALLING_PATIENCE = 0.1
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
        self._ahead = Ahead(warden)
        # By owner.
        self._parked: dict[str, ParkedRequest] = {}
        #: Those whose turn has come, and since when the consumer could know (monotonic): each has been promised a slot.
        self._called: dict[str, tuple[float, ParkedRequest]] = {}
        #: Held by who calls somebody up, and by who sends the others aside: offers are heard of in two threads.
        self._calling = threading.Lock()
        #: Whether the line's thread will look for those whom the consumer does not hear.
        self._listens_for_unheard = False
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
        self._called.clear()
        self._climbers.clear()
        self._rows.clear()
        for parked in leaving:
            if not parked.aside:
                parked.line.leave(parked)
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
        if row.admits(parked.number):
            row[parked.owner] = parked
            parked.line.call(partial(self._enqueue, parked))
        else:
            parked.line.forget(parked)
            row.put_behind(parked)
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
            self._leave(parked, partial(self._run, parked, room=False))

    def _look_for_revoked(self) -> None:
        for parked in self._all():
            if parked.request.revoked():
                self._leave(parked)

    def _leave(self, parked: ParkedRequest, then: Callable[[], None] | None = None) -> None:
        """Take a request off the shelf, and give up its place; after that, go on with ``then``."""
        self._parked.pop(parked.owner, None)
        self._called.pop(parked.owner, None)
        self._shelf.take(parked.request)
        if then is not None:
            # Whoever asks again has another owner, and would stand behind its own former place.
            parked.then.append(then)
        parked.line.leave(parked)
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

    def _run(self, parked: ParkedRequest, called: Claim | None = None, *, room: bool = True) -> None:
        request = parked.request
        if self._is_over(request):
            return
        request.waited = Waited(parked.number, called, room)
        lock_woken.send(sender=request.task, task_id=request.id, key=parked.claim.key)
        request.send_event("task-woken", key=parked.claim.key)
        self._shelf.run(request)

    def _answer(self, parked: ParkedRequest) -> None:
        """Begin with one that was called up, unless it is revoked by now, or we are too late, or its broker is gone."""
        if self._called.pop(parked.owner, None) is None or parked.owner not in self._parked:
            return
        is_idle = self._warden.children_die_alone and free_slots(self._worker, lambda: 0) > 0
        if not is_idle and self._free_slots() < 1:
            parked.line.call(partial(self._decline, parked.group))
            return
        del self._parked[parked.owner]
        if is_idle:
            give = self._ahead.ask(parked)
            self._run(parked, parked.claim)
            give()
        else:
            self._run(parked, parked.claim)
        self._gone(parked, took=True)

    def _wake(self, parked: ParkedRequest) -> None:
        if parked.owner in self._parked:
            self._leave(parked, partial(self._run, parked))

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
            self._leave(first, partial(self._run, first))

    def _back_in_line(self, group: _Group) -> None:
        row = self._rows.get(group)
        if row is not None:
            row.declined = False
            self._fill(group, row)

    # -- the line's thread, and the listener's ------------------------------------------------------------------------

    def offered(self, parked: ParkedRequest) -> None:
        """Begin with one that has been offered its place, or may have been; soon, from any thread."""
        # In this order: whoever is just asking the store for the place sees that there was a hint, if we see him.
        parked.hinted = True
        if parked.asking:
            return
        self._call_up(parked)

    def wake(self, parked: ParkedRequest) -> None:
        """Have the executor ask."""
        self._loop.call(lambda: self._wake(parked))

    def _enqueue(self, parked: ParkedRequest) -> None:
        if parked.owner not in self._parked or parked.aside:
            return
        parked.look_for_completion()
        parked.hinted = False
        try:
            answer = parked.line.enqueue(parked, parked.number)
        except StoreUnavailable as error:
            log.debug("Task %s[%s] has no place in line yet: %s", parked.request.name, parked.request.id, error)
            parked.line.call_after(_RETRY_PAUSE, partial(self._enqueue, parked))
            return
        if isinstance(answer, Ticket):
            parked.number = answer.number
            if parked.hinted:
                self._call_up(parked)
        elif isinstance(answer, Lease):
            # Its executor gets the same one by asking.
            self._call_up(parked)
        else:
            # The executor says why not: it is Completed, or its owner was barred.
            parked.asking = False
            self.wake(parked)

    def _free_slots(self) -> int:
        """Return how many requests could begin at once, or as soon as the pool has heard what its executors know."""
        return free_slots(self._worker, self._warden.ending)

    def _call_up(self, parked: ParkedRequest) -> None:
        with self._calling:
            if parked.owner not in self._parked or parked.aside or parked.called:
                return
            has_slot = self._free_slots() > len(self._called)
            if has_slot and parked.line.take(parked):
                parked.called = True
                self._called[parked.owner] = time.monotonic(), parked
        if not has_slot:
            parked.line.call(partial(self._decline, parked.group))
        elif not parked.called:
            # A poll is under way, in that thread.
            parked.line.call(partial(self._call_up, parked))
        else:
            self._loop.call_first(partial(self._answer, parked))
            self._listen_for_unheard(parked.line)

    def _listen_for_unheard(self, line: Line) -> None:
        with self._calling:
            if not self._called or self._listens_for_unheard:
                return
            self._listens_for_unheard = True
        line.call_after(_CALLING_PATIENCE, partial(self._look_for_unheard, line))

    def _look_for_unheard(self, line: Line) -> None:
        """Decline the places of those whom the consumer leaves waiting."""
        too_early = time.monotonic() - _CALLING_PATIENCE
        with self._calling:
            self._listens_for_unheard = False
            for owner, (since, parked) in list(self._called.items()):
                if since > too_early:
                    self._listens_for_unheard = True
                    line.call_after(since - too_early, partial(self._look_for_unheard, line))
                    break
                if self._called.pop(owner, None) is not None:
                    log.debug("lock %r: the consumer is busy; its turn is given to the next one", parked.claim.key)
                    parked.line.call(partial(self._decline, parked.group))

    def _decline(self, group: _Group) -> None:
        """Have all of this key leave the line until one of them has got a slot."""
        row = self._rows.get(group)
        if row is None:
            return
        with self._calling:
            row.decline()
            for parked in list(row.values()):
                if parked.owner not in self._called:
                    row.put_behind(parked)
                    parked.line.leave(parked)
        self._loop.call(partial(self._climb, group))
