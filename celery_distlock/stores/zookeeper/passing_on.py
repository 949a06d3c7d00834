"""Leases that go from one owner to another, and contenders that nobody keeps alive, in ZooKeeper.

A lease is passed on by putting the new owner's node in the place of the old one's, in one transaction and with the same
sequence number: there is no moment in which it is nobody's. Where nobody will keep the new one alive, as between a
task's attempts, or while a place rests, the node is not ephemeral, and its name tells until when it counts; see
``layout.py``. Its fence is a new one, but for a place that rests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kazoo.exceptions import BadVersionError, NoNodeError

from celery_distlock.lease import Claim, Completed, Completion, Lease, deadline_of
from celery_distlock.stores.base import PassingOn
from celery_distlock.stores.zookeeper import requests
from celery_distlock.stores.zookeeper.contenders import Contenders, Unattended
from celery_distlock.stores.zookeeper.layout import Contender, Layout, Line
from celery_distlock.stores.zookeeper.record import Node, packed

__all__ = ["ZooKeeperPassingOn"]


class ZooKeeperPassingOn(PassingOn):
    """The part of :class:`ZooKeeperStore` that deals with leases that change their owners."""

    _layout: Layout
    _ours: Contenders

    if TYPE_CHECKING:

        def _take_again(self, claim: Claim, contender: Contender, end: float) -> Lease: ...

    def pass_on(
        self, lease: Lease, claim: Claim, completion: Completion | None = None, *, unattended: bool = False
    ) -> Lease | Completed | None:
        """Turn a lease into one of another owner, in two round trips; see :meth:`PassingOn.pass_on`.

        Raises:
            StoreUnavailable: there was no answer.
        """
        passed = self._ours.run(lambda end: self._pass_on(lease, claim, completion, unattended, end), [lease, claim])
        self._ours.sweep()
        return passed

    def _pass_on(
        self, lease: Lease, claim: Claim, completion: Completion | None, unattended: bool, end: float
    ) -> Lease | Completed | None:
        ours, done = self._ours, claim.completion
        if (claim.key, claim.owner) in ours.barred:
            if completion is not None:
                ours.completions.write([completion], end)
            return None
        while True:
            node = self._lease_of(lease, end)
            # Read after the lease: whoever has left one has written both at once.
            if node is not None and done is not None and self._is_completed(done, end):
                return Completed(claim.key, done.run)
            again = node is None
            if node is None:
                # Asked a second time, perhaps.
                node = self._lease_of(Lease(claim.key, claim.owner, 0, claim.ttl, 0.0), end)
            if node is None or (again and not unattended):
                if completion is not None:
                    ours.completions.write([completion], end)
                return None if node is None else self._take_again(claim, node.contender, end)
            heir: Unattended | None = None
            told = {**claim.record, "key": claim.key, **({"fence": node.fence} if again else {})}
            if unattended:
                heir = ours.unattended(claim, node, told, ours.clock.now(end) + claim.ttl)
                path, made = heir.node.path, [*heir.operations]
            else:
                path = self._layout.anew(claim, node.contender)
                made = [requests.made(path, packed(claim, ours.session.ttl), ephemeral=True)]
            if completion is not None:
                made.append(requests.made(self._layout.completion(completion), ours.completions.data(completion, end)))
            step = requests.together(requests.deleted(node.path, node.version), *made)
            kept = self._layout.kept_at(node.path)
            answer = ours.session.exchange([step], end)
            [results] = answer.replies
            if not any(isinstance(one, Exception) for one in results):
                break
            if isinstance(results[0], (NoNodeError, BadVersionError)):
                continue
            self._prepare_kept(end)
            if completion is not None:
                ours.completions.write([completion], end)
                completion = None
        if kept is not None:
            ours.session.send(requests.delete(kept))
        ours.known.pop((lease.key, lease.owner), None)
        fence = node.fence if again else results.number
        if heir is not None:
            ours.keep(heir)
            return Lease(claim.key, claim.owner, fence, claim.ttl, deadline_of(answer.sent, claim.ttl), claim.limit)
        contender = Line([path.rpartition("/")[2]]).contenders[0]
        return ours.granted(claim, Node(contender, path, told, fence, answer.session, 0), answer)

    def _is_completed(self, done: Completion, end: float) -> bool:
        [reply] = self._ours.session.exchange([requests.get(self._layout.completion(done))], end).replies
        return self._ours.completions.counts(reply, end)

    def _lease_of(self, lease: Lease, end: float) -> Node | None:
        """Find the node of a lease; with fence 0, of whatever lease its owner has."""
        ours = self._ours
        if lease.fence:
            [node], _ = ours.find([lease], end)
            return node
        line = ours.lines([lease.key], end)[lease.key]
        mine = [one for one in line.all_of(lease.owner) if one in line.holders]
        nodes, _ = ours.read([(one, ours.path_of(lease.key, one)) for one in mine], end) if mine else ([], None)
        return next((node for node in nodes if node is not None and not node.waiting), None)

    def _resting(
        self, pairs: Sequence[tuple[Lease, Completion | None]], wanted: Sequence[tuple[int, str]], end: float
    ) -> list[Unattended | None]:
        """Return what is to stay in the place of nodes whose leases have not been held for long enough."""
        ours = self._ours
        found: list[Unattended | None] = [None] * len(wanted)
        places = [place for place, (index, _) in enumerate(wanted) if pairs[index][0].rest]
        if not places:
            return found
        paths = [wanted[place][1] for place in places]
        nodes, _ = ours.read([(Line([path.rpartition("/")[2]]).contenders[0], path) for path in paths], end)
        now = ours.clock.now(end)
        for place, node in zip(places, nodes, strict=True):
            lease = pairs[wanted[place][0]][0]
            if node is not None:
                told = {**node.told, "fence": node.fence, "resting": True}
                nobody = replace(lease, owner=f"{lease.owner}:resting", limit=node.contender.limit)
                found[place] = ours.unattended(nobody, node, told, now + lease.rest)
        return found

    def _prepare_kept(self, end: float) -> None:
        """See to it that there is a place for what tells of contenders that nobody keeps alive."""
        self._ours.session.exchange([requests.ensure(self._layout.kept)], end)
