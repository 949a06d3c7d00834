"""Waiting in a store's line, for everybody in this process who waits in place: locks, eager tasks, direct calls.

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

import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Sequence

from celery_distlock.errors import StoreUnavailable
from celery_distlock.held import give_back
from celery_distlock.lease import Claim, Completed, Contended, Lease, Offer, Ticket
from celery_distlock.stores.base import Listener, LockStore, Queueing

__all__ = ["wait_in_line"]

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


class _Waiter:
    """One who waits."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.place: Ticket | Offer | None = None
        #: Monotonic time from which a poll may tell something new; all are polled every now and then anyway.
        self.look_at = math.inf
        #: Set when there is something to do: an offer to confirm, or a failure to raise.
        self.event = threading.Event()
        #: Set when its place has been given up.
        self.gone = threading.Event()
        self.failure: StoreUnavailable | None = None
        #: Set once the store said that this owner cannot be granted the key any more.
        self.refused = False
        #: Whether the store was asked for the key and has not said no: it may have been granted.
        self.asking = False


class _Line:
    """Those of this process who wait in one store."""

    def __init__(self, store: LockStore) -> None:
        assert isinstance(store, Queueing)
        self.store: LockStore = store
        self.queue: Queueing = store
        # Weakly: an exception raised by a signal can strike where nothing can be done about it. A place that nobody
        # waits for any more must not be kept.
        self._waiters: weakref.WeakValueDictionary[tuple[str, str], _Waiter] = weakref.WeakValueDictionary()
        self._leaving: list[_Waiter] = []
        self._wake = threading.Event()
        self._gap = False
        #: When all are polled next.
        self._tick = 0.0
        #: When the line is closed, if nobody comes.
        self._closes_at = math.inf
        self._listener: Listener | None = None
        self._thread: threading.Thread | None = None
        self._silent_since: float | None = None
        self._failure: StoreUnavailable | None = None

    # -- from the waiters' threads ------------------------------------------------------------------------------------

    def enter(self, waiter: _Waiter) -> None:
        """Take in a waiter, before it is known to the store: a hint may be quicker than the ticket. Under ``_lock``."""
        self._waiters[waiter.claim.key, waiter.claim.owner] = waiter
        if self._listener is None or self._listener.closed:
            self._listener = self.queue.listen(self._on_offer, self._on_gap)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="distlock-line", daemon=True)
            self._thread.start()

    def wait(self, waiter: _Waiter, end: float) -> Lease | Completed | None:
        """Return what the waiter got; None if it was nothing until ``end``.

        Raises:
            StoreUnavailable: the store has been silent for too long.
        """
        try:
            waiter.asking = True
            assert self._listener is not None
            answer = self.queue.enqueue(waiter.claim, listener=self._listener.name)
            if isinstance(answer, Contended):
                return None
            if not isinstance(answer, Ticket):
                return answer
            waiter.asking = False
            self._placed(waiter, answer)
            if waiter.look_at < self._tick:
                self._wake.set()
            got = self._wait(waiter, end)
            if got is not None:
                return got
        except BaseException:
            self._leave(waiter)
            raise
        finally:
            self._waiters.pop((waiter.claim.key, waiter.claim.owner), None)
        self._leave(waiter)
        waiter.gone.wait(_FAREWELL)
        if self._failure is not None:
            # "Taken" would be a guess.
            raise self._failure
        return None

    def _wait(self, waiter: _Waiter, end: float) -> Lease | Completed | None:
        while True:
            left = end - time.monotonic()
            if left <= 0 or not waiter.event.wait(left if left < threading.TIMEOUT_MAX else None) or waiter.refused:
                return None
            waiter.event.clear()
            if waiter.failure is not None:
                raise waiter.failure
            try:
                waiter.asking = True
                [got] = self.queue.confirm([waiter.claim])
                if got is not None:
                    return got
            except StoreUnavailable as error:
                # It may have been confirmed: the next poll that is answered will say that there is something to take.
                log.debug("lock %r: an offer could not be confirmed: %s", waiter.claim.key, error)
            else:
                waiter.asking = False
            waiter.look_at = 0.0
            self._wake.set()

    def _leave(self, waiter: _Waiter) -> None:
        if waiter.asking:
            give_back(self.store, Lease.unknown(waiter.claim.key, waiter.claim.owner, waiter.claim.ttl))
            waiter.gone.set()
        else:
            self._leaving.append(waiter)
            self._wake.set()

    def _on_offer(self, key: str, owner: str) -> None:
        waiter = self._waiters.get((key, owner))
        if waiter is not None:
            waiter.event.set()

    def _on_gap(self) -> None:
        self._gap = True
        self._wake.set()

    # -- the line's thread --------------------------------------------------------------------------------------------

    @property
    def _interval(self) -> float:
        return self.queue.claim_ttl / _POLLS_PER_TTL

    def _placed(self, waiter: _Waiter, place: Ticket | Offer) -> None:
        waiter.place = place
        waiter.look_at = place.look_at if isinstance(place, Ticket) else math.inf

    def _run(self) -> None:
        while True:
            try:
                self._wake.wait(self._pause())
                self._wake.clear()
                self._say_farewell()
                self._poll()
                now = time.monotonic()
                if self._waiters or self._leaving:
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
        waiters = list(self._waiters.values())
        due = min(self._tick, *(waiter.look_at for waiter in waiters)) if waiters else self._closes_at
        # Nobody tells when the last waiter has gone.
        return max(0.0, min(_IDLE, due - time.monotonic()))

    def _closed(self) -> bool:
        with _lock:
            if self._waiters or self._leaving:
                return False
            if _lines.get(self.store) is self:
                del _lines[self.store]
            listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        return True

    def _say_farewell(self) -> None:
        leaving, self._leaving = self._leaving, []
        self._withdraw([waiter.claim for waiter in leaving])
        for waiter in leaving:
            waiter.gone.set()

    def _withdraw(self, claims: Sequence[Claim]) -> None:
        if not claims:
            return
        try:
            self.queue.withdraw(claims)
        except StoreUnavailable as error:
            log.debug("%d places in the line are left to expire: %s", len(claims), error)

    def _poll(self) -> None:
        now = time.monotonic()
        gap, self._gap = self._gap, False
        everybody = gap or now >= self._tick or self._silent_since is not None
        if everybody:
            self._tick = now + self._interval
        waiters = list(self._waiters.values())
        due = [waiter for waiter in waiters if waiter.place is not None and (everybody or waiter.look_at <= now)]
        places = [waiter.place for waiter in due if waiter.place is not None]
        if not places:
            if not self._waiters:
                self._silent_since = self._failure = None
            return
        listener = self._listener
        try:
            answers = self.queue.poll(places, listener="" if listener is None else listener.name)
        except StoreUnavailable as error:
            self._silence(error)
            return
        self._silent_since = self._failure = None
        zombies = []
        for waiter, answer in zip(due, answers, strict=True):
            if (waiter.claim.key, waiter.claim.owner) not in self._waiters:
                # It has got the key, or has left, while the poll was under way, which may have entered it again.
                zombies.append(waiter.claim)
            elif answer is None:
                waiter.refused = True
                waiter.event.set()
            else:
                self._placed(waiter, answer)
                if isinstance(answer, Offer):
                    waiter.event.set()
        self._withdraw(zombies)

    def _silence(self, error: StoreUnavailable) -> None:
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
            log.info("%d wait for locks in a store that does not answer: %s", len(self._waiters), error)
        self._failure = error
        if now - self._silent_since >= PATIENCE:
            for waiter in list(self._waiters.values()):
                waiter.failure = error
                waiter.event.set()


_lines: dict[LockStore, _Line] = {}
_lock = threading.Lock()


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
    waiter = _Waiter(claim)
    with _lock:
        line = _lines.get(store)
        if line is None:
            line = _lines[store] = _Line(store)
        line.enter(waiter)
    return line.wait(waiter, end)


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    _lines.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
