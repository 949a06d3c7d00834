"""The warden: what the worker's main process does for the locks of the tasks it runs.

Authority
    Executors acquire and release; the store decides. The warden reads, in each request's cell, what the executor was
    granted, and acts for it when it cannot: it renews (a body that holds the GIL, or a child that is busy for hours,
    cannot), and it gives back what a dead executor held. It never acquires.

The table
    A request is entered when the pool hands it to an executor, and leaves when the executor reported its end or is
    *confirmed dead*. ``terminate``, ``cancel`` and time limits are neither: such a request goes on being renewed
    until its child is dead, since until then it may be working. Celery's own sets are not used; they change under an
    iterating thread, and they forget a request before its child is dead.

::

    admit ─▶ accepted ──────────────▶ ended by its executor ─▶ cell read once more ─▶ cell free
                 │                                                   ▲
                 ├─ child dead (pidfd) ─── whatever it held is released ─┘
                 └─ store says LOST ─▶ cell told, child killed if it is still at it, result LockLost

Failures
    * store silent: nothing changes; the lease becomes unsure by itself, and ``lock_on_unsure`` decides.
    * warden late (main process stopped): executors see their deadlines pass, and ask the store before their result
      counts.
    * main process killed: its children are killed by the kernel, the leases run out.
"""

from __future__ import annotations

import functools
import os
import time
from typing import Any

from celery.worker import state

from celery_distlock import cells
from celery_distlock.keepalive import Keeper
from celery_distlock.lease import Claim, Completion, Lease, new_owner
from celery_distlock.line import hear_in
from celery_distlock.task import event_loop
from celery_distlock.task.message import UNIQUE_HEADER, cancel_later, token_of
from celery_distlock.task.run import label_of
from celery_distlock.worker.children import Child, Children
from celery_distlock.worker.copies import Copies
from celery_distlock.worker.limits import LimitWatch
from celery_distlock.worker.loop import ConsumerThread
from celery_distlock.worker.parking import Parking
from celery_distlock.worker.reaping import reap
from celery_distlock.worker.shelf import Shelf
from celery_distlock.worker.supervised import Supervised
from celery_distlock.worker.unique import SupervisedPlace
from celery_distlock.worker.visibility import Visibility

__all__ = ["Warden"]

#: Seconds after which a request that was handed to the pool on a connection since lost, and never began, is given up.
_FORGOTTEN_AFTER = 3600.0
#: Seconds between two looks at what was handed to the pool on a connection since lost. A task for which a place is
#: kept, and which has not begun at the first look, is given up then: its executor was free.
_LOST_EVERY = 1.0
#: Seconds to wait for an acknowledgement before the completion record is left to expire.
_ACK_PATIENCE = 30.0


