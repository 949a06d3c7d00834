"""Locks in ZooKeeper.

Authority
    The ensemble. A contender is an ephemeral node with a sequence number; the first ones hold the key (``layout.py``).
    A lease lasts as long as the session on which its node depends (``session.py``), and that is kept alive by kazoo's
    pings; a renewal verifies it.

A holder in the store::

      acquire                          its session ends
    ──────────▶ node, in our session ──────────────────▶ nothing (LOST for the process whose session it was, else GONE)
                  ▲          │
                  │          └─ release ──▶ nothing (GONE)
                  └── another process renews, or asks in the owner's name: the node moves to its session

What is different from other stores
    * The ttl of a lease is that of the session, whatever the claim asked for, and a lease's ``ttl`` says so.
    * When a session has ended, all its leases are lost at once, and their keys are free. Nothing is re-asserted.
    * A fence is the ``czxid`` of the node that was granted: the number of the transaction that made it.
    * Owners are barred by the process that gave back their unknown lease, and by no other: the requests of one session
      are executed in the order in which they were sent, so a late one of another's is all that could still come.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from kazoo.exceptions import KazooException, NoNodeError
from kazoo.retry import ForceRetryError

from celery_distlock.errors import StoreUnavailable
from celery_distlock.lease import Claim, Completed, Completion, Contended, Holder, Lease, Renewal
from celery_distlock.stores.base import LockStore
from celery_distlock.stores.zookeeper import requests
from celery_distlock.stores.zookeeper.address import parse
from celery_distlock.stores.zookeeper.contenders import Contenders, Unattended
from celery_distlock.stores.zookeeper.layout import Contender, Layout, Line
from celery_distlock.stores.zookeeper.listener import listeners_of
from celery_distlock.stores.zookeeper.passing_on import ZooKeeperPassingOn
from celery_distlock.stores.zookeeper.queueing import ZooKeeperQueueing
from celery_distlock.stores.zookeeper.uniqueness import ZooKeeperUniqueness

__all__ = ["ZooKeeperStore"]

#: Seconds for which who got a key alone is taken to be alone.
_LONELY = 0.05
#: How many keys are listed in one go.
_MANY = 500


class ZooKeeperStore(ZooKeeperQueueing, ZooKeeperUniqueness, ZooKeeperPassingOn, LockStore):
    """A store in ZooKeeper.

    Arguments:
        url: ``zookeeper://host:port,host:port/chroot``; see ``address.py``.
        prefix: separates applications that share a chroot.
        options: ``timeout``, ``session_timeout``, ``shared``, and arguments of kazoo's client.

    Raises:
        LockConfigError: one of them cannot be used; the message says which.
    """

    rests = True

    def __init__(self, url: str, *, prefix: str = "distlock", **options: Any) -> None:
        self._address = parse(url, options)
        self.name = self._address.name
        self.prefix = prefix
        self._layout = Layout(self._address.chroot, prefix, shared=self._address.shared)
        self._begin()
        _everywhere.add(self)

    @classmethod
    def from_url(
        cls, url: str, *, prefix: str = "distlock", options: Mapping[str, Any] | None = None
    ) -> ZooKeeperStore:
        """Open a store by URL. Nothing is connected yet.

        Raises:
            LockConfigError: the URL or an option cannot be used.
        """
        return cls(url, prefix=prefix, **(options or {}))

    def lease_ttl(self, asked: float) -> float:
        """Return the ttl of the session, whatever was asked for; see :meth:`LockStore.lease_ttl`."""
        return self._ours.session.ttl

    def freed_after(self, asked: float) -> float:
        """Return the time-out of the session and a tick, which is half of that at most."""
        return 1.5 * self._ours.session.timeout

    def when_in_doubt(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when the server has ended a session; see :meth:`LockStore.when_in_doubt`."""
        self._ours.doubters.append(callback)

    def acquire(self, claim: Claim) -> Lease | Contended | Completed:
        """Try once to get the key; see :meth:`LockStore.acquire`. Where it is contended, nothing is written.

        Raises:
            StoreUnavailable: there was no answer.
        """
        self._ours.give_up_overdue()
        return self._ours.run(lambda end: self._acquire(claim, end), [claim], owing=self._is_new(claim))

    def _acquire(self, claim: Claim, end: float) -> Lease | Contended | Completed:
        ours, key = self._ours, claim.key
        barred = (key, claim.owner) in ours.barred
        missing = not barred and claim.completion is None and key not in ours.contended
        while True:
            if missing and (entered := ours.found(claim, end)) is not None:
                return ours.granted(claim, entered.node, entered.answer, alone=True)
            line, missing, done = self._look(claim, end)
            if done is not None:
                return done
            index = line.index_of(claim.owner)
            if index is not None and index < line.placed:
                return self._take_again(claim, line.contenders[index], end)
            if index is not None and ours.places.find(key, claim.owner) is None:
                # A create of ours whose answer was lost is in nobody's interest. But where the worker's main process
                # has waited for us, it is our turn, and our server may not have heard of it yet.
                line = ours.lines([key], end)[key]
                index = line.index_of(claim.owner)
                if index is not None and index < line.placed:
                    return self._take_again(claim, line.contenders[index], end)
                if index is not None:
                    ours.leave([(key, ours.path_of(key, line.contenders[index]))], end)
                index = None
            if index is None and not barred and line.admits(claim.limit):
                entered = None if missing and not self._layout.shares(key) else ours.enter(claim, end)
                if entered is None:
                    continue
                line = entered.line
                if entered.index < line.placed:
                    return ours.granted(claim, entered.node, entered.answer)
                ours.leave([(key, entered.node.path)], end)
            nodes, answer = ours.read([(one, ours.path_of(key, one)) for one in line.holders], end)
            now = ours.clock.now(end) if line.timed else 0.0
            holders = tuple(node.as_holder(key, answer.ttl, now) for node in nodes if node is not None)
            # Our server may have been behind: it has caught up since, and if a holder is gone there may be a place.
            if len(holders) == len(nodes) or time.monotonic() >= end:
                ours.contended.put(key, None)
                return Contended(key, holders)

    def renew(self, leases: Sequence[Lease]) -> list[Renewal]:
        """See whether these leases still hold, and start the time of their session anew; see :meth:`LockStore.renew`.

        One that was granted in another process's session becomes one of this process's, which takes a second round
        trip, once.

        Raises:
            StoreUnavailable: there was no answer.
        """
        if not leases:
            return []
        renewals = self._ours.run(lambda end: self._renew(leases, end), leases)
        self._ours.sweep()
        return renewals

    def _renew(self, leases: Sequence[Lease], end: float) -> list[Renewal]:
        ours = self._ours
        nodes, answer = ours.find(leases, end)
        if any(answer.ttl < lease.ttl * 0.999 for lease in leases):
            # The caller reckons with the lease's own ttl.
            raise StoreUnavailable(self.name, f"this server relies on sessions for {answer.ttl:g} s only")
        found = []
        for lease, node in zip(leases, nodes, strict=True):
            if node is not None and node.session != answer.session:
                node, _ = ours.move(lease, node, end)
            if node is not None:
                if node.waiting:
                    # The word that it holds was lost with a connection.
                    ours.session.send(requests.put(node.path, node.taken().data(answer.ttl), node.version))
                ours.remember(lease, node, answer)
                found.append(Renewal.HELD)
                continue
            known = ours.known_of(lease)
            found.append(Renewal.GONE if known is None or known.session == answer.session else Renewal.LOST)
        return found

    def release(self, leases: Sequence[Lease], completions: Sequence[Completion | None] = ()) -> list[bool]:
        """Give these leases back, in one round trip; see :meth:`LockStore.release`.

        Whatever session a lease depends on: its node is removed. One that this process has never seen takes three round
        trips.

        Raises:
            StoreUnavailable: there was no answer. They are given back as soon as there is one.
        """
        if not leases:
            return []
        ours = self._ours
        for lease in leases:
            ours.places.drop(lease.key, lease.owner)
            if lease.fence == 0:
                ours.barred.put((lease.key, lease.owner), None)
        pairs = list(zip_longest(leases, completions))
        attempts = 0
        #: Leases that an earlier try has found, and may have removed, though its answer was lost.
        tried: set[int] = set()

        def work(end: float) -> list[bool]:
            nonlocal attempts
            attempts += 1
            return self._release(pairs, end, tried, again=attempts > 1)

        released = ours.run(work, leases, owing=True)
        if any(lease.rest or record is not None for lease, record in pairs):
            ours.sweep()
        return released

    def _release(
        self, pairs: Sequence[tuple[Lease, Completion | None]], end: float, tried: set[int], *, again: bool
    ) -> list[bool]:
        ours = self._ours
        released = [False] * len(pairs)
        known = [ours.known_of(lease) for lease, _ in pairs]
        wanted = [(index, one.path) for index, one in enumerate(known) if one is not None]
        unseen = [index for index, one in enumerate(known) if one is None]
        removed = list(tried)
        if unseen:
            wanted += self._search(pairs, unseen, end, tried)
        for index, gone in self._remove(pairs, wanted, end):
            released[index] = released[index] or gone
        stale = [index for index, one in enumerate(known) if one is not None and not released[index]]
        if stale:
            # The path is no longer its own if another process has renewed it.
            for index, gone in self._remove(pairs, self._search(pairs, stale, end, tried), end):
                released[index] = released[index] or gone
        for index in stale:
            one = known[index]
            # Else the first try, whose answer was lost, has removed it.
            released[index] = released[index] or (again and one is not None and one.session == ours.session.id)
        for index in removed:
            released[index] = True
        for lease, _ in pairs:
            ours.known.pop((lease.key, lease.owner), None)
        missing = [record for (_, record), done in zip(pairs, released, strict=True) if record is not None and not done]
        if missing:
            # The work was done, whoever holds the lock.
            ours.completions.write(missing, end)
        return released

    def _search(
        self, pairs: Sequence[tuple[Lease, Completion | None]], indexes: Sequence[int], end: float, tried: set[int]
    ) -> list[tuple[int, str]]:
        """Find the nodes of leases by their owners' names, and note of which leases there are any."""
        ours = self._ours
        lines = ours.lines((pairs[index][0].key for index in indexes), end)
        found: list[tuple[int, Contender, str]] = []
        paths: list[tuple[int, str]] = []
        for index in indexes:
            lease = pairs[index][0]
            for contender in lines[lease.key].all_of(lease.owner):
                found.append((index, contender, ours.path_of(lease.key, contender)))
        nodes, _ = ours.read([(contender, path) for _, contender, path in found], end) if found else ([], None)
        for (index, contender, path), node in zip(found, nodes, strict=True):
            lease = pairs[index][0]
            if lease.fence == 0:
                if contender in lines[lease.key].holders:
                    paths.append((index, path))
                else:
                    # A place in the line is no lease.
                    ours.leave([(lease.key, path)], end)
            elif node is not None and node.fence == lease.fence:
                paths.append((index, path))
        tried.update(index for index, _ in paths)
        return paths

    def _remove(
        self, pairs: Sequence[tuple[Lease, Completion | None]], wanted: Sequence[tuple[int, str]], end: float
    ) -> list[tuple[int, bool]]:
        """Remove nodes, each together with the record that goes with it, and tell for each whether it was there."""
        ours = self._ours
        lonely = time.monotonic() - _LONELY
        resting = self._resting(pairs, wanted, end)
        asked: list[requests.Request] = []
        leaving: list[tuple[str, str]] = []
        for (index, path), rest in zip(wanted, resting, strict=True):
            lease, record = pairs[index]
            known = ours.known_of(lease)
            more = [] if rest is None else [*rest.operations]
            if record is not None:
                more.append(requests.made(self._layout.completion(record), ours.completions.data(record, end)))
            if rest is None and known is not None and known.path == path and known.alone_since > lonely:
                more.append(requests.deleted(self._layout.lock(lease.key)))
            else:
                leaving.append((lease.key, path))
            asked.append(requests.together(requests.deleted(path), *more) if more else requests.delete(path))
        replies = ours.remove(asked, leaving, end)
        removed = []
        for (index, path), rest, reply in zip(wanted, resting, replies, strict=True):
            failed = reply if isinstance(reply, list) else [reply]
            gone = not any(isinstance(one, Exception) for one in failed)
            if not gone and isinstance(reply, list) and not isinstance(reply[0], NoNodeError):
                gone = self._remove_step_by_step(pairs[index], path, rest, end)
            if gone and rest is not None:
                ours.keep(rest)
            removed.append((index, gone))
        return removed

    def _remove_step_by_step(
        self, pair: tuple[Lease, Completion | None], path: str, rest: Unattended | None, end: float
    ) -> bool:
        """Remove a node, when what goes with it could not be made, or removed, in the same step."""
        ours, (lease, record) = self._ours, pair
        if record is not None:
            ours.completions.write([record], end)
        if rest is None:
            return ours.leave([(lease.key, path)], end)[0]
        self._prepare_kept(end)
        [results] = ours.session.exchange([requests.together(requests.deleted(path), *rest.operations)], end).replies
        return not any(isinstance(one, Exception) for one in results)

    def forget(self, completions: Sequence[Completion]) -> None:
        """Erase completion records, in one round trip.

        Raises:
            StoreUnavailable: there was no answer.
        """
        asked = [requests.delete(self._layout.completion(done)) for done in completions]
        if asked:
            self._ours.run(lambda end: self._ours.session.exchange(asked, end))

    def holders(self, key: str | None = None, *, prefix: str = "") -> list[Holder]:
        """Return who holds ``key``, or every holder of a key that starts with ``prefix``; oldest first per key.

        A listing of many keys is no snapshot. ``remaining`` is what the holder's session is good for from its last sign
        of life on, which the server does not tell.

        Raises:
            StoreUnavailable: there was no answer.
        """
        self._ours.give_up_overdue()
        if key is not None:
            return self._ours.run(lambda end: self._holders_of([key], end))
        names = self._ours.run(self._all_names)
        keys = sorted(name for name in map(self._layout.key_of, names) if name.startswith(prefix))
        parts = [keys[start : start + _MANY] for start in range(0, len(keys), _MANY)]
        found: list[Holder] = []
        for part in parts:
            found += self._ours.run(lambda end, part=part: self._holders_of(part, end))  # type: ignore[misc]
        return found

    def _all_names(self, end: float) -> list[str]:
        [names] = self._ours.session.exchange([requests.children(self._layout.locks or "/")], end).replies
        return [] if isinstance(names, KazooException) else list(names)

    def _holders_of(self, keys: Sequence[str], end: float) -> list[Holder]:
        ours = self._ours
        lines = ours.lines(keys, end)
        wanted = [(key, one, ours.path_of(key, one)) for key in keys for one in lines[key].holders]
        nodes, answer = ours.read([(one, path) for _, one, path in wanted], end)
        now = ours.clock.now(end) if any(line.timed for line in lines.values()) else 0.0
        return [
            node.as_holder(key, answer.ttl, now)
            for (key, _, _), node in zip(wanted, nodes, strict=True)
            if node is not None
        ]

    def close(self) -> None:
        """End this process's session, and with it all its leases and places. The next use begins another one."""
        for listener in listeners_of(self._ours.session):
            listener.close()
        self._ours.session.close()
        self._ours.care_no_more()

    # -- what acquiring and enqueueing have in common -----------------------------------------------------------------

    def _look(self, claim: Claim, end: float) -> tuple[Line, bool, Completed | None]:
        """Look at the line of a claim; tell whether the key's node is missing, and whether the run is completed."""
        ours, done = self._ours, claim.completion
        asked = [requests.children(self._layout.lock(claim.key))]
        if done is not None:
            # Another server may have heard of the record, and ours not yet: who finds none runs the task again.
            asked = [requests.sync(self._layout.completion(done)), *asked, requests.get(self._layout.completion(done))]
        while True:
            replies = ours.session.exchange(asked, end).replies
            names = replies[0] if done is None else replies[1]
            completed = None
            if done is not None and ours.completions.counts(replies[2], end):
                completed = Completed(claim.key, done.run)
            missing = isinstance(names, NoNodeError)
            line = Line(() if missing else names)
            overdue = ours.overdue(claim.key, line, end)
            if not overdue:
                return line, missing, completed
            ours.leave([(claim.key, path) for path in overdue], end)

    def _take_again(self, claim: Claim, contender: Contender, end: float) -> Lease:
        """Return the lease of an owner that has a place already."""
        [node], answer = self._ours.read([(contender, self._ours.path_of(claim.key, contender))], end)
        if node is None:
            raise ForceRetryError("the node has gone")
        return self._ours.take(claim, node, answer, end)

    def _is_new(self, claim: Claim) -> bool:
        """Tell whether the owner's lease, if it gets one by now, is unknown to it."""
        return (claim.key, claim.owner) not in self._ours.known

    def _begin(self) -> None:
        """Begin without anything: neither a session nor a memory. In a forked child, those are the parent's."""
        self._ours = Contenders(self._address, self._layout, self._on_connected)


_everywhere: weakref.WeakSet[ZooKeeperStore] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for store in list(_everywhere):
        store._begin()


os.register_at_fork(after_in_child=_after_fork_in_child)
