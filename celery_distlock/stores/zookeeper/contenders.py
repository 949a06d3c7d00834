"""The nodes of contenders: how they are made, found, taken over and removed.

Whose node it is
    A node belongs to an owner, which its name tells, and dies with a session, which its stat tells. Whoever asks the
    store for something in an owner's name makes the node its own session's: it is deleted and created anew in one
    transaction, with the same sequence number, and it tells the old fence. So an owner's place, and its lease, go from
    process to process without a moment in which they are nobody's: from the pool's child, which acquired, to the main
    process, which renews. A renewal is then a sign of life of the very session on which the lease depends.

What is owed
    A request without an answer may be executed as soon as there is a connection again. Whoever gives up is remembered
    as a debt: when there is a connection, all nodes of that owner are removed, unless it has asked again by then.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from kazoo.exceptions import KazooException, NoNodeError, NotEmptyError
from kazoo.retry import ForceRetryError

from celery_distlock.errors import StoreUnavailable
from celery_distlock.lease import Claim, Lease, deadline_of
from celery_distlock.stores.zookeeper import requests
from celery_distlock.stores.zookeeper.address import Address
from celery_distlock.stores.zookeeper.caretaker import Caretaker
from celery_distlock.stores.zookeeper.clock import Clock
from celery_distlock.stores.zookeeper.completions import Completions
from celery_distlock.stores.zookeeper.layout import Contender, Layout, Line
from celery_distlock.stores.zookeeper.places import Place, Places
from celery_distlock.stores.zookeeper.record import Node, packed, packed_of
from celery_distlock.stores.zookeeper.session import Answer, Session
from celery_distlock.stores.zookeeper.sweeping import Sweeper

__all__ = ["Contenders", "Entered", "Known", "Unattended"]

#: How many leases, and how many barred owners, are remembered.
_MANY = 10_000
#: Seconds until the next try to settle what is owed.
_PAUSE = 1.0
#: Seconds between two looks at what is due any moment.
_SOON = 0.01

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Known:
    """A lease that this process has seen: where its node is, and on whose session it depends.

    ``alone_since`` is when it was granted if nobody else was in the line then, in monotonic time, else minus infinity.
    """

    contender: Contender
    path: str
    fence: int
    session: int
    alone_since: float = -math.inf


@dataclass(frozen=True, slots=True)
class Entered:
    """A node that was just made, and the line in which it stands."""

    node: Node
    line: Line
    answer: Answer

    @property
    def index(self) -> int:
        """Where it stands."""
        return self.line.contenders.index(self.node.contender)


@dataclass(frozen=True, slots=True)
class Unattended:
    """A contender that nobody will keep alive, and what makes its node; see :meth:`Contenders.unattended`."""

    key: str
    node: Node
    operations: tuple[requests.Operation, requests.Operation]


class _Bounded(dict[K, T]):
    """Forgets the oldest entry when there are too many."""

    def put(self, key: K, value: T) -> None:
        self.pop(key, None)
        self[key] = value
        while len(self) > _MANY:
            # Others may be doing the same.
            self.pop(next(iter(self)), None)


class Contenders:
    """What one process knows of, and does with, the nodes of its contenders.

    Arguments:
        address: where.
        layout: what is where.
        on_connected: called in kazoo's thread when there is a connection (again); must not block.
    """

    def __init__(self, address: Address, layout: Layout, on_connected: Callable[[], None]) -> None:
        self.layout = layout
        self.session = Session(address, self._on_connected, self._on_ended, self.doubt)
        #: Called in kazoo's thread when the server has ended a session; must not block.
        self.doubters: list[Callable[[], None]] = []
        self.clock = Clock(self.session, layout.clock)
        self.completions = Completions(self.session, layout, self.clock)
        self.sweeper = Sweeper(self.session, layout, self.clock, self._remove_kept)
        #: Leases that this process has seen. No more than a memory: the server is asked about each.
        self.known: _Bounded[tuple[str, str], Known] = _Bounded()
        #: Owners that gave back a lease of which they did not know whether they had it.
        self.barred: _Bounded[tuple[str, str], None] = _Bounded()
        #: Keys that were not free when they were last asked for: worth a look before anything is written.
        self.contended: _Bounded[str, None] = _Bounded()
        self.places = Places()
        self.caretaker = Caretaker(self._care)
        self._announce = on_connected
        self._sync = requests.sync(layout.locks or "/")
        self._debts: set[tuple[str, str]] = set()
        #: Contenders made here that nobody keeps alive: until when they count, their paths and keys.
        self._kept: list[tuple[float, str, str]] = []
        self._mutex = threading.Lock()

    def run(self, work: Callable[[float], T], claims: Iterable[Claim | Lease] = (), *, owing: bool = False) -> T:
        """Do some work for these claims; see :meth:`Session.run`. If ``owing``, nothing of them is left if it fails."""
        pairs = [(claim.key, claim.owner) for claim in claims]
        if self._debts:
            with self._mutex:
                self._debts.difference_update(pairs)
        try:
            return self.session.run(work)
        except StoreUnavailable:
            if owing:
                self.owe(pairs)
            raise

    def owe(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Remove all nodes of these owners when it is possible."""
        with self._mutex:
            self._debts.update(pairs)
        self.caretaker.wake()

    # -- looking ------------------------------------------------------------------------------------------------------

    def lines(self, keys: Iterable[str], end: float) -> dict[str, Line]:
        """Look at the lines of these keys, as they are for their leader; whose time is over is removed."""
        found: dict[str, Line] = {}
        wanted = list(dict.fromkeys(keys))
        while wanted:
            asked = [self._sync, *(requests.children(self.layout.lock(key)) for key in wanted)]
            _, *replies = self.session.exchange(asked, end).replies
            for key, names in zip(wanted, replies, strict=True):
                found[key] = Line(() if isinstance(names, NoNodeError) else names)
            overdue = [(key, path) for key in wanted for path in self.overdue(key, found[key], end)]
            self.leave(overdue, end)
            wanted = list(dict.fromkeys(key for key, _ in overdue))
        return found

    def overdue(self, key: str, line: Line, end: float) -> list[str]:
        """Return the paths of those in a line that nobody keeps alive, and whose time is over."""
        return [self.path_of(key, one) for one in line.timed if self.clock.is_past(one.until, end)]

    def read(self, wanted: Sequence[tuple[Contender, str]], end: float) -> tuple[list[Node | None], Answer]:
        """Read nodes, given their paths; None for one that is gone. The leader has been asked before."""
        answer = self.session.exchange([self._sync, *(requests.get(path) for _, path in wanted)], end)
        nodes = [
            None if isinstance(reply, KazooException) else Node.read(contender, path, *reply)
            for (contender, path), reply in zip(wanted, answer.replies[1:], strict=True)
        ]
        return nodes, answer

    def path_of(self, key: str, contender: Contender) -> str:
        """Return the path of a contender's node."""
        return f"{self.layout.lock(key)}/{contender.name}"

    def find(self, leases: Sequence[Lease], end: float) -> tuple[list[Node | None], Answer]:
        """Find the nodes of these leases: where they are known to be, else by their owners' names."""
        known = [self.known_of(lease) for lease in leases]
        first = [(one.contender, one.path) for one in known if one is not None]
        read, answer = self.read(first, end)
        of_path = {node.path: node for node in read if node is not None}
        found = [None if one is None else of_path.get(one.path) for one in known]
        missing = [index for index, node in enumerate(found) if node is None]
        if not missing:
            return found, answer
        lines = self.lines((leases[index].key for index in missing), end)
        candidates = [
            (index, contender, self.path_of(leases[index].key, contender))
            for index in missing
            for contender in lines[leases[index].key].all_of(leases[index].owner)
        ]
        read, later = self.read([(contender, path) for _, contender, path in candidates], end)
        for (index, _, _), node in zip(candidates, read, strict=True):
            if node is not None and node.fence == leases[index].fence:
                found[index] = node
        return found, answer if len(missing) < len(leases) else later

    def known_of(self, lease: Lease) -> Known | None:
        """Return what is remembered of a lease."""
        known = self.known.get((lease.key, lease.owner))
        return known if known is not None and known.fence == lease.fence else None

    def is_lease(self, key: str, owner: str, path: str) -> bool:
        """Tell whether a node is remembered as that of a lease, though it may not tell so itself."""
        known = self.known.get((key, owner))
        return known is not None and known.path == path

    # -- entering and leaving -----------------------------------------------------------------------------------------

    def found(
        self, claim: Claim, end: float, *, waiting: float = 0.0, before: Sequence[requests.Operation] = ()
    ) -> Entered | None:
        """Make a key's own node and that of its first contender, in one step and one round trip.

        Arguments:
            claim: the first contender's.
            end: monotonic time.
            waiting: if it is to wait for a word of its own, the seconds for which the offer is kept for it.
            before: what else is to be done in that step.

        Returns:
            None if the key's node exists: somebody has the key, or waits for it; or such nodes are kept here; or if
            something else could not be done.
        """
        if self.layout.shares(claim.key):
            return None
        path, first = self.layout.lock(claim.key), self.layout.first_contender(claim)
        data = packed(claim, self.session.ttl, waiting=waiting)
        # The servers remove the key's node if nobody does so after its last child has gone: that one's session may end.
        asked = requests.together(
            *before, requests.made(path, container=True), requests.made(first, data, ephemeral=True)
        )
        while True:
            answer = self.session.exchange([asked], end)
            [made] = answer.replies
            if not isinstance(made[-2], NoNodeError):
                break
            # The very first lock of all.
            self.session.exchange([requests.ensure(self.layout.above(claim.key))], end)
        if any(isinstance(reply, Exception) for reply in made):
            return None
        self.clock.note(answer.sent, made.moment)
        line = Line([first.rpartition("/")[2]])
        told = {"waiting": waiting} if waiting else {}
        return Entered(Node(line.contenders[0], first, told, made.number, answer.session, 0), line, answer)

    def enter(self, claim: Claim, end: float, *, waiting: float = 0.0) -> Entered | None:
        """Make the node of another contender, and look where it stands, in one round trip.

        Arguments:
            claim: the contender's, which has no node.
            end: monotonic time.
            waiting: as for :meth:`found`.

        Returns:
            None if the key's own node is missing.
        """
        path, data = self.layout.lock(claim.key), packed(claim, self.session.ttl, waiting=waiting)
        wanted = [requests.enter(self.layout.new_contender(claim), data), requests.children(path)]
        answer = self.session.exchange(wanted, end)
        made, names = answer.replies
        if isinstance(made, NoNodeError):
            if self.layout.shares(claim.key):
                self.session.exchange([requests.ensure(path)], end)
            return None
        if isinstance(names, KazooException):
            raise ForceRetryError("the session ended in between")
        where, stat = made
        self.clock.note(answer.sent, stat.ctime)
        line, name = Line(names), where.rpartition("/")[2]
        first = line.index_of(claim.owner)
        if first is None or line.contenders[first].name != name:
            # The owner has asked twice at the same time; the earlier node counts.
            self.session.exchange([requests.delete(where)], end)
            raise ForceRetryError("asked twice")
        return Entered(Node.read(line.contenders[first], where, data, stat), line, answer)

    def leave(self, wanted: Sequence[tuple[str, str]], end: float) -> list[bool]:
        """Remove nodes, given their keys and paths, and those keys' own nodes where nobody is left.

        Returns:
            for each whether it was there.
        """
        if not wanted:
            return []
        replies = self.remove([requests.delete(path) for _, path in wanted], wanted, end)
        return [not isinstance(reply, KazooException) for reply in replies]

    def remove(self, asked: Sequence[requests.Request], wanted: Sequence[tuple[str, str]], end: float) -> list[Any]:
        """Send requests that remove nodes, and return the answers; remove what belongs to those nodes.

        Whether somebody is left in a key's line is asked with them: a removal in vain is a transaction, too, and in the
        next holder's way.

        Arguments:
            asked: what removes them.
            wanted: their keys and paths; see :meth:`clean`.
            end: monotonic time.
        """
        if not asked:
            return []
        keys = list(dict.fromkeys(key for key, _ in wanted if not self.layout.shares(key)))
        looks = [requests.exists(self.layout.lock(key)) for key in keys]
        replies = self.session.exchange([*asked, *looks], end).replies
        stats = replies[len(asked) :]
        taken = {key for key, stat in zip(keys, stats, strict=True) if stat is None or stat.numChildren}
        self.clean(wanted, taken)
        return replies[: len(asked)]

    def clean(self, wanted: Iterable[tuple[str, str]], taken: Collection[str] = ()) -> None:
        """Remove what belongs to removed nodes, given their keys and paths; wait for no answer.

        Their keys' nodes, where nobody is left; and of those that nobody keeps alive what tells who sweeps of them.

        Arguments:
            wanted: keys and paths.
            taken: keys in whose lines somebody is known to be.
        """
        pairs = list(wanted)
        keys = dict.fromkeys(key for key, _ in pairs if key not in taken and not self.layout.shares(key))
        kept = [at for _, path in pairs if (at := self.layout.kept_at(path)) is not None]
        for key in keys:
            self.session.send(requests.delete(self.layout.lock(key)), self._removed(key, ""))
        for path in kept:
            self.session.send(requests.delete(path))

    # -- taking -------------------------------------------------------------------------------------------------------

    def take(self, claim: Claim, node: Node, read: Answer, end: float) -> Lease:
        """Turn the node of an owner that has a place into a lease of this session.

        Arguments:
            claim: the owner's.
            node: its node.
            read: the answer from which the node is known.
            end: monotonic time.
        """
        own = node.session == self.session.id
        if own and not node.waiting:
            return self.granted(claim, node, read)
        taken = node.taken()
        if not own:
            moved, answer = self.move(claim, taken, end)
            if moved is None:
                raise ForceRetryError("the node has changed")
            return self.granted(claim, moved, answer)
        answer = self.session.exchange([requests.put(node.path, taken.data(self.session.ttl), node.version)], end)
        if isinstance(answer.replies[0], KazooException):
            raise ForceRetryError("the node has changed")
        return self.granted(claim, node, answer)

    def move(self, claim: Claim | Lease, node: Node, end: float) -> tuple[Node | None, Answer]:
        """Make a node of another session one of this session; None if it has changed or gone meanwhile."""
        told = {**node.told, "fence": node.fence}
        new = self.layout.anew(claim, node.contender)
        data = replace(node, told=told).data(self.session.ttl)
        asked = requests.together(requests.deleted(node.path, node.version), requests.made(new, data, ephemeral=True))
        answer = self.session.exchange([asked], end)
        if any(isinstance(reply, Exception) for reply in answer.replies[0]):
            return None, answer
        contender = Line([new.rpartition("/")[2]]).contenders[0]
        kept = self.layout.kept_at(node.path)
        if kept is not None:
            self.session.send(requests.delete(kept))
        return Node(contender, new, told, node.fence, answer.session, 0), answer

    def granted(self, claim: Claim, node: Node, answer: Answer, *, alone: bool = False) -> Lease:
        """Return the lease for a node that has a place and was there when it was asked for."""
        pair = (claim.key, claim.owner)
        alone_since = answer.sent if alone else -math.inf
        # In this order: whoever finds no place any more finds that there is a lease.
        self.known.put(pair, Known(node.contender, node.path, node.fence, answer.session, alone_since))
        self.places.drop(*pair)
        deadline = deadline_of(answer.sent, answer.ttl)
        return Lease(claim.key, claim.owner, node.fence, answer.ttl, deadline, claim.limit)

    def confirmed(self, claim: Claim, place: Place, answer: Answer) -> Lease:
        """Return the lease for a place that was there when it was asked for."""
        node = Node(place.contender, place.path, {}, place.number, answer.session, 0)
        return self.granted(claim, node, answer)

    def remember(self, lease: Lease, node: Node, answer: Answer) -> None:
        """Remember where the node of a lease of this session is."""
        self.known.put((lease.key, lease.owner), Known(node.contender, node.path, node.fence, answer.session))

    # -- without a session --------------------------------------------------------------------------------------------

    def unattended(self, claim: Claim | Lease, old: Node, told: Mapping[str, Any], until: float) -> Unattended:
        """Return how a node takes the place of another one that nobody will keep alive.

        Arguments:
            claim: of its owner.
            old: the other one.
            told: what the node is to tell.
            until: until when it counts, in seconds since the epoch.
        """
        path = self.layout.anew(claim, old.contender, until=until)
        contender = Line([path.rpartition("/")[2]]).contenders[0]
        node = Node(contender, path, told, 0, 0, 0)
        kept = self.layout.kept_at(path)
        assert kept is not None
        return Unattended(claim.key, node, (requests.made(path, packed_of(told)), requests.made(kept, path.encode())))

    def keep(self, made: Unattended) -> None:
        """Remove a contender that nobody keeps alive when its time is over, if this process still lives by then."""
        with self._mutex:
            heapq.heappush(self._kept, (made.node.contender.until, made.node.path, made.key))
            first = self._kept[0][1] == made.node.path
        if first:
            self.caretaker.wake()

    # -- what is due --------------------------------------------------------------------------------------------------

    def give_up_overdue(self) -> None:
        """Give up the places of those who were silent for too long."""
        if self.places.next_due() > time.monotonic():
            return
        with self.places.mutex:
            for place in self.places.take_overdue(time.monotonic()):
                self.session.send(requests.delete(place.path), self._removed(place.claim.key, place.claim.owner))
                self.clean([(place.claim.key, "")])

    def care_for_places(self) -> None:
        """Have the places looked at: one of them may be due now."""
        if len(self.places):
            self.caretaker.wake()

    def sweep(self) -> None:
        """Have what counts no more removed, if it is time for that."""
        if self.sweeper.due_at <= time.monotonic():
            self.caretaker.wake()

    def care_no_more(self) -> None:
        """Leave what counts no more to other processes, since this one has no session."""
        if self.sweeper.more or self._kept:
            self.caretaker.wake()

    def _remove_kept(self, paths: Sequence[str], end: float) -> None:
        """Remove contenders that nobody keeps alive, for who sweeps."""
        self.session.exchange([*map(requests.delete, paths)], end)
        for above in dict.fromkeys(path.rpartition("/")[0] for path in paths):
            if self.layout.is_ours(above):
                self.session.send(requests.delete(above))

    def _remove_overdue(self, end: float) -> None:
        while self._kept and self.clock.is_past(self._kept[0][0], end):
            with self._mutex:
                _, path, key = heapq.heappop(self._kept)
            self.leave([(key, path)], end)

    def _removed(self, key: str, owner: str) -> Callable[[Any], None]:
        """Return what looks at the answer to a removal; without one, it is owed."""

        def then(result: Any) -> None:
            if not isinstance(result.exception, (NoNodeError, NotEmptyError, type(None))):
                self.owe([(key, owner)])

        return then

    def _care(self) -> float | None:
        now = time.monotonic()
        self.give_up_overdue()
        with contextlib.suppress(StoreUnavailable):
            if self._debts:
                self._settle_debts()
            if self._kept and self.clock.local(self._kept[0][0]) <= now:
                self.session.run_if_open(self._remove_overdue)
            if self.sweeper.due_at <= now and self.session.connected:
                self.sweeper.sweep()
        due = self.places.next_due()
        if not self.session.is_open:
            self.sweeper.more, self.sweeper.due_at = False, 0.0
            with self._mutex:
                self._kept.clear()
        soon = now + (_SOON if self.session.connected else _PAUSE)
        if self._kept:
            due = min(due, max(self.clock.local(self._kept[0][0]), soon))
        if self.sweeper.more:
            due = min(due, max(self.sweeper.due_at, soon))
        if self._debts:
            due = min(due, now + _PAUSE)
        return due if due < float("inf") or len(self.places) else None

    def _settle_debts(self) -> None:
        owed = list(self._debts)

        def settle(end: float) -> None:
            lines = self.lines((key for key, _ in owed), end)
            with self._mutex:
                # Whoever has asked again since is left alone; what is sent now is executed before what it asks next.
                still = [pair for pair in owed if pair in self._debts]
                for key, owner in still:
                    for contender in lines[key].all_of(owner):
                        self.session.send(requests.delete(self.path_of(key, contender)))
                self.clean(still)
            # They were executed if this is answered.
            self.session.exchange([self._sync], end)
            with self._mutex:
                self._debts.difference_update(still)

        self.session.run_if_open(settle)

    def _on_connected(self) -> None:
        self.clock.forget()
        if self._debts or len(self.places):
            self.caretaker.wake()
        self._announce()

    def _on_ended(self) -> None:
        self.places.clear()

    def doubt(self) -> None:
        """Say that leases may just have been lost."""
        for callback in list(self.doubters):
            callback()
