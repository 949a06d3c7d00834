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

import logging
import os
import threading
import time
from typing import Any

from celery.worker import state

from celery_distlock import cells
from celery_distlock.errors import LockLost
from celery_distlock.held import SILENT, TAKEN
from celery_distlock.keepalive import RENEWALS_PER_TTL, Keeper, Kept
from celery_distlock.lease import Completion, Lease, Renewal, new_owner
from celery_distlock.options import LockOptions
from celery_distlock.signals import lock_lost, lock_unsure
from celery_distlock.task import event_loop
from celery_distlock.task.run import OPTIONS_HEADER, Run
from celery_distlock.worker.abort import kill_if_running
from celery_distlock.worker.children import Child, Children
from celery_distlock.worker.copies import Copies
from celery_distlock.worker.loop import ConsumerThread
from celery_distlock.worker.reaping import reap
from celery_distlock.worker.visibility import Visibility

__all__ = ["Supervised", "Warden"]

log = logging.getLogger(__name__)

#: ``lock_on_unsure="abort"`` acts when this part of the ttl is left.
_UNSURE_MARGIN = 0.1
#: Seconds after which a request that was handed to the pool on a connection since lost, and never began, is given up.
_FORGOTTEN_AFTER = 3600.0
#: Seconds to wait for an acknowledgement before the completion record is left to expire.
_ACK_PATIENCE = 30.0


class Supervised(Kept):
    """One request in the warden's table."""

    def __init__(
        self, warden: Warden, request: Any, owner: str, cell: cells.Cell | None, run: Run, options: LockOptions
    ) -> None:
        self.warden = warden
        self.request = request
        self.cell = cell
        self.run = run
        self.label = run.label
        self.options = options
        self.store = request.task._lock_store
        self.owner = owner
        self.accepted = False
        self.child: Child | None = None
        self.aborted: LockLost | None = None
        self.ended = False
        #: Whether the run ended in a way that left a completion record; known once it has ended.
        self.complete = False
        self.admitted = time.monotonic()
        self._state = cells.READY
        self.look_at = time.monotonic() + options.ttl / RENEWALS_PER_TTL

    @property
    def begun(self) -> bool:
        """Whether an executor has begun, as far as is known."""
        return self.accepted or (self.cell is not None and self.cell.state >= cells.ASKING)

    def token(self) -> list[Any]:
        """Return what travels to the executor: the owner, and where its cell is."""
        return [self.owner, self.warden.arena.id, None if self.cell is None else self.cell.index]

    def lease(self) -> Lease | None:
        """Return what the executor holds, as its cell says."""
        if self.cell is None or self.ended:
            return None
        state = self.cell.state
        if state >= cells.ASKING and self.child is None:
            # The pool has not told, and after a reconnect it never will: the executor itself says who it is.
            self.warden.begun(self, self.cell.pid)
        if state != cells.GRANTED:
            return None
        view = self.cell.view()
        if view is None or view.lease is None or view.lease.owner != self.owner:
            return None
        return view.lease

    def on_look(self) -> None:
        """See to a request of which the pool will never say that it has ended: a reconnect makes it forget."""
        if self.cell is None or self.ended:
            return
        state, before = self.cell.state, self._state
        self._state = state
        # These two are the executor's last words; between a look and the next the pool has had time to pass them on.
        finished = state in (cells.OWED, cells.DONE) and before == state
        if finished or (state == cells.READY and self.warden.forgotten(self)):
            self.warden.end(self)

    def ttl(self) -> float:
        """Return the lease's ttl in seconds; before it is granted, the one that will be asked for."""
        return self.options.ttl

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
        self.copies = Copies(self.loop)
        self.generation = 0
        self._children = Children(self.keeper, self._child_died)
        # By owner, and the latest of each run.
        self._table: dict[str, Supervised] = {}
        self._by_label: dict[str, Supervised] = {}
        self._unsure_watch: _UnsureWatch | None = None
        self._pid = os.getpid()
        Warden.current = self

    # -- the consumer's side ------------------------------------------------------------------------------------

    def connected(self, consumer: Any) -> None:
        """Note a new broker connection."""
        self.disconnected()
        self.loop.connected(consumer)
        self.copies.connected(consumer)

    def disconnected(self) -> None:
        """Note that the broker connection is gone: what it held cannot be acknowledged any more, and is given back."""
        self.generation += 1
        self.visibility.drop_all()

    def received(self, request: Any) -> None:
        """Note a message."""
        request.generation = self.generation
        self.visibility.hold(request)
        if request.id in state.requests:
            label = run_of(request).label
            original = self.running(label)
            if original is not None:
                self.copies.hide(request, label, original.request)

    def settled(self, request: Any) -> None:
        """Note that a message was acknowledged or rejected."""
        self.visibility.drop(request)

    def running(self, label: str) -> Supervised | None:
        """Return the run of that label, if an executor of this worker has begun it.

        One that was only handed to the pool does not count: at a reconnect the pool may have thrown it away.
        """
        supervised = self._by_label.get(label)
        return supervised if supervised is not None and supervised.begun else None

    def admit(self, request: Any, run: Run) -> Supervised:
        """Enter a request that is about to be handed to the pool, and give it its owner and cell."""
        self._suspect(request)
        request_dict = request.request_dict
        task = request.task
        given = OPTIONS_HEADER in request_dict
        options = task._lock_options_of(_Headers(request_dict)) if given else task._lock_options
        owner = new_owner()
        supervised = Supervised(self, request, owner, self.arena.take(owner), run, options)
        request_dict["properties"] = {**(request_dict.get("properties") or {}), "distlock": supervised.token()}
        self._table[owner] = self._by_label[supervised.label] = supervised
        if supervised.cell is not None:
            self.keeper.keep(supervised)
        return supervised

    def accepted(self, supervised: Supervised, pid: int) -> None:
        """Note that an executor has begun."""
        # In a thread pool it may have stood in line since it was admitted.
        self._suspect(supervised.request)
        supervised.accepted = True
        self.begun(supervised, pid)

    def begun(self, supervised: Supervised, pid: int) -> None:
        """Watch the child that executes a request. Known from the pool, or else from the request's cell."""
        if supervised.child is not None or not getattr(self.worker.pool, "uses_semaphore", False):
            # Only prefork has executors that die alone.
            return
        supervised.child = self._children.get(pid)
        if supervised.child.dead:
            # It ended before its acceptance was read.
            self.end(supervised)
        elif supervised.options.on_unsure == "abort" and supervised.cell is not None:
            self._watch_unsure(supervised)

    def forgotten(self, supervised: Supervised) -> bool:
        """Return whether a request that never began can be given up: its connection is gone, and it is long ago.

        Should the pool start it after all, it finds its cell in other hands and keeps its lease alive itself.
        """
        lost = supervised.request.generation != self.generation and not supervised.accepted
        return lost and time.monotonic() > supervised.admitted + _FORGOTTEN_AFTER

    def _suspect(self, request: Any) -> None:
        """Mark a message that may have been given to somebody else while it was in reserve here.

        The other one may have done the work: as with a message that the broker delivers again, the executor then asks
        for the completion record.
        """
        if request.generation != self.generation or Visibility.exposed(request):
            request.delivery_info["redelivered"] = True

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
        cell = supervised.cell
        if cell is not None:
            self._settle(supervised, cell)
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
            self.keeper.give_back(supervised.store, Lease.unknown(view.lease.key, supervised.owner, view.lease.ttl))
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

    def _watch_unsure(self, supervised: Supervised) -> None:
        if self._unsure_watch is None:
            self._unsure_watch = _UnsureWatch()
        self._unsure_watch.add(supervised)

    def stop(self) -> None:
        """Settle what is owed and end the threads; called when the pool has drained."""
        if self._pid != os.getpid():
            return
        for supervised in list(self._table.values()):
            if supervised.child is None or supervised.child.dead:
                self.end(supervised)
        self.visibility.stop()
        event_loop.gone()
        if self._unsure_watch is not None:
            self._unsure_watch.stop()
        self.keeper.stop()
        self.loop.close()
        if Warden.current is self:
            Warden.current = None


