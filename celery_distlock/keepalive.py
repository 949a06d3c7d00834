"""One thread per process that renews leases and gives back what could not be given back at once.

Authority
    The store. This thread only carries questions to it and writes the answers where the holders look.

What it does
    * Every kept lease is renewed at a third of its ttl: all that are due, in one batch per store.
    * A store that does not answer changes nothing: the lease is asked about again soon, and becomes *unsure*
      by itself when its deadline passes (see :mod:`celery_distlock.lease`). Nothing is lost by silence.
    * LOST, or GONE while the holder had not released, is final.
    * A store that learns of a loss by itself has its leases asked about at once.
    * What :meth:`Keeper.give_back` takes over is released in the background until the lease's deadline; after it the
      store forgets by itself.

The thread sleeps in a selector until the next lease is due, until somebody wakes it, or until a watched file
descriptor becomes readable (the warden watches its children that way). It survives every error: a renewal thread that
dies while its holder runs on is the classic failure of such libraries. Under gevent and eventlet the thread, the
selector and the socket pair are the patched ones.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import selectors
import socket
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from celery_distlock.errors import StoreUnavailable
from celery_distlock.lease import Completion, Lease, Renewal, deadline_of
from celery_distlock.stores.base import LockStore

__all__ = ["Keeper", "Kept", "keeper"]

log = logging.getLogger(__name__)

#: How many times per ttl a lease is renewed.
RENEWALS_PER_TTL = 3
#: Seconds between two tries to tell something to a store that does not answer.
#: Shorter than the grace that a store gives an expired holder to speak up.
RETRY_PAUSE = 0.03
#: Completion records to be erased are collected for this many seconds, or until there are that many.
FORGET_EVERY, FORGET_MANY = 1.0, 500
_IDLE = 3600.0


class Kept(ABC):
    """Something whose lease is to be renewed. Only the keeper's thread calls its methods.

    Attributes:
        store: where the lease lives.
        look_at: monotonic time of the next look.
    """

    store: LockStore
    look_at: float
    #: Whether the present silence of the store was reported; the keeper's own note.
    told_unsure = False

    @abstractmethod
    def lease(self) -> Lease | None:
        """Return the lease to renew, or None while there is none."""

    @abstractmethod
    def ttl(self) -> float:
        """Return how many seconds a lease of it lasts, known or expected."""

    @abstractmethod
    def on_renewed(self, deadline: float) -> None:
        """Write down the new deadline (monotonic seconds)."""

    @abstractmethod
    def on_lost(self, answer: Renewal) -> None:
        """Write down that the lease is lost; ``answer`` is LOST or GONE."""

    def on_look(self) -> None:  # noqa: B027  # not everybody cares
        """Called at every look, at least half of a third of the ttl apart."""

    def on_unsure(self, lease: Lease, reason: Exception) -> None:  # noqa: B027  # not everybody cares
        """Note that the deadline has passed without an answer; called once per silence."""

    def on_reasserted(self, lease: Lease) -> None:  # noqa: B027
        """Note that the store had lost its data and the lease was entered again."""


@dataclass
class _Debt:
    """A release that is owed to a store."""

    store: LockStore
    lease: Lease
    completion: Completion | None
    done: Callable[[], None] | None
    due: float
    until: float


@dataclass
class _Erasures:
    """Completion records that may be erased now, per store."""

    since: float
    records: list[tuple[Completion, Callable[[], bool]]] = field(default_factory=list)


class Keeper:
    """The renewing thread. It starts with the first thing to do and ends with :meth:`stop`."""

    def __init__(self, name: str = "distlock-keeper") -> None:
        self.name = name
        self._kept: dict[int, Kept] = {}
        self._debts: list[_Debt] = []
        self._erasures: dict[LockStore, _Erasures] = {}
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._calls: deque[Callable[[], None]] = deque()
        #: Stores that were asked to tell when there is reason to renew early.
        self._telling: weakref.WeakSet[LockStore] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._selector: selectors.BaseSelector | None = None
        self._wake_r: socket.socket | None = None
        self._wake_w: socket.socket | None = None
        self._wakes_at = math.inf
        #: For how long the thread sleeps when nothing is due, in seconds.
        self._horizon = _IDLE
        self._stopping = False
        self._stop_by = math.inf

    # -- from any thread --------------------------------------------------------------------------------------

    def keep(self, kept: Kept) -> None:
        """Look at ``kept`` from now on, first at its ``look_at``."""
        self._kept[id(kept)] = kept
        if self._thread is None:
            self._start()
        # No wake-up is needed while the thread will look early enough anyway: with equal ttls that is nearly always.
        pause = kept.look_at - time.monotonic()
        if pause < self._horizon:
            self._horizon = max(0.0, pause)
        if kept.look_at < self._wakes_at:
            self._wake()

    def listen_to(self, store: LockStore) -> None:
        """Have a store's leases renewed at once when it says that some may have been lost."""
        if store not in self._telling:
            self._telling.add(store)
            store.when_in_doubt(partial(self._doubt, weakref.ref(store)))

    def drop(self, kept: Kept) -> None:
        """Do not look at ``kept`` any more."""
        self._kept.pop(id(kept), None)

    def give_back(
        self,
        store: LockStore,
        lease: Lease,
        completion: Completion | None = None,
        done: Callable[[], None] | None = None,
    ) -> None:
        """Release ``lease`` in the background, as soon as the store answers, at the latest by its deadline.

        ``done`` is called, in the keeper's thread, when the store was told or need not be told any more.
        """
        now = time.monotonic()
        debt = _Debt(store, lease, completion, done, now, max(lease.deadline, now + lease.ttl))
        self.call(lambda: self._debts.append(debt))

    def let_run_out(self, store: LockStore, lease: Lease) -> None:
        """See that a lease ends at its deadline that is not renewed any more.

        Stores end it themselves, but for those in which it lives as long as this process's session.
        """
        self.call_after(max(0.0, lease.remaining), lambda: self.give_back(store, lease))

    def forget(self, store: LockStore, completion: Completion, still: Callable[[], bool]) -> None:
        """Erase a completion record soon, together with others, if ``still()`` is true by then."""

        def add() -> None:
            self._erasures.setdefault(store, _Erasures(time.monotonic())).records.append((completion, still))

        self._calls.append(add)
        if self._thread is None:
            self._start()
        if time.monotonic() + FORGET_EVERY < self._wakes_at:
            self._wake()

    def call(self, function: Callable[[], None]) -> None:
        """Run ``function`` in the keeper's thread, at once."""
        self._calls.append(function)
        if self._thread is None:
            self._start()
        self._wake()

    def call_after(self, delay: float, function: Callable[[], None]) -> None:
        """Run ``function`` in the keeper's thread after ``delay`` seconds."""
        due = time.monotonic() + delay
        self.call(lambda: self._timers.append((due, function)))

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` in the keeper's thread, once, when ``fd`` becomes readable; the fd stays the caller's."""

        def register() -> None:
            assert self._selector is not None
            self._selector.register(fd, selectors.EVENT_READ, callback)

        self.call(register)

    def stop(self, timeout: float = 5.0) -> None:
        """Settle what is owed, as far as the stores answer within ``timeout`` seconds, and end the thread."""
        thread = self._thread
        if thread is None:
            return
        self._stop_by = deadline = time.monotonic() + timeout
        self._stopping = True
        self._wake()
        if thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def kept(self) -> Iterable[Kept]:
        """What is looked at, as of now."""
        return list(self._kept.values())

    def _doubt(self, store: Callable[[], LockStore | None]) -> None:
        def look() -> None:
            for kept in self.kept:
                if kept.store is store():
                    kept.look_at = 0.0

        if self._kept:
            self.call(look)

    # -- the thread -------------------------------------------------------------------------------------------

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None:
                return
            self._selector = selectors.DefaultSelector()
            self._wake_r, self._wake_w = socket.socketpair()
            self._wake_r.setblocking(False)
            self._wake_w.setblocking(False)
            self._selector.register(self._wake_r, selectors.EVENT_READ, self._drain)
            self._stopping = False
            self._stop_by = math.inf
            thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            thread.start()
            self._thread = thread

    def _wake(self) -> None:
        wake = self._wake_w
        if wake is not None:
            # A full pipe means that a wake-up is already under way; a closed one that the thread is ending.
            with contextlib.suppress(OSError):
                wake.send(b"\0")

    def _drain(self) -> None:
        assert self._wake_r is not None
        with contextlib.suppress(BlockingIOError):
            while self._wake_r.recv(4096):
                pass

    def _run(self) -> None:
        assert self._selector is not None
        while True:
            try:
                # While the thread is awake everybody sends a wake-up: what is entered after the due time was
                # computed would otherwise be looked at too late.
                self._wakes_at = math.inf
                if self._stopping:
                    # A last look at the children that died just now.
                    for selected, _ in self._selector.select(0.0):
                        self._selected(selected)
                self._run_calls()
                self._work(time.monotonic(), flush=self._stopping)
                now = time.monotonic()
                if self._stopping and (not self._debts or now >= self._stop_by):
                    break
                wakes_at = self._next_due(now)
                pause = 0.0 if self._calls else max(0.0, wakes_at - now)
                self._wakes_at = wakes_at
                for selected, _ in self._selector.select(pause):
                    self._selected(selected)
            except Exception:
                log.exception("%s: unexpected error; the thread goes on", self.name)
                time.sleep(RETRY_PAUSE)
        with self._lock:
            self._thread = None
            self._selector.close()
            assert self._wake_r is not None
            assert self._wake_w is not None
            self._wake_r.close()
            self._wake_w.close()

    def _selected(self, selected: selectors.SelectorKey) -> None:
        assert self._selector is not None
        if selected.fileobj is not self._wake_r:
            self._selector.unregister(selected.fileobj)
        with self._unshaken():
            selected.data()

    @contextlib.contextmanager
    def _unshaken(self) -> Iterator[None]:
        """Go on with the others if what is done for one raises: one broken holder or store must not end them all."""
        try:
            yield
        except Exception:
            log.exception("%s: unexpected error; the thread goes on", self.name)

    def _run_calls(self) -> None:
        while self._calls:
            with self._unshaken():
                self._calls.popleft()()

    def _next_due(self, now: float) -> float:
        # Short tasks come and go between two wake-ups. If the thread slept for long whenever nobody is there at the
        # moment, each of them would have to wake it; so it sleeps no longer than the last of them would have let it,
        # and doubles that while nobody comes.
        if not self._kept:
            self._horizon = min(_IDLE, 2.0 * self._horizon + RETRY_PAUSE)
        due = now + self._horizon
        for kept in list(self._kept.values()):
            due = min(due, kept.look_at)
        for debt in self._debts:
            due = min(due, debt.due)
        for when, _ in self._timers:
            due = min(due, when)
        for erasures in self._erasures.values():
            due = min(due, erasures.since + FORGET_EVERY)
        return due

    def _work(self, now: float, flush: bool = False) -> None:
        # Releases first: somebody is waiting for those.
        self._settle_debts(now)
        self._renew_due(now)
        self._run_timers(now)
        self._erase(now, flush)

    def _run_timers(self, now: float) -> None:
        due = [timer for timer in self._timers if timer[0] <= now]
        for timer in due:
            self._timers.remove(timer)
            with self._unshaken():
                timer[1]()

    def _settle_debts(self, now: float) -> None:
        due = [debt for debt in self._debts if debt.due <= now]
        for store in {debt.store for debt in due}:
            debts = [debt for debt in due if debt.store is store]
            try:
                store.release([debt.lease for debt in debts], [debt.completion for debt in debts])
            except Exception as error:
                if not isinstance(error, StoreUnavailable):
                    log.exception("%s: unexpected error; the release is tried again", self.name)
                self._postpone(debts, error)
                continue
            for debt in debts:
                self._pay(debt)

    def _postpone(self, debts: list[_Debt], error: Exception) -> None:
        now = time.monotonic()
        for debt in debts:
            if now < debt.until:
                debt.due = now + RETRY_PAUSE
                continue
            log.warning(
                "lock %r: could not be released until its lease ran out: %s",
                debt.lease.key,
                error,
                extra={"key": debt.lease.key, "owner": debt.lease.owner},
            )
            self._pay(debt)

    def _pay(self, debt: _Debt) -> None:
        self._debts.remove(debt)
        if debt.done is not None:
            with self._unshaken():
                debt.done()

    def _renew_due(self, now: float) -> None:
        batches: dict[LockStore, list[tuple[Kept, Lease]]] = {}
        for kept in list(self._kept.values()):
            lease = self._lease_due(kept, now)
            if lease is not None:
                batches.setdefault(kept.store, []).append((kept, lease))
        for store, batch in batches.items():
            self._renew(store, batch)

    def _lease_due(self, kept: Kept, now: float) -> Lease | None:
        try:
            interval = kept.ttl() / RENEWALS_PER_TTL
            # Whoever is due within half an interval comes along: one round trip for all.
            if kept.look_at > now + interval / 2:
                return None
            kept.look_at = now + interval
            kept.on_look()
            return kept.lease()
        except Exception:
            log.exception("%s: unexpected error; the others are renewed", self.name)
            kept.look_at = now + RETRY_PAUSE
            return None

    def _renew(self, store: LockStore, batch: list[tuple[Kept, Lease]]) -> None:
        self.listen_to(store)
        sent = time.monotonic()
        try:
            answers = store.renew([lease for _, lease in batch])
            if len(answers) != len(batch):
                raise ValueError(f"{len(answers)} answers for {len(batch)} leases")
        except Exception as error:
            if not isinstance(error, StoreUnavailable):
                # Whatever it is, the store has not said that the leases are lost.
                log.exception("%s: unexpected error; the renewal is tried again", self.name)
            now = time.monotonic()
            for kept, lease in batch:
                kept.look_at = now + min(RETRY_PAUSE, lease.ttl / (2 * RENEWALS_PER_TTL))
                if now >= lease.deadline and not kept.told_unsure:
                    with self._unshaken():
                        self._unsure(kept, lease, error)
            return
        for (kept, lease), answer in zip(batch, answers, strict=True):
            with self._unshaken():
                self._answered(kept, lease, answer, sent)

    @staticmethod
    def _unsure(kept: Kept, lease: Lease, error: Exception) -> None:
        if kept.lease() is not None:
            kept.told_unsure = True
            kept.on_unsure(lease, error)

    def _answered(self, kept: Kept, lease: Lease, answer: Renewal, sent: float) -> None:
        if answer in (Renewal.HELD, Renewal.REASSERTED):
            kept.told_unsure = False
            kept.on_renewed(deadline_of(sent, lease.ttl))
            if answer is Renewal.REASSERTED:
                kept.on_reasserted(lease)
        # A lease that its holder released meanwhile is not lost, it is over: look again before saying so.
        elif kept.lease() is not None:
            self.drop(kept)
            kept.on_lost(answer)

    def _erase(self, now: float, flush: bool) -> None:
        for store, erasures in list(self._erasures.items()):
            if not flush and now < erasures.since + FORGET_EVERY and len(erasures.records) < FORGET_MANY:
                continue
            del self._erasures[store]
            try:
                store.forget([completion for completion, still in erasures.records if still()])
            except StoreUnavailable as error:
                log.debug("%d completion records are left to expire: %s", len(erasures.records), error)
            except Exception:
                log.exception("%s: unexpected error; completion records are left to expire", self.name)


_keeper: Keeper | None = None


def keeper() -> Keeper:
    """Return this process's keeper; its thread starts with the first lease."""
    global _keeper
    if _keeper is None:
        _keeper = Keeper()
    return _keeper


def _forget_keeper() -> None:
    # The thread did not come along through the fork, and the parent's leases are the parent's.
    global _keeper
    _keeper = None


os.register_at_fork(after_in_child=_forget_keeper)
