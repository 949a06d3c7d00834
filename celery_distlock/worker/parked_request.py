"""One task that is parked: what it waits for, until when it may, and how it fails if that is too long."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

from celery import states
from celery.app.trace import TraceInfo

from celery_distlock.lease import Claim, Ticket, new_owner
from celery_distlock.line import Line, Waiter, enter
from celery_distlock.options import LockOptions, store_settings
from celery_distlock.task.parked import Wish
from celery_distlock.task.redelivery import completion_of
from celery_distlock.task.run import label_of
from celery_distlock.worker.visibility import Visibility

if TYPE_CHECKING:
    from celery_distlock.worker.parking import Parking

__all__ = ["ParkedRequest", "Waited"]


class Waited(NamedTuple):
    """What a request has that was parked, when it is handed to the pool.

    Attributes:
        number: of its ticket, if it got one.
        called: the claim in whose name its turn has come, and for which a place is kept; None if it only asks.
        room: whether it may be parked again.
    """

    number: int | None
    called: Claim | None
    room: bool


class ParkedRequest(Waiter):
    """A request in line. The line's thread calls it."""

    def __init__(self, parking: Parking, request: Any, wish: Wish, options: LockOptions) -> None:
        super().__init__(wish.claim)
        self.parking = parking
        #: Whether it stands behind others of its key that are parked here, and not in the store's line.
        self.aside = False
        #: Whether its turn has come, and the consumer knows.
        self.called = False
        #: Whether an offer was heard of, though the store has not given it a place yet.
        self.hinted = False
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
        #: What follows once its place has been given up, at most once.
        self.then: list[Callable[[], None]] = []
        #: Whether its executor asks for a lease, and not for one that an earlier attempt has left it, either.
        self.wants_a_lease_only = not options.hold_on_retry
        self.line: Line = enter(self.store, self)

    def anew(self) -> ParkedRequest:
        """Return the same under another owner, in line again with its ticket if it has one."""
        new = copy.copy(self)
        Waiter.__init__(new, replace(self.claim, owner=new_owner()))
        new.aside, new.called, new.hinted, new.then = False, False, False, []
        if new.number is not None:
            new.place = Ticket(new.claim, new.number, 0)
        new.line = enter(new.store, new)
        return new

    def left(self) -> None:
        """Go on with what follows. Called in several threads, perhaps."""
        super().left()
        with contextlib.suppress(IndexError):
            self.parking.soon(self.then.pop())

    @property
    def owner(self) -> str:
        """Under whose name it stands in line."""
        return self.claim.owner

    @property
    def position(self) -> int | None:
        """How many wait before it, as the store said last; None if it is not in line."""
        return self.place.ahead if isinstance(self.place, Ticket) and not self.aside else None

    @property
    def ends_at(self) -> float:
        """When something is to be done about it, whatever the store says."""
        return min(self.late_at, self.leaves_at, self.expires_at)

    def offered(self) -> None:
        """Begin, soon."""
        self.parking.offered(self)

    def refused(self) -> None:
        """Ask anew, as another owner: this one was barred."""
        self.parking.wake(self)

    def look_for_completion(self) -> None:
        """Claim no place for a message whose copy has done its work, if it may have one."""
        claim, request = self.claim, self.request
        if claim.completion is None and (request.delivery_info.get("redelivered") or Visibility.exposed(request)):
            completion = completion_of(request.task, claim.key, label_of(request.request_dict))
            self.claim = replace(claim, completion=completion)

    def fail(self, error: Exception) -> None:
        """Fail the request, which is in no executor, with all that Celery does when its executor fails it."""
        request = self.request
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
