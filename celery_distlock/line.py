"""Waiting in a store's line, for everybody in this process: locks, eager tasks, direct calls, and parked tasks.

Authority
    The store. It decides whose turn it is; this module keeps the places, and wakes the waiter whose turn it is.

One line per store and process::

    waiter's thread                       the line's thread                  the listener's thread
    enqueue ─ Lease ─▶ done               polls all places in one batch,     hears hints
       │ Ticket                           every third of the claim ttl,            │
       ▼                                  when something is known to end,          │
    sleeps on its event ◀──── Offer ───── and after a gap in the hints             │
       │  ▲      └──────────────────────────────────────────────────────── hint ───┘
       │  └── None: the offer is gone
       ▼
    confirm ─ Lease ─▶ done

A hint is all it takes, so a hand-over costs the waiter one round trip. Without waiters there are, a few seconds later,
neither threads nor connection.

What each failure does
    * The time is over: the place is given up, with an offer that may have been made to it meanwhile.
    * The waiter is interrupted: the same; where that happened during a question to the store, its owner is released
      as of unknown state, and barred, in the background.
    * The store does not answer: everybody waits on, for five seconds of silence; then :class:`StoreUnavailable`.
    * Fork: the child begins with no line at all; who waits in the parent waits in the parent.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence

from celery_distlock.errors import StoreUnavailable
from celery_distlock.keepalive import keeper
from celery_distlock.lease import Claim, Completed, Contended, Lease, Offer, Ticket
from celery_distlock.stores.base import EventLoop, Listener, LockStore, Queueing

__all__ = ["Line", "Waiter", "enter", "hear_in", "wait_in_line"]

log = logging.getLogger(__name__)

#: How many times per claim ttl a place is refreshed.
_POLLS_PER_TTL = 3
#: Seconds for which a store may be silent before those who wait for it give up.
PATIENCE = 5.0
#: Seconds between two tries to reach a store that does not answer.
_RETRY_PAUSE = 0.1
#: Seconds that giving up a place may delay the answer "no"; past it, it happens in the background.
_FAREWELL = 0.01
#: Seconds without a waiter after which the line is closed.
_IDLE = 3.0


class Waiter:
    """One who waits.

    Attributes:
        claim: what is wanted.
        place: what the store said last; None before it was asked, and for one whom it is not to be asked about.
        look_at: monotonic time from which a poll may tell something new; all are polled every now and then anyway.
        asking: whether the store was asked for the key and has not said no: it may have been granted.
    """

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.place: Ticket | Offer | None = None
        self.look_at = math.inf
        self.asking = False
        #: Set when its place has been given up.
        self.gone = threading.Event()

    def left(self) -> None:
        """Its place has been given up. Called in the line's thread, the keeper's, or by who had it leave."""
        self.gone.set()

    def offered(self) -> None:
        """There is, or may be, an offer to confirm. Called in any thread, more than once, and must return at once."""

    def refused(self) -> None:
        """The store said that this owner cannot be granted the key any more. Called in the line's thread."""

    def unanswered(self, error: StoreUnavailable) -> None:
        """The store has been silent for :data:`PATIENCE` seconds, or more. Called in the line's thread."""


