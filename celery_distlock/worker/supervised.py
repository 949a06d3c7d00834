"""One request in the warden's table: what its executor holds, and what to do about it.

The executor's side is the request's cell (:mod:`celery_distlock.cells`); this is the main process's.
"""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any

from celery_distlock import cells
from celery_distlock.errors import LockLost
from celery_distlock.held import SILENT, TAKEN, TOO_LONG, granted_at
from celery_distlock.keepalive import RENEWALS_PER_TTL, Kept
from celery_distlock.lease import Claim, Lease, Renewal
from celery_distlock.options import LockOptions
from celery_distlock.signals import lock_lost, lock_unsure
from celery_distlock.stores.base import LockStore
from celery_distlock.task.parking import may_wait
from celery_distlock.worker.abort import kill_if_running
from celery_distlock.worker.children import Child

if TYPE_CHECKING:
    from celery_distlock.worker.parked_request import Waited
    from celery_distlock.worker.unique import SupervisedPlace
    from celery_distlock.worker.warden import Warden

__all__ = ["Supervised"]

log = logging.getLogger(__name__)


class Supervised(Kept):
    """One request in the warden's table."""

    accepted = False
    child: Child | None = None
    aborted: LockLost | None = None
    ended = False
    #: Whether the run ended in a way that left a completion record; known once it has ended.
    complete = False
    #: What it was given to the pool to ask for, since its turn has come and a place is kept for it.
    called: Claim | None = None
    #: Monotonic time of the grant, once it was seen.
    granted_at: float | None = None
    #: Of a unique message.
    place: SupervisedPlace | None = None
    _overdue = False
    _state = cells.FREE

    def __init__(
        self,
        warden: Warden,
        request: Any,
        owner: str,
        cell: cells.Cell | None,
        label: str,
        options: LockOptions,
        waited: Waited | None = None,
    ) -> None:
        self.warden = warden
        self.request = request
        self.cell = cell
        self.label = label
        self.options = options
        self.owner = owner
        #: The name in which its executor asks.
        self.asks_as = owner
        self.look_at = time.monotonic() + self.ttl() / RENEWALS_PER_TTL
        #: When it was given to the pool (wall clock), for people.
        self.admitted_at = time.time()
        self._waited = waited
        if waited is not None and waited.called is not None:
            self._expect(waited.called)

    def _expect(self, called: Claim) -> None:
        self.called = called
        if self.cell is not None and not self.cell.expect(called):
            # Nor would it be of any use to the executor.
            self.warden.arena.give(self.cell)
            self.cell = None

    @property
    def store(self) -> LockStore:  # type: ignore[override]  # only looked at, and seldom
        """Where the lease lives."""
        store: LockStore = self.request.task._lock_store
        return store

    @property
    def begun(self) -> bool:
        """Whether an executor has begun, as far as is known."""
        cell = self.cell
        return self.accepted or (cell is not None and cell.state >= cells.ASKING and cell.pid != 0)

    @property
    def is_asking(self) -> bool:
        """Whether its executor has not been granted its key so far, as far as is known."""
        return not self.ended and self.cell is not None and self.cell.state in (cells.READY, cells.ASKING)

    def token(self) -> list[Any]:
        """Return what travels to the executor: the owner, and where its cell is.

        For those that can be parked also whether they may be now, the number of their ticket, and whether a place is
        kept for this owner.
        """
        token = [self.owner, self.warden.arena.id, None if self.cell is None else self.cell.index]
        if may_wait(self.options):
            waited = self._waited
            token.append((waited is None or waited.room) and self.warden.parking.has_room(self.options))
            token.append(None if waited is None else waited.number)
            token.append(self.called is not None)
        return token

    def lease(self) -> Lease | None:
        """Return what the executor holds, as its cell says."""
        if self.cell is None or self.ended or self._overdue:
            return None
        state = self.cell.state
        if state >= cells.ASKING and self.child is None and self.cell.pid:
            # The pool has not told, and after a reconnect it never will: the executor itself says who it is.
            self.warden.found_executor(self, self.cell.pid)
        if state != cells.GRANTED:
            return None
        view = self.cell.view()
        if view is None or view.lease is None or view.lease.owner != self.asks_as:
            return None
        if self.granted_at is None:
            # Nobody has renewed what was not seen before: the deadline is the first one.
            self.granted_at = granted_at(view.lease)
        return view.lease

    def overdue_in(self) -> float:
        """Return in how many seconds the lock will have been held for as long as it may be."""
        if self.options.max_hold is None or self.granted_at is None:
            return math.inf
        return self.granted_at + self.options.max_hold - time.monotonic()

    def hold_no_longer(self, lease: Lease) -> None:
        """End what has held its lock for too long: kill the child, or else let the lease run out."""
        assert self.cell is not None
        self.cell.lose()
        self._tell(lock_lost, lease, TOO_LONG)
        self.abort(lease, TOO_LONG)
        self._overdue = True
        self.warden.keeper.let_run_out(self.store, lease)

    def on_look(self) -> None:
        """See to a request of which the pool will never say that it has ended: a reconnect makes it forget."""
        if self.cell is None or self.ended:
            return
        state, before = self.cell.state, self._state
        self._state = state
        # These are the executor's last words, if it was refused or else; between a look and the next the pool has had
        # time to pass them on.
        refused = state == cells.READY and self.cell.pid != 0
        finished = (refused or state in (cells.OWED, cells.DONE)) and before == state
        if finished or (state == cells.READY and self.warden.forgotten(self)):
            self.warden.end(self)

    def ttl(self) -> float:
        """Return the lease's ttl in seconds; before it is granted, the one that it will probably have."""
        return self.store.lease_ttl(self.options.ttl)

    def on_renewed(self, deadline: float) -> None:
        """Tell the executor."""
        if self.cell is not None and not self.ended:
            self.cell.renewed(deadline)

    def on_lost(self, answer: Renewal) -> None:
        """Tell the executor, and kill it unless it only wants to be warned."""
        lease = self.lease()
        if lease is None or self.cell is None:
            return
        self.cell.lose()
        self._tell(lock_lost, lease, TAKEN)
        if self.options.on_lost == "abort":
            self.abort(lease, TAKEN)

    def on_unsure(self, lease: Lease, reason: Exception) -> None:
        """Tell everybody but the executor, who sees its deadline pass."""
        self._tell(lock_unsure, lease, f"{SILENT}: {reason}")

    def on_reasserted(self, lease: Lease) -> None:
        """Say that the store had lost its data, and that nobody else had come."""
        log.warning("Task %s[%s]: lock %r was entered again: its store had lost its data", *self._who, lease.key)

    def abort(self, lease: Lease, reason: str) -> None:
        """Kill the child if it still executes this request; its result will be LockLost."""
        if self.child is None or self.cell is None:
            # Not a process of its own: its next check() raises, and so does the end of its body.
            return
        # Set first: the pool may report the death before this thread runs again.
        self.aborted = LockLost(lease.key, reason)
        if kill_if_running(self.child, self.cell, lease.owner):
            log.error("Task %s[%s] aborted: lock %r: %s", *self._who, lease.key, reason)
        else:
            self.aborted = None

    @property
    def _who(self) -> tuple[str, str]:
        return self.request.name, self.request.id

    def _tell(self, signal: Any, lease: Lease, what: str) -> None:
        log.warning("Task %s[%s]: lock %r: %s", *self._who, lease.key, what, extra={"key": lease.key})
        signal.send(
            sender=self.request.task, task_id=self.request.id, key=lease.key, owner=lease.owner, fence=lease.fence
        )
