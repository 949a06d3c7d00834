"""The line of those who wait, in ZooKeeper.

Authority
    The order of the nodes. A waiter is offered the key as soon as its node is among the first ones: whoever frees a
    place does so by removing a node, and need not know who comes next. A lease it becomes by a word of the waiter's
    own, which it writes into its node.

How a waiter hears of it
    Its process watches the nodes of whom one must go first (``Line.before``), as a rule the one in front of it. The
    watch is set by reading that node: if it has gone in between there is nothing to read, and the line is looked at
    again. So no going is missed. The thread that hears of it looks at the line at once, for the node may have moved to
    another session; what it saw then is good for a lease.

Why to have seen the place is enough
    Whoever has a place keeps it until its node is gone, and that is gone only with its session, or in its owner's name.
    The leader was asked, as for a renewal, and so the session lasts for its ttl from the moment of asking. The word
    that the waiter has taken its place tells others who holds; it is sent at once, but not waited for. If it was lost
    with the connection, the next renewal repeats it; if the node is not there, holders are told to renew now.

    A leader that was replaced without knowing it may answer, too, until it steps down. So this goes only for a look
    that follows the going of a node: a majority agreed upon that, less than half of the session's time-out ago, or the
    look would not have been sent (``connection.py``). Every other offer is taken by a word that is waited for.

What each failure does
    * A waiter dies with its process: its place lasts as long as the session.
    * A waiter is silent for ``claim_ttl``, or does not answer an offer: its process gives up its place (``places.py``).
    * The connection is lost: the place stays. When it is back, the line is looked at again, and the gap is reported.
    * The session ends: all places are gone. The next poll enters the waiters again, at the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from kazoo.exceptions import KazooException, NoNodeError
from kazoo.protocol.states import EventType
from kazoo.retry import ForceRetryError

from celery_distlock.lease import Claim, Completed, Contended, Lease, Offer, Ticket, deadline_of
from celery_distlock.stores.base import EventLoop, Listener, Queueing
from celery_distlock.stores.zookeeper import requests
from celery_distlock.stores.zookeeper.contenders import Contenders, Entered
from celery_distlock.stores.zookeeper.layout import Contender, Layout, Line
from celery_distlock.stores.zookeeper.listener import ZooKeeperListener, listener_named, listeners_of
from celery_distlock.stores.zookeeper.places import Place
from celery_distlock.stores.zookeeper.record import packed
from celery_distlock.stores.zookeeper.session import Answer

__all__ = ["ZooKeeperQueueing"]

#: For this part of its session's ttl a place that was seen may be taken without another question.
_FRESH = 0.05


class ZooKeeperQueueing(Queueing):
    """The part of :class:`ZooKeeperStore` that deals with waiters."""

    _layout: Layout
    _ours: Contenders

    if TYPE_CHECKING:

        def _look(self, claim: Claim, end: float) -> tuple[Line, bool, Completed | None]: ...

        def _take_again(self, claim: Claim, contender: Contender, end: float) -> Lease: ...

        def _is_new(self, claim: Claim) -> bool: ...

    def enqueue(
        self, claim: Claim, *, listener: str = "", ticket: int | None = None
    ) -> Lease | Ticket | Contended | Completed:
        """Get the key, or join the line; see :meth:`Queueing.enqueue`. A ticket's number is of no use here.

        Raises:
            StoreUnavailable: there was no answer.
        """
        self._ours.give_up_overdue()
        ours, new = self._ours, self._is_new(claim)
        if (claim.key, claim.owner) in ours.barred:
            return Contended(claim.key)
        blindly = new and claim.completion is None and ours.places.find(claim.key, claim.owner) is None

        def work(end: float) -> Lease | Ticket | Contended | Completed:
            nonlocal blindly
            blind, blindly = blindly, False
            return (self._enqueue_blindly(claim, listener, end) if blind else None) or self._enqueue(
                claim, listener, end
            )

        return ours.run(work, [claim], owing=new)

    def _enqueue_blindly(self, claim: Claim, listener: str, end: float) -> Lease | Ticket | None:
        """Get the key or join the line without a look at it before; None if that must be looked at."""
        ours = self._ours
        entered = ours.found(claim, end)
        if entered is not None:
            return ours.granted(claim, entered.node, entered.answer, alone=True)
        entered = ours.enter(claim, end, waiting=self.claim_ttl)
        if entered is None or self._ours.overdue(claim.key, entered.line, end):
            return None
        if entered.index < entered.line.placed:
            return ours.take(claim, entered.node, entered.answer, end)
        return self._ticket(self._keep(claim, entered, listener), entered.line, entered.index)

    def _enqueue(self, claim: Claim, listener: str, end: float) -> Lease | Ticket | Contended | Completed:
        ours = self._ours
        missing = False
        while True:
            if missing and (entered := ours.found(claim, end)) is not None:
                return ours.granted(claim, entered.node, entered.answer, alone=True)
            line, missing, done = self._look(claim, end)
            if done is not None:
                return done
            index = line.index_of(claim.owner)
            if index is not None:
                if index < line.placed:
                    return self._take_again(claim, line.contenders[index], end)
                return self._ticket(self._kept(claim, line.contenders[index], listener, end), line, index)
            if missing and not self._layout.shares(claim.key):
                continue
            entered = ours.enter(claim, end, waiting=0.0 if line.admits(claim.limit) else self.claim_ttl)
            if entered is None:
                continue
            line, index = entered.line, entered.index
            if index < line.placed:
                return ours.take(claim, entered.node, entered.answer, end)
            return self._ticket(self._keep(claim, entered, listener), line, index)

    def _ticket(self, place: Place, line: Line, index: int) -> Ticket:
        self._watch(place, line, index)
        # Who nobody keeps alive goes when somebody looks.
        look_at = min((self._ours.clock.local(one.until) for one in line.timed), default=math.inf)
        return Ticket(place.claim, place.number, index - line.placed, look_at)

    def poll(self, places: Sequence[Ticket | Offer], *, listener: str = "") -> list[Ticket | Offer | None]:
        """Keep places in the line; see :meth:`Queueing.poll`. One that was gone is entered again at the end.

        Raises:
            StoreUnavailable: there was no answer.
        """
        now = time.monotonic()
        with self._ours.places.mutex:
            # Before anybody is taken for gone: this may be the first call for a while.
            for place in places:
                kept = self._ours.places.find(place.key, place.owner)
                if kept is not None:
                    kept.heard = now
        self._ours.give_up_overdue()
        if not places:
            return []
        return self._ours.run(lambda end: self._poll(places, listener, end), [place.claim for place in places])

    def _poll(self, places: Sequence[Ticket | Offer], listener: str, end: float) -> list[Ticket | Offer | None]:
        ours = self._ours
        lines = ours.lines((place.key for place in places), end)
        found: list[Ticket | Offer | None] = []
        for place in places:
            claim, line = place.claim, lines[place.key]
            if (claim.key, claim.owner) in ours.barred:
                found.append(None)
                continue
            index, number = line.index_of(claim.owner), place.number
            if index is None:
                entered = self._enter_again(claim, end)
                kept = self._keep(claim, entered, listener)
                line, index, number = entered.line, entered.index, kept.number
                lines[place.key] = line
            else:
                kept = self._kept(claim, line.contenders[index], listener, end)
            if index < line.placed:
                found.append(Offer(claim, number, deadline_of(kept.offer(), kept.patience)))
            else:
                if kept.offered is not None:
                    kept.no_offer()
                found.append(self._ticket(kept, line, index))
        return found

    def confirm(self, claims: Sequence[Claim]) -> list[Lease | Completed | None]:
        """Turn offers into leases; see :meth:`Queueing.confirm`.

        Raises:
            StoreUnavailable: there was no answer.
        """
        self._ours.give_up_overdue()
        if not claims:
            return []
        with self._ours.places.mutex:
            kept = [self._ours.places.find(claim.key, claim.owner) for claim in claims]
            for place in kept:
                if place is not None:
                    place.confirming = True
        try:
            return self._ours.run(lambda end: self._confirm(claims, end), claims)
        finally:
            for place in kept:
                if place is not None:
                    place.confirming = False
            self._ours.care_for_places()

    def _confirm(self, claims: Sequence[Claim], end: float) -> list[Lease | Completed | None]:
        ours = self._ours
        found: list[Lease | Completed | None] = [None] * len(claims)
        open_ones: list[int] = []
        for index, done in enumerate(self._completed(claims, end)):
            if done is not None:
                found[index] = done
                self._withdraw([claims[index]], end)
            else:
                open_ones.append(index)
        for index in open_ones:
            found[index] = self._take_seen(claims[index])
        open_ones = [index for index in open_ones if found[index] is None]
        quick = [(index, place) for index in open_ones if (place := self._offered(claims[index])) is not None]
        if quick:
            for index, lease in self._confirm_offered(claims, quick, end):
                found[index] = lease
        rest = [index for index in open_ones if found[index] is None]
        if rest:
            lines = ours.lines((claims[index].key for index in rest), end)
            for index in rest:
                line, claim = lines[claims[index].key], claims[index]
                at = line.index_of(claim.owner)
                if at is not None and at < line.placed:
                    found[index] = self._take_again(claim, line.contenders[at], end)
        return found

    def _confirm_offered(
        self, claims: Sequence[Claim], offered: Sequence[tuple[int, Place]], end: float
    ) -> list[tuple[int, Lease]]:
        """Write the word; who once has a place has it for as long as its node is there."""
        ours = self._ours
        answer = ours.session.exchange([self._word(claims[index], place) for index, place in offered], end)
        return [
            (index, ours.confirmed(claims[index], place, answer))
            for (index, place), stat in zip(offered, answer.replies, strict=True)
            if not isinstance(stat, KazooException)
        ]

    def _take_seen(self, claim: Claim) -> Lease | None:
        """Turn a place that was seen a moment ago into a lease; send the word, and do not wait for the answer."""
        ours = self._ours
        with ours.places.mutex:
            place = self._offered(claim)
            seen = None if place is None else place.seen
            if place is None or seen is None or seen.session != ours.session.id:
                return None
            if time.monotonic() - seen.sent > _FRESH * seen.ttl:
                return None
            # First: what this process asks after it finds no place any more is executed after that.
            ours.session.send(self._word(claim, place), partial(self._heard_of_word, place))
            return ours.confirmed(claim, place, seen)

    def _word(self, claim: Claim, place: Place) -> requests.Request:
        return requests.put(place.path, packed(claim, self._ours.session.ttl, fence=place.fence), 0)

    def _heard_of_word(self, place: Place, result: Any) -> None:
        gone = isinstance(result.exception, NoNodeError)
        if gone and self._ours.is_lease(place.claim.key, place.claim.owner, place.path):
            # Somebody has removed the node by hand, or moved it in the owner's name.
            self._ours.doubt()

    def _completed(self, claims: Sequence[Claim], end: float) -> list[Completed | None]:
        asked = [(i, claim.completion) for i, claim in enumerate(claims) if claim.completion is not None]
        found: list[Completed | None] = [None] * len(claims)
        if asked:
            records = [requests.get(self._layout.completion(done)) for _, done in asked]
            replies = self._ours.session.exchange(records, end).replies
            for (index, done), reply in zip(asked, replies, strict=True):
                if self._ours.completions.counts(reply, end):
                    found[index] = Completed(claims[index].key, done.run)
        return found

    def _offered(self, claim: Claim) -> Place | None:
        place = self._ours.places.find(claim.key, claim.owner)
        return place if place is not None and place.offered is not None else None

    def withdraw(self, claims: Sequence[Claim]) -> None:
        """Leave the line; see :meth:`Queueing.withdraw`.

        Raises:
            StoreUnavailable: there was no answer. They leave as soon as there is one.
        """
        if claims:
            waiting = [claim for claim in claims if self._is_new(claim)]
            self._ours.run(lambda end: self._withdraw(waiting, end), waiting, owing=True)

    def _withdraw(self, claims: Sequence[Claim], end: float) -> None:
        ours = self._ours
        places = [(claim, ours.places.drop(claim.key, claim.owner)) for claim in claims]
        leaving = [(claim.key, place.path) for claim, place in places if place is not None]
        unseen = [claim for claim, place in places if place is None]
        if unseen:
            lines = ours.lines((claim.key for claim in unseen), end)
            wanted = [(claim.key, one) for claim in unseen for one in lines[claim.key].all_of(claim.owner)]
            nodes, _ = ours.read([(one, ours.path_of(key, one)) for key, one in wanted], end)
            for (key, one), node in zip(wanted, nodes, strict=True):
                if node is not None and (node.waiting or one not in lines[key].holders):
                    leaving.append((key, node.path))
        ours.leave(leaving, end)

    def listen(
        self,
        on_offer: Callable[[str, str], None],
        on_gap: Callable[[], None] = lambda: None,
        loop: EventLoop | None = None,
    ) -> Listener:
        """Start to listen; see :meth:`Queueing.listen`."""
        listener = ZooKeeperListener(self._ours.session, on_offer, on_gap)
        self._ours.session.begin()
        if self._ours.session.connected:
            on_gap()
        return listener

    # -- places -------------------------------------------------------------------------------------------------------

    def _enter_again(self, claim: Claim, end: float) -> Entered:
        while True:
            entered = self._ours.enter(claim, end, waiting=self.claim_ttl)
            if entered is None:
                entered = self._ours.found(claim, end, waiting=self.claim_ttl)
            if entered is not None:
                return entered

    def _keep(self, claim: Claim, entered: Entered, listener: str) -> Place:
        node = entered.node
        place = Place(claim, node.contender, node.path, node.fence, listener, node.told.get("fence", 0), self.claim_ttl)
        self._ours.places.keep(place)
        self._ours.caretaker.wake()
        return place

    def _kept(self, claim: Claim, contender: Contender, listener: str, end: float) -> Place:
        """Return the place of an owner whose node there is, and make it this process's."""
        ours = self._ours
        place = ours.places.find(claim.key, claim.owner)
        if place is not None and place.contender == contender:
            place.heard = time.monotonic()
            place.listener = listener or place.listener
            return place
        [node], _ = ours.read([(contender, ours.path_of(claim.key, contender))], end)
        if node is not None and node.session != ours.session.id:
            node, _ = ours.move(claim, node, end)
        if node is None:
            raise ForceRetryError("the node has changed")
        place = Place(claim, node.contender, node.path, node.fence, listener, node.told.get("fence", 0), self.claim_ttl)
        if node.waiting and not ours.is_lease(claim.key, claim.owner, node.path):
            ours.places.keep(place)
            ours.caretaker.wake()
        return place

    # -- hints --------------------------------------------------------------------------------------------------------

    def _watch(self, place: Place, line: Line, index: int) -> None:
        """Have somebody look again when one of those goes who are in the way."""
        if not place.listener or place.armed:
            return
        place.armed = True
        again = partial(self._look_again, place)
        for contender in line.before(index):
            path = self._ours.path_of(place.claim.key, contender)
            self._ours.session.send(requests.get(path, again), partial(self._watching, place))

    def _watching(self, place: Place, result: Any) -> None:
        if isinstance(result.exception, NoNodeError):
            self._look_again(place)

    def _look_again(self, place: Place, event: Any = None) -> None:
        place.armed = False
        if self._ours.places.find(place.claim.key, place.claim.owner) is not place:
            return
        gone = event is not None and event.type == EventType.DELETED
        self._ours.session.overhear_children(
            self._layout.lock(place.claim.key), partial(self._looked, place, just_gone=gone)
        )

    def _looked(self, place: Place, answer: Answer, *, just_gone: bool) -> None:
        if self._ours.places.find(place.claim.key, place.claim.owner) is not place:
            return
        line = Line(answer.replies[0])
        index = line.index_of(place.claim.owner)
        if index is None:
            return
        if index >= line.placed:
            self._watch(place, line, index)
        elif line.contenders[index] == place.contender:
            place.seen = answer if just_gone else None
            self._offer(place)

    def _offer(self, place: Place) -> None:
        place.offer()
        listener = listener_named(place.listener)
        if listener is not None:
            listener.on_offer(place.claim.key, place.claim.owner)

    def _on_connected(self) -> None:
        for place in self._ours.places.all():
            if place.listener:
                self._look_again(place)
        for listener in listeners_of(self._ours.session):
            listener.on_gap()