class Line:
    """Those of this process who wait in one store; see :func:`enter`."""

    def __init__(self, store: LockStore) -> None:
        assert isinstance(store, Queueing)
        self.store: LockStore = store
        self.queue: Queueing = store
        # Weakly: an exception raised by a signal can strike where nothing can be done about it. A place that nobody
        # waits for any more must not be kept.
        self._waiters: weakref.WeakValueDictionary[tuple[str, str], Waiter] = weakref.WeakValueDictionary()
        self._leaving: deque[Waiter] = deque()
        #: Those who are to be asked about before the next tick; from any thread, and the line's own.
        self._early: deque[Waiter] = deque()
        self._heap: list[tuple[float, int, Waiter]] = []
        self._calls: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._wake = threading.Event()
        #: Held while a poll is under way.
        self._polling = threading.Lock()
        self._gap = False
        #: When all are polled next.
        self._tick = 0.0
        #: When the thread wakes up by itself; infinite while it is awake: it may be about to sleep.
        self._wakes_at = math.inf
        #: When the line is closed, if nobody comes.
        self._closes_at = math.inf
        self._listener: Listener | None = None
        self._thread: threading.Thread | None = None
        self._silent_since: float | None = None
        self._is_closed = False
        #: What the store's present silence was reported as; None while it answers.
        self.failure: StoreUnavailable | None = None

    # -- from any thread ----------------------------------------------------------------------------------------------

    def enter(self, waiter: Waiter) -> None:
        """Take in a waiter, before it is known to the store: a hint may be quicker than the ticket. Under ``_lock``."""
        self._waiters[waiter.claim.key, waiter.claim.owner] = waiter
        if self._listener is None or self._listener.closed:
            self._listener = self.queue.listen(self._on_offer, self._on_gap, _event_loop)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="distlock-line", daemon=True)
            self._thread.start()
        elif self._wakes_at > time.monotonic() + self._interval:
            # While nobody waits it sleeps for longer than a place lasts that nobody refreshes.
            self._wake.set()

    def enqueue(self, waiter: Waiter, ticket: int | None = None) -> Lease | Ticket | Contended | Completed:
        """Ask the store for the key, or a place.

        Raises:
            StoreUnavailable: there was no answer; the waiter may have been granted the key.
        """
        waiter.asking = True
        listener = self._listener
        answer = self.queue.enqueue(waiter.claim, listener="" if listener is None else listener.name, ticket=ticket)
        if isinstance(answer, Contended):
            waiter.asking = False
        elif isinstance(answer, Ticket):
            waiter.asking = False
            self._placed(waiter, answer)
        return answer

    def confirm(self, waiters: Sequence[Waiter]) -> list[Lease | Completed | None]:
        """Confirm offers.

        Returns:
            one for each; None: there was no offer, or no answer. It is asked about again.
        """
        for waiter in waiters:
            waiter.asking = True
        try:
            answers = self.queue.confirm([waiter.claim for waiter in waiters])
        except StoreUnavailable as error:
            # It may have been confirmed: the next poll that is answered will say that there is something to take.
            log.debug("%d offers could not be confirmed: %s", len(waiters), error)
            answers = [None] * len(waiters)
        else:
            for waiter, answer in zip(waiters, answers, strict=True):
                waiter.asking = answer is not None
        for waiter, answer in zip(waiters, answers, strict=True):
            if answer is None:
                self.look(waiter)
        return answers

    def look(self, waiter: Waiter) -> None:
        """Have the store asked about this one as soon as possible."""
        self._early_look(waiter, 0.0)

    def forget(self, waiter: Waiter) -> None:
        """Ask nothing about this one any more; its place is not given up."""
        self._waiters.pop((waiter.claim.key, waiter.claim.owner), None)

    def take(self, waiter: Waiter) -> bool:
        """Ask nothing about this one any more, since somebody else confirms its offer.

        Returns:
            False if a poll is under way, which may enter it in the line again when it has had and released the key:
            try once more in the line's thread, where none is.
        """
        if not self._polling.acquire(blocking=False):
            return False
        try:
            self.forget(waiter)
        finally:
            self._polling.release()
        return True

    def leave(self, waiter: Waiter) -> None:
        """Give up a waiter's place, and whatever it may have been granted or offered; soon, and in the background."""
        self.forget(waiter)
        claim = waiter.claim
        if waiter.asking:
            keeper().give_back(self.store, Lease.unknown(claim.key, claim.owner, claim.ttl), done=waiter.left)
            return
        with _lock:
            closed = self._is_closed
            if not closed:
                self._leaving.append(waiter)
        if closed:
            # It had been forgotten before: there is no place that anybody has kept since.
            waiter.left()
        else:
            self._wake.set()

    def call(self, function: Callable[[], None]) -> None:
        """Run ``function`` in the line's thread, soon. Only while somebody is in the line."""
        self._calls.append(function)
        self._wake.set()

    def call_after(self, delay: float, function: Callable[[], None]) -> None:
        """Run ``function`` after ``delay`` seconds, in the line's thread; from any thread."""
        timer = (time.monotonic() + delay, next(self._numbers), function)
        # One call, as pushing and popping are elsewhere: the interpreter lets no other thread in between.
        heapq.heappush(self._timers, timer)
        if self._timers[0] is timer and threading.current_thread() is not self._thread:
            self._wake.set()

    def _on_offer(self, key: str, owner: str) -> None:
        waiter = self._waiters.get((key, owner))
        if waiter is not None:
            waiter.offered()

    def _on_gap(self) -> None:
        self._gap = True
        self._wake.set()

    # -- the line's thread --------------------------------------------------------------------------------------------

    @property
    def _interval(self) -> float:
        return self.queue.claim_ttl / _POLLS_PER_TTL

    def _placed(self, waiter: Waiter, place: Ticket | Offer) -> None:
        waiter.place = place
        waiter.look_at = math.inf
        if isinstance(place, Ticket) and place.look_at < self._tick:
            self._early_look(waiter, place.look_at)

    def _early_look(self, waiter: Waiter, when: float) -> None:
        waiter.look_at = when
        self._early.append(waiter)
        if threading.current_thread() is not self._thread:
            self._wake.set()

    def _run(self) -> None:
        while True:
            try:
                pause = self._pause()
                self._wakes_at = time.monotonic() + pause
                self._wake.wait(pause)
                self._wakes_at = math.inf
                self._wake.clear()
                self._make_calls()
                self._say_farewell()
                self._poll_due()
                now = time.monotonic()
                if self._waiters or self._leaving or self._timers:
                    self._closes_at = math.inf
                elif self._closes_at == math.inf:
                    self._closes_at = now + _IDLE
                elif now >= self._closes_at and self._closed():
                    return
            except Exception:
                log.exception("the line for %s: unexpected error; the thread goes on", self.store.name)
                time.sleep(_RETRY_PAUSE)

    def _pause(self) -> float:
        if self._silent_since is not None:
            return _RETRY_PAUSE
        due = self._tick if self._waiters else self._closes_at
        for heap in (self._timers, self._heap):
            if heap:
                due = min(due, heap[0][0])
        for waiter in list(self._early):
            due = min(due, waiter.look_at)
        # Nobody tells when the last waiter has gone.
        return max(0.0, min(_IDLE, due - time.monotonic()))

    def _make_calls(self) -> None:
        while self._calls:
            self._calls.popleft()()
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()

    def _closed(self) -> bool:
        with _lock:
            if self._waiters or self._leaving or self._calls:
                return False
            if _lines.get(self.store) is self:
                del _lines[self.store]
            self._is_closed = True
            listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        return True

    def _say_farewell(self) -> None:
        leaving = []
        while self._leaving:
            leaving.append(self._leaving.popleft())
        self._withdraw([waiter.claim for waiter in leaving])
        for waiter in leaving:
            waiter.left()

    def _withdraw(self, claims: Sequence[Claim]) -> None:
        if not claims:
            return
        try:
            self.queue.withdraw(claims)
        except StoreUnavailable as error:
            log.debug("%d places in the line are left to expire: %s", len(claims), error)

    def _poll_due(self) -> None:
        with self._polling:
            due = self._due()
            places = [waiter.place for waiter in due if waiter.place is not None]
            if not places:
                if not self._waiters:
                    self._silent_since = self.failure = None
                return
            listener = self._listener
            try:
                answers = self.queue.poll(places, listener="" if listener is None else listener.name)
            except StoreUnavailable as error:
                self._silence(error)
                return
            self._silent_since = self.failure = None
            # Who has got the key, or has left, while the poll was under way, which may have entered it again.
            zombies = [waiter for waiter in due if not self._has(waiter)]
        for waiter, answer in zip(due, answers, strict=True):
            if not self._has(waiter):
                continue
            if answer is None:
                waiter.refused()
            else:
                self._placed(waiter, answer)
                if isinstance(answer, Offer):
                    waiter.offered()
        self._withdraw([waiter.claim for waiter in zombies])

    def _has(self, waiter: Waiter) -> bool:
        return self._waiters.get((waiter.claim.key, waiter.claim.owner)) is waiter

    def _due(self) -> list[Waiter]:
        """Return whom to ask about: everybody at every tick, and between two ticks those whose wait may be over."""
        now = time.monotonic()
        while self._early:
            waiter = self._early.popleft()
            heapq.heappush(self._heap, (waiter.look_at, next(self._numbers), waiter))
        gap, self._gap = self._gap, False
        if gap or now >= self._tick or self._silent_since is not None:
            self._tick = now + self._interval
            self._heap.clear()
            return [waiter for waiter in list(self._waiters.values()) if waiter.place is not None]
        due: dict[int, Waiter] = {}
        while self._heap and self._heap[0][0] <= now:
            waiter = heapq.heappop(self._heap)[2]
            if self._has(waiter) and waiter.look_at <= now and waiter.place is not None:
                due[id(waiter)] = waiter
        return list(due.values())

    def _silence(self, error: StoreUnavailable) -> None:
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
            log.info("%d wait for locks in a store that does not answer: %s", len(self._waiters), error)
        self.failure = error
        if now - self._silent_since >= PATIENCE:
            for waiter in list(self._waiters.values()):
                waiter.unanswered(error)


