"""The line of those who wait, in Redis.

Authority
    The server, as for locks. A place is offered by whichever script frees it, or finds it free: the release of the
    holder, above all, and the polls of those who wait; so whatever happens, the next poll of a live waiter puts it
    right. `queue.lua` holds that part; what is stored where: ``layout.py``.

What each failure does

* A waiter dies: its place lasts until its deadline, at most ``claim_ttl`` from its last poll. An offer made to it
  lasts as long. The other waiters are told when that is, and ask again right then.
* A holder dies: the waiters are told when its lease ends, and ask again right then; it is condemned, and replaced
  a grace later (see ``store.py``).
* A hint is lost: the next poll brings the offer.
* The server was stopped: a poll first refreshes those who ask, and then takes the others for gone.
* The data are gone: the first poll enters its waiters again with their old numbers. For the ttl of its claim such a
  waiter is not offered the key, for it had waited for somebody, who has this long to re-assert his lease; the release
  of a lease that had the key for itself ends that.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from celery_distlock.lease import Claim, Completed, Contended, Lease, Offer, Ticket, deadline_of
from celery_distlock.stores.base import EventLoop, Listener, Queueing
from celery_distlock.stores.redis import arguments
from celery_distlock.stores.redis.connection import Answer, Connections
from celery_distlock.stores.redis.layout import Layout
from celery_distlock.stores.redis.listener import RedisListener
from celery_distlock.stores.redis.scripts import ACQUIRE, CONFIRM, ENQUEUE, POLL, WITHDRAW, Script

__all__ = ["RedisQueueing"]

#: How many waiters one script looks at, so that others get a word in between.
_MANY = 100
#: Seconds that a confirmation may still take whose answer was not waited for at first.
_SOON = 0.005


class RedisQueueing(Queueing):
    """The part of :class:`RedisStore` that deals with waiters."""

    name: str
    _layout: Layout
    _make: Callable[[], Any]
    _connections: Connections
    _listeners: weakref.WeakSet[RedisListener]

    if TYPE_CHECKING:

        def _run(self, script: Script, calls: list[bytes], give_up: float | None = None) -> Answer: ...

    def enqueue(
        self, claim: Claim, *, listener: str = "", ticket: int | None = None
    ) -> Lease | Ticket | Contended | Completed:
        """Get the key, or join the line; see :meth:`Queueing.enqueue`.

        Raises:
            StoreUnavailable: there was no answer.
        """
        answer = self._run(ENQUEUE, [self._enqueue(claim, listener, ticket)])
        reply = answer.replies[0]
        if isinstance(reply, bytes):
            return _lease(claim, reply, answer.sent)
        if isinstance(reply, list):
            place = _place(claim, int(reply[0]), int(reply[1]), int(reply[2]), answer.sent)
            assert isinstance(place, Ticket)
            return place
        if reply == 0:
            return Contended(claim.key)
        assert claim.completion is not None
        return Completed(claim.key, claim.completion.run)

    def poll(self, places: Sequence[Ticket | Offer], *, listener: str = "") -> list[Ticket | Offer | None]:
        """Keep places in the line; see :meth:`Queueing.poll`.

        Raises:
            StoreUnavailable: there was no answer.
        """
        batches = list(_by_key(places))
        ttl = _micros(self.claim_ttl)
        calls = [
            POLL.call(
                self._layout.packed(key),
                (b"", arguments.LINGER, ttl, *(places[index].owner.encode() for index in indexes)),
            )
            for key, indexes in batches
        ]
        answer = self._run(POLL, calls)
        found: list[Ticket | Offer | None] = [None] * len(places)
        for (_, indexes), (again, *codes) in zip(batches, answer.replies, strict=True):
            for index, code in zip(indexes, codes, strict=True):
                place = places[index]
                found[index] = _place(place.claim, place.number, code, again, answer.sent)
        gone = [index for index, place in enumerate(found) if place is None]
        if gone:
            calls = [self._enqueue(places[i].claim, listener, places[i].number, only_offer=True) for i in gone]
            answer = self._run(ENQUEUE, calls)
            for index, reply in zip(gone, answer.replies, strict=True):
                if isinstance(reply, list):
                    place = places[index]
                    found[index] = _place(place.claim, place.number, int(reply[1]), int(reply[2]), answer.sent)
        return found

    def confirm(self, claims: Sequence[Claim]) -> list[Lease | Completed | None]:
        """Turn offers into leases; see :meth:`Queueing.confirm`.

        Raises:
            StoreUnavailable: there was no answer.
        """
        calls = [
            CONFIRM.call(
                self._layout.packed(claim.key), arguments.of_claim(claim), self._layout.completion_of(claim.completion)
            )
            for claim in claims
        ]
        answer = self._run(CONFIRM, calls)
        found: list[Lease | Completed | None] = []
        for claim, reply in zip(claims, answer.replies, strict=True):
            if isinstance(reply, bytes):
                found.append(_lease(claim, reply, answer.sent))
            elif reply == 1 and claim.completion is not None:
                found.append(Completed(claim.key, claim.completion.run))
            else:
                found.append(None)
        return found

    def confirming(self, claim: Claim) -> Callable[[], Lease | None] | None:
        """Send a confirmation, without waiting; see :meth:`Queueing.confirming`."""
        # In the words in which executors ask, for the server may not know any others.
        told = (*arguments.of_claim(claim), b"0")
        answered = self._connections.begin(ACQUIRE.call(self._layout.packed(claim.key), told))
        if answered is None:
            return None

        def confirmed() -> Lease | None:
            answer = answered(_SOON)
            reply = None if answer is None else answer.replies[0]
            return _lease(claim, reply, answer.sent) if answer is not None and isinstance(reply, bytes) else None

        return confirmed

    def withdraw(self, claims: Sequence[Claim]) -> None:
        """Leave the line; see :meth:`Queueing.withdraw`.

        Raises:
            StoreUnavailable: there was no answer.
        """
        calls = [
            WITHDRAW.call(
                self._layout.packed(key), (b"", arguments.LINGER, *(claims[index].owner.encode() for index in indexes))
            )
            for key, indexes in _by_key(claims)
        ]
        self._run(WITHDRAW, calls)

    def listen(
        self,
        on_offer: Callable[[str, str], None],
        on_gap: Callable[[], None] = lambda: None,
        loop: EventLoop | None = None,
    ) -> Listener:
        """Start to listen, on a connection of its own; see :meth:`Queueing.listen`."""
        listener = RedisListener(self._make, self._layout, on_offer, on_gap, self.name, loop)
        self._listeners.add(listener)
        return listener

    def _enqueue(self, claim: Claim, listener: str, ticket: int | None, *, only_offer: bool = False) -> bytes:
        return ENQUEUE.call(
            self._layout.packed(claim.key),
            (
                *arguments.of_claim(claim),
                _micros(self.claim_ttl),
                listener.encode(),
                b"" if ticket is None else b"%d" % ticket,
                b"1" if only_offer else b"",
            ),
            None if only_offer else self._layout.completion_of(claim.completion),
        )


def _by_key(wanted: Sequence[Claim | Ticket | Offer]) -> Iterator[tuple[str, list[int]]]:
    """Return the indexes of each key's, in batches that a script may handle at once."""
    indexes: dict[str, list[int]] = {}
    for index, one in enumerate(wanted):
        indexes.setdefault(one.key, []).append(index)
    for key, all_of_key in indexes.items():
        for start in range(0, len(all_of_key), _MANY):
            yield key, all_of_key[start : start + _MANY]


def _lease(claim: Claim, fence: bytes, sent: float) -> Lease:
    return Lease(claim.key, claim.owner, int(fence), claim.ttl, deadline_of(sent, claim.ttl), claim.limit)


def _place(claim: Claim, number: int, code: int, again: int, sent: float) -> Ticket | Offer | None:
    """Make sense of a script's answer about one waiter; the codes are explained in ``poll.lua``."""
    if code >= 0:
        # From now, not from the sending: asking a moment too early would tell nothing new.
        look_at = time.monotonic() + again / 1e6 + 0.001 if again else float("inf")
        return Ticket(claim, number, code, look_at)
    if code == -1:
        return None
    return Offer(claim, number, deadline_of(sent, (-2 - code) / 1e6))


def _micros(seconds: float) -> bytes:
    return b"%d" % round(seconds * 1e6)