def run_of(request: Any) -> Run:
    """Return the run of a worker's request, as its executor will compute it."""
    request_dict = request.request_dict
    return Run.of_message(request_dict)


class _Headers:
    """A request dict read like Celery's context: what is custom in it is a header."""

    def __init__(self, request_dict: dict[str, Any]) -> None:
        self.headers = request_dict

    def __getattr__(self, name: str) -> Any:
        return self.headers.get(name)


class _UnsureWatch:
    """Aborts, before their deadline passes, the tasks that asked for it (``lock_on_unsure="abort"``).

    A thread of its own: the keeper's may be waiting for the very store that is silent.
    """

    def __init__(self) -> None:
        self._watched: dict[int, Supervised] = {}
        self._changed = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="distlock-unsure", daemon=True)
        self._thread.start()

    def add(self, supervised: Supervised) -> None:
        self._watched[id(supervised)] = supervised
        self._changed.set()

    def stop(self) -> None:
        self._stopping = True
        self._changed.set()
        # It waits for nothing but this.
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            watched = list(self._watched.values())
            pause = min((one.options.ttl * _UNSURE_MARGIN / 2 for one in watched), default=None)
            self._changed.wait(pause)
            self._changed.clear()
            for one in watched:
                try:
                    self._look(one)
                except Exception:
                    # This thread must go on for the others; this one's executor sees its deadline pass all the same.
                    log.exception("Task %s[%s] could not be watched", one.request.name, one.request.id)

    def _look(self, one: Supervised) -> None:
        lease = one.lease()
        late = lease is not None and lease.remaining < lease.ttl * _UNSURE_MARGIN
        if one.ended or late:
            self._watched.pop(id(one), None)
        if lease is not None and late:
            one.abort(lease, SILENT)