class _Blocked(Waiter):
    """A thread, or greenlet, that waits in place."""

    def __init__(self, claim: Claim) -> None:
        super().__init__(claim)
        #: Set when there is something to do: an offer to confirm, or a failure to raise.
        self._event = threading.Event()
        self._failure: StoreUnavailable | None = None
        self._refused = False

    def offered(self) -> None:
        """Wake it."""
        self._event.set()

    def refused(self) -> None:
        """Wake it."""
        self._refused = True
        self._event.set()

    def unanswered(self, error: StoreUnavailable) -> None:
        """Wake it."""
        self._failure = error
        self._event.set()

    def wait(self, line: Line, end: float) -> Lease | Completed | None:
        """Return what it got; None if it was nothing until ``end``.

        Raises:
            StoreUnavailable: the store has been silent for too long.
        """
        try:
            answer = line.enqueue(self)
            if isinstance(answer, Contended):
                return None
            if not isinstance(answer, Ticket):
                return answer
            got = self._sleep(line, end)
            if got is not None:
                return got
        except BaseException:
            line.leave(self)
            raise
        finally:
            line.forget(self)
        line.leave(self)
        self.gone.wait(_FAREWELL)
        if line.failure is not None:
            # "Taken" would be a guess.
            raise line.failure
        return None

    def _sleep(self, line: Line, end: float) -> Lease | Completed | None:
        while True:
            left = end - time.monotonic()
            if left <= 0 or not self._event.wait(left if left < threading.TIMEOUT_MAX else None) or self._refused:
                return None
            self._event.clear()
            if self._failure is not None:
                raise self._failure
            [got] = line.confirm([self])
            if got is not None:
                return got


