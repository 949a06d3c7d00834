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

from celery_distlock import cells
from celery_distlock.errors import LockLost
from celery_distlock.held import SILENT, TAKEN
from celery_distlock.keepalive import RENEWALS_PER_TTL, Keeper, Kept
from celery_distlock.lease import Completion, Lease, Renewal, new_owner
from celery_distlock.options import LockOptions
from celery_distlock.signals import lock_lost, lock_unsure
from celery_distlock.task.run import Run
from celery_distlock.worker.abort import kill_if_running
from celery_distlock.worker.children import Child, Children
from celery_distlock.worker.copies import Copies
from celery_distlock.worker.reaping import Reaping
from celery_distlock.worker.visibility import Visibility

__all__ = ["Supervised", "Warden"]

log = logging.getLogger(__name__)

#: ``lock_on_unsure="abort"`` acts when this part of the ttl is left.
_UNSURE_MARGIN = 0.1


class Supervised(Kept):
    """One request in the warden's table."""

    def __init__(self, warden: Warden, request: Any, cell: cells.Cell | None, run: Run, options: LockOptions) -> None:
        self.warden = warden
        self.request = request
        self.cell = cell
        self.run = run
        self.options = options
        self.store = request.task._lock_store
        self.owner = new_owner()
        self.child: Child | None = None
        self.aborted: LockLost | None = None
        self.ended = False
        #: Whether the run ended in a way that left a completion record; known once it has ended.
        self.complete = False
        self.look_at = time.monotonic() + options.ttl / RENEWALS_PER_TTL

    def token(self) -> list[Any]:
        """Return what travels to the executor: the owner, and where its cell is."""
        return [self.owner, self.warden.arena.id, None if self.cell is None else self.cell.index]

    def lease(self) -> Lease | None:
        """Return what the executor holds, as its cell says."""
        view = self.cell.view() if self.cell is not None else None
        if view is None or view.state != cells.GRANTED or view.lease is None or view.lease.owner != self.owner:
            return None
        return view.lease

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
        self.copies = Copies()
        self.reaping = Reaping(worker)
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
        """Note a new broker connection: messages of the old one cannot be acknowledged any more."""
        self.generation += 1
        self.visibility.drop_all()
        self.copies.connected(consumer)

    def received(self, request: Any) -> None:
        """Note a message."""
        request.generation = self.generation
        self.visibility.hold(request)

    def settled(self, request: Any) -> None:
        """Note that a message was acknowledged or rejected."""
        self.visibility.drop(request)

    def running(self, label: str) -> Supervised | None:
        """Return the run of that label, if it is in this worker's pool."""
        return self._by_label.get(label)

    def admit(self, request: Any) -> Supervised:
        """Enter a request that is about to be handed to the pool, and give it its owner and cell."""
        request_dict = request.request_dict
        task = request.task
        options = task._lock_options_of(_Headers(request_dict))
        supervised = Supervised(self, request, self.arena.take(), run_of(request), options)
        request_dict["properties"] = {**(request_dict.get("properties") or {}), "distlock": supervised.token()}
        self._table[supervised.owner] = self._by_label[supervised.run.label] = supervised
        return supervised

    def accepted(self, supervised: Supervised, pid: int) -> None:
        """Note that an executor has begun."""
        supervised.look_at = time.monotonic() + supervised.options.ttl / RENEWALS_PER_TTL
        if getattr(self.worker.pool, "uses_semaphore", False):
            # Only prefork has executors that die alone.
            supervised.child = self._children.get(pid)
            if supervised.child.dead:
                # It ended before its acceptance was read.
                self.end(supervised)
                return
        if supervised.cell is not None:
            self.keeper.keep(supervised)
            if supervised.options.on_unsure == "abort" and supervised.child is not None:
                self._watch_unsure(supervised)

    # -- ends -------------------------------------------------------------------------------------------------

    def end(self, supervised: Supervised) -> None:
        """Take a request out of the table: its executor has ended it, or is dead. May be called twice."""
        # The consumer and the keeper may both come here for one request; pop() lets one of them in.
        if self._table.pop(supervised.owner, None) is None:
            return
        supervised.ended = True
        self.keeper.drop(supervised)
        if self._by_label.get(supervised.run.label) is supervised:
            del self._by_label[supervised.run.label]
        cell = supervised.cell
        if cell is None:
            return
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
        elif view.state in (cells.GRANTED, cells.RELEASING):
            self.keeper.give_back(supervised.store, view.lease, completion)
        elif completion is not None:
            self._forget_later(supervised, completion)
        self.arena.give(cell)

    def _child_died(self, child: Child) -> None:
        for supervised in list(self._table.values()):
            if supervised.child is child:
                self.end(supervised)
        self.reaping.child_died()

    @staticmethod
    def _completion(supervised: Supervised, view: cells.View | None) -> Completion | None:
        if view is None or view.lease is None or not view.complete:
            return None
        return Completion(view.lease.key, supervised.run.label, supervised.request.task._lock_completion_ttl)

    def _forget_later(self, supervised: Supervised, completion: Completion) -> None:
        """Erase the completion record once the message is acknowledged, unless a copy of it may be about.

        A copy can exist only if the message was itself a copy, was out of sight for too long, or if the
        connection it came on is gone; then the record stays for its time.
        """
        request = supervised.request

        def no_copies() -> bool:
            return bool(
                # The message's word, not the request's: that one also says yes when the broker could not be told.
                request.message.acknowledged
                and request.generation == self.generation
                and not request.delivery_info.get("redelivered")
                and not exposed
            )

        exposed = Visibility.exposed(request)
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
        if self._unsure_watch is not None:
            self._unsure_watch.stop()
        self.keeper.stop()
        if Warden.current is self:
            Warden.current = None


def run_of(request: Any) -> Run:
    """Return the run of a worker's request, as its executor will compute it."""
    request_dict = request.request_dict
    return Run.of(_Headers(request_dict), request_dict)


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

    def _run(self) -> None:
        while not self._stopping:
            watched = list(self._watched.values())
            pause = min((one.options.ttl * _UNSURE_MARGIN / 2 for one in watched), default=None)
            self._changed.wait(pause)
            self._changed.clear()
            for one in watched:
                if one.ended:
                    self._watched.pop(id(one), None)
                    continue
                lease = one.lease()
                if lease is not None and lease.remaining < lease.ttl * _UNSURE_MARGIN:
                    self._watched.pop(id(one), None)
                    one.abort(lease, SILENT)