class Warden:
    """One per worker. ``current`` is the one of this process, None outside of a worker's main process."""

    current: Warden | None = None

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.arena = cells.Arena()
        cells.install(self.arena)
        self.keeper = Keeper("distlock-warden")
        self.visibility = Visibility()
        self.loop = ConsumerThread()
        self.shelf = Shelf(self.loop)
        self.copies = Copies(self.loop, self.shelf)
        self.parking = Parking(self)
        self.generation = 0
        self._disconnected_at = 0.0
        self._looks_soon = False
        self._children = Children(self.keeper, self._child_died)
        # By owner, and the latest of each run.
        self._table: dict[str, Supervised] = {}
        self._by_label: dict[str, Supervised] = {}
        self._limit_watch: LimitWatch | None = None
        self._pid = os.getpid()
        Warden.current = self

    # -- the consumer's side ------------------------------------------------------------------------------------

    def connected(self, consumer: Any) -> None:
        """Note a new broker connection."""
        self.disconnected()
        self.loop.connected(consumer)
        self.shelf.connected(consumer)

    def disconnected(self) -> None:
        """Note that the broker connection is gone: what it held cannot be acknowledged any more, and is given back."""
        self.generation += 1
        self._disconnected_at = time.monotonic()
        self.visibility.drop_all()
        self.copies.drop_all()
        self.parking.drop_all()
        if self._table:
            self._look_soon()

    def closing(self) -> None:
        """Note that the worker is about to stop: what is parked goes back to the broker, its places to others."""
        self.parking.close()

    def received(self, request: Any) -> None:
        """Note a message."""
        request.generation = self.generation
        self.visibility.hold(request)
        if request.id in state.requests:
            label = label_of(request.request_dict)
            original = self.running(label)
            if original is not None:
                self.copies.hide(request, label, original.request)

    def never_starts(self, request: Any) -> None:
        """Free the place of a unique message that was revoked, or has expired."""
        token = token_of(request.request_dict, request.id)
        if token is not None:
            cancel_later(self.keeper, request.task._lock_store, token, window=False)

    def running(self, label: str) -> Supervised | None:
        """Return the run of that label, if an executor of this worker has begun it.

        One that was only handed to the pool does not count: at a reconnect the pool may have thrown it away.
        """
        supervised = self._by_label.get(label)
        return supervised if supervised is not None and supervised.begun else None

    def admit(self, request: Any, label: str) -> Supervised:
        """Enter a request that is about to be handed to the pool, and give it its owner and cell."""
        self._suspect(request)
        request_dict = request.request_dict
        task = request.task
        # What is custom in it is a header.
        options = task._lock_options_of(request_dict)
        waited, request.waited = request.waited, None
        owner = new_owner() if waited is None or waited.called is None else waited.called.owner
        supervised = Supervised(self, request, owner, self.arena.take(owner), label, options, waited)
        request_dict["properties"] = {**(request_dict.get("properties") or {}), "distlock": supervised.token()}
        self._table[owner] = self._by_label[label] = supervised
        if supervised.cell is not None:
            self.keeper.keep(supervised)
        if UNIQUE_HEADER in request_dict:
            supervised.place = SupervisedPlace.of(supervised, request_dict)
        return supervised

    def turned_away(self, request: Any) -> None:
        """Note that a request does not get to the pool, though its turn may have come."""
        waited = request.waited
        if waited is not None and waited.called is not None:
            request.waited = waited._replace(called=None)
            self.give_up_place(request, waited.called)
        self.parking.climbed(request)

    def take_back(self, supervised: Supervised) -> bool:
        """Give back the place that is kept for a request, unless its executor has begun, or nobody can tell."""
        called, cell = supervised.called, supervised.cell
        if called is None or cell is None or supervised.ended or supervised.accepted or not cell.take_back():
            return False
        self.give_up_place(supervised.request, called)
        return True

    def give_up_place(self, request: Any, called: Claim) -> None:
        """Give back the place that is kept for one who will not ask for it, be it an offer or a lease by now."""
        self.keeper.give_back(request.task._lock_store, Lease.unknown(called.key, called.owner, called.ttl))

    def accepted(self, supervised: Supervised, pid: int) -> None:
        """Note that an executor has begun."""
        supervised.accepted = True
        self.parking.has_slot(supervised)
        if supervised.options.max_hold is not None and supervised.cell is not None:
            self._watch_limits(supervised)
        if self.children_die_alone:
            self.found_executor(supervised, pid)
        else:
            # In a thread pool it may have stood in line since it was admitted.
            self._suspect(supervised.request)

    def found_executor(self, supervised: Supervised, pid: int) -> None:
        """Watch the child that executes a request. Known from the pool, or else from the request's cell."""
        if supervised.child is not None or not self.children_die_alone:
            return
        supervised.child = self._children.get(pid)
        if supervised.child.dead:
            # It ended before its acceptance was read.
            self.end(supervised)
        elif supervised.options.on_unsure == "abort" and supervised.cell is not None:
            self._watch_limits(supervised)

    @functools.cached_property
    def children_die_alone(self) -> bool:
        """Whether executors are processes of their own."""
        # Of all pools' executors only prefork's do. The warden is made before the pool.
        return bool(getattr(self.worker.pool, "uses_semaphore", False))

    def forgotten(self, supervised: Supervised) -> bool:
        """Return whether a request that never began can be given up: its connection is gone, and it is long ago.

        Should the pool start it after all, it finds its cell in other hands and keeps its lease alive itself.
        """
        lost = supervised.request.generation != self.generation and not supervised.begun
        return lost and time.monotonic() > self._disconnected_at + _FORGOTTEN_AFTER

    def _look_at_lost(self) -> None:
        """See to what was in the pool when the connection was lost: of some of it the pool will say nothing more."""
        self._looks_soon = False
        lost = [each for each in list(self._table.values()) if each.request.generation != self.generation]
        for supervised in lost:
            if self.take_back(supervised):
                # The others must not be kept waiting.
                self.end(supervised)
            else:
                supervised.on_look()
        if lost:
            self._look_soon()

    def _look_soon(self) -> None:
        if not self._looks_soon:
            self._looks_soon = True
            self.keeper.call_after(_LOST_EVERY, self._look_at_lost)

    def _suspect(self, request: Any) -> None:
        """Mark a message that may have been given to somebody else while it was in reserve here.

        The other one may have done the work: as with a message that the broker delivers again, the executor then asks
        for the completion record.
        """
        if request.generation != self.generation or self.visibility.exposed(request):
            request.delivery_info["redelivered"] = True

    def ending(self) -> int:
        """Return how many requests are over, but for the news of it: their executors have given back their locks."""
        over = (cells.RELEASING, cells.OWED, cells.DONE)
        return sum(each.cell is not None and each.cell.state in over for each in list(self._table.values()))

    def held(self) -> list[dict[str, Any]]:
        """Return the leases that this worker's executors hold, for people."""
        held = []
        for supervised in list(self._table.values()):
            lease = supervised.lease()
            if lease is not None:
                request = supervised.request
                held.append(
                    {
                        "id": request.id,
                        "name": request.name,
                        "key": lease.key,
                        "owner": lease.owner,
                        "fence": lease.fence,
                        "remaining": lease.remaining,
                        "since": supervised.admitted_at,
                        "pid": supervised.cell.pid if supervised.cell is not None else None,
                    }
                )
        return held

    # -- ends -------------------------------------------------------------------------------------------------

    def end(self, supervised: Supervised) -> None:
        """Take a request out of the table: its executor has ended it, or is dead. May be called twice."""
        # The consumer and the keeper may both come here for one request; pop() lets one of them in.
        if self._table.pop(supervised.owner, None) is None:
            return
        supervised.ended = True
        self.keeper.drop(supervised)
        if self._by_label.get(supervised.label) is supervised:
            del self._by_label[supervised.label]
        self.parking.climbed(supervised.request)
        if supervised.place is not None:
            supervised.place.settle()
        cell = supervised.cell
        if cell is not None:
            self._settle(supervised, cell)
        elif supervised.called is not None and not supervised.accepted:
            self.give_up_place(supervised.request, supervised.called)
        # Last, when what it held is known: copies that waited for this run go on.
        acknowledged = supervised.request.acknowledged
        self.copies.original_ended(supervised.label, supervised.complete and acknowledged)

    def _settle(self, supervised: Supervised, cell: cells.Cell) -> None:
        """Give back what the executor could not, and free its cell."""
        supervised.complete = cell.complete
        if cell.state == cells.DONE and not supervised.complete:
            self.arena.give(cell)
            return
        view = cell.view()
        completion = self._completion(supervised, view)
        if view is None or view.lease is None:
            # None: killed in the middle of writing, before the store was asked.
            pass
        elif view.state == cells.ASKING:
            # The command may be on its way to the store: whatever it grants is void.
            self.keeper.give_back(supervised.store, Lease.unknown(view.lease.key, supervised.asks_as, view.lease.ttl))
        elif view.state in (cells.GRANTED, cells.RELEASING, cells.OWED):
            self.keeper.give_back(supervised.store, view.lease, completion)
        elif completion is not None:
            self._forget_later(supervised, completion)
        self.arena.give(cell)

    def _child_died(self, child: Child) -> None:
        for supervised in list(self._table.values()):
            if supervised.child is child:
                self.end(supervised)
        reap(self.worker, self.loop)

    @staticmethod
    def _completion(supervised: Supervised, view: cells.View | None) -> Completion | None:
        if view is None or view.lease is None or not view.complete:
            return None
        return Completion(view.lease.key, supervised.label, supervised.request.task._lock_completion_ttl)

    def _forget_later(self, supervised: Supervised, completion: Completion) -> None:
        """Erase the completion record once the message is acknowledged, unless a copy of it may be about.

        A copy can exist only if the message was itself a copy, was out of sight for too long, or if the
        connection it came on is gone; then the record stays for its time.
        """
        request = supervised.request
        exposed = Visibility.exposed(request)
        give_up = time.monotonic() + _ACK_PATIENCE

        def no_copies() -> bool:
            if request.generation != self.generation or request.delivery_info.get("redelivered") or exposed:
                return False
            # The message's word, not the request's: that one says yes also when the broker could not be told.
            if not request.message.acknowledged:
                # Outside of prefork the consumer's thread acknowledges, a moment later.
                if time.monotonic() < give_up:
                    self.keeper.forget(supervised.store, completion, no_copies)
                return False
            return True

        self.keeper.forget(supervised.store, completion, no_copies)

    # -- the rest ---------------------------------------------------------------------------------------------

    def _watch_limits(self, supervised: Supervised) -> None:
        if self._limit_watch is None:
            self._limit_watch = LimitWatch()
        self._limit_watch.add(supervised)

    def stop(self) -> None:
        """Settle what is owed and end the threads; called when the pool has drained."""
        if self._pid != os.getpid():
            return
        for supervised in list(self._table.values()):
            if supervised.child is None or supervised.child.dead:
                self.end(supervised)
        self.parking.close()
        self.visibility.stop()
        event_loop.gone()
        if self._limit_watch is not None:
            self._limit_watch.stop()
        self.keeper.stop()
        hear_in(None)
        self.loop.close()
        if Warden.current is self:
            Warden.current = None