_lines: dict[LockStore, Line] = {}
_lock = threading.Lock()
_event_loop: EventLoop | None = None


def hear_in(loop: EventLoop | None) -> None:
    """Have the lines that begin from now on hear hints in an event loop's thread; None: in threads of their own."""
    global _event_loop
    _event_loop = loop


def enter(store: LockStore, waiter: Waiter) -> Line:
    """Enter a waiter into this process's line for ``store``, and return that."""
    with _lock:
        line = _lines.get(store)
        if line is None:
            line = _lines[store] = Line(store)
        line.enter(waiter)
    return line


def wait_in_line(store: LockStore, claim: Claim, timeout: float | None = None) -> Lease | Completed | None:
    """Wait for a key, first in, first out.

    Arguments:
        store: one that is :class:`Queueing`.
        claim: what to wait for.
        timeout: seconds to wait; None waits for ever.

    Returns:
        the lease; :class:`Completed`, if the claim asks for that; None when the time is over.

    Raises:
        StoreUnavailable: the store gave no answer when it was asked for a place in the line, or for five seconds
            later on, or just now that the time is over.
    """
    end = math.inf if timeout is None else time.monotonic() + timeout
    waiter = _Blocked(claim)
    return waiter.wait(enter(store, waiter), end)


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    _lines.clear()
    hear_in(None)


os.register_at_fork(after_in_child=_after_fork_in_child)
