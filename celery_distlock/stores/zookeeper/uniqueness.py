"""Tokens in ZooKeeper.

Authority
    One node for each key, which tells what message is the one of it, and one for each other message that must be told
    something: that it was superseded, or that it has begun before its publisher came. What becomes of them is decided
    here (``token_rules.py``), and written if nothing has changed since it was read, else decided anew: all in one
    transaction, together with the running key's.

What a question costs
    One round trip if the key is free, or if there is another message: what is read and what is written if all is free
    are sent together. Two where another one runs, or something must be changed.

A key's node has a seal (``requests.py``): it comes and goes, and whoever has read an earlier one must not write to it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kazoo.exceptions import KazooException, NoNodeError

from celery_distlock.lease import Claim, Lease
from celery_distlock.stores.base import Uniqueness
from celery_distlock.stores.token_rules import Tokens
from celery_distlock.stores.zookeeper import requests
from celery_distlock.stores.zookeeper.contenders import Contenders
from celery_distlock.stores.zookeeper.layout import Contender, Layout, Line
from celery_distlock.stores.zookeeper.record import seal_of, tells_until
from celery_distlock.stores.zookeeper.requests import Operation
from celery_distlock.tokens import Begun, Duplicate, Reserved, Superseded, Token, running_key

__all__ = ["ZooKeeperUniqueness"]


@dataclass
class _Known:
    """What was read of a key and of some of its messages, and what has become of it since, in memory.

    Attributes:
        key: the token's.
        path: of its node.
        tokens: what counts of it.
        seal: of the node; None if there is none.
        version: of the node.
        marks: those messages' own nodes: the path, and the version if there is such a node.
        names: of the running key's contenders; None if it has no node, or was not asked for.
    """

    key: str
    path: str
    tokens: Tokens
    seal: str | None
    version: int
    marks: dict[str, tuple[str, int | None]]
    names: list[str] | None

    def __post_init__(self) -> None:
        self._before = self.state()
        self._marks_before = {name: self._mark(name) for name in self.marks}

    def state(self) -> dict[str, Any]:
        """Return what the key's node is to tell; empty: there is to be none."""
        place, told = (self.key, ""), self.tokens
        state: dict[str, Any] = {}
        queued, window = told.queued.get(place), told.windows.get(place)
        if queued is not None:
            state["queued"] = [queued, told.queued.until(place)]
        if window is not None:
            state["window"] = [window[0], told.windows.until(place), window[1]]
        return state

    def _mark(self, name: str) -> tuple[str, float, str | None] | None:
        pair, tokens = (self.key, name), self.tokens
        if pair in tokens.superseded:
            return "superseded", tokens.superseded.until(pair), None
        if pair in tokens.begun:
            return "begun", tokens.begun.until(pair), tokens.begun.get(pair)
        return None

    def changes(self) -> list[Operation]:
        """Return what must be done that the nodes tell what is known now, if they are as they were read."""
        operations = self._change_of_state()
        for name, (path, version) in self.marks.items():
            mark = self._mark(name)
            if mark == self._marks_before.get(name):
                continue
            if mark is None:
                assert version is not None
                operations.append(requests.deleted(path, version))
                continue
            kind, until, witness = mark
            data = tells_until(until, key=self.key, id=name, mark=kind, witness=witness)
            operations.append(requests.made(path, data) if version is None else requests.written(path, data, version))
        return operations

    def _change_of_state(self) -> list[Operation]:
        state = self.state()
        if state == self._before:
            return []
        if self.seal is None:
            seal = os.urandom(4).hex()
            return [*requests.sealed(self.path, self._told(state, seal), seal)]
        if not state:
            return [*requests.unsealed(self.path, self.seal, self.version)]
        return [*requests.rewritten(self.path, self._told(state, self.seal), self.seal, self.version)]

    def _told(self, state: dict[str, Any], seal: str) -> bytes:
        return tells_until(max(place[1] for place in state.values()), key=self.key, seal=seal, **state)


class ZooKeeperUniqueness(Uniqueness):
    """The part of :class:`ZooKeeperStore` that deals with tokens."""

    _layout: Layout
    _ours: Contenders

    if TYPE_CHECKING:

        def _take_again(self, claim: Claim, contender: Contender, end: float) -> Lease: ...

        def _is_new(self, claim: Claim) -> bool: ...

    def reserve(self, token: Token) -> Reserved | Duplicate | Superseded:
        """Enter a message as the one of its key; see :meth:`Uniqueness.reserve`.

        Raises:
            StoreUnavailable: there was no answer.
        """
        answer = self._ours.run(lambda end: self._reserve(token, end))
        self._ours.sweep()
        return answer

    def _reserve(self, token: Token, end: float) -> Reserved | Duplicate | Superseded:
        ours, ids = self._ours, [token.id]
        if not token.replaces:
            entering = self._entering(token, end)
            results, known = self._read(token, ids, end, running=token.running, first=entering)
            if _executed(results):
                return Reserved()
        else:
            _, known = self._read(token, ids, end, running=token.running)
        while True:
            runner, guards = self._runner(token, known, end) if token.running else (None, [])
            answer = known.tokens.reserve(token, runner, ours.clock.now(end))
            if isinstance(answer, Reserved) and answer.replaced is not None and answer.replaced not in ids:
                ids.append(answer.replaced)
                known.marks[answer.replaced] = self._layout.message(token.key, answer.replaced), None
            changes = known.changes()
            if not changes or self._do([*(guards if isinstance(answer, Reserved) else ()), *changes], end):
                return answer
            _, known = self._read(token, ids, end, running=token.running)

    def _entering(self, token: Token, end: float) -> list[Operation]:
        """Return what enters a token if nothing is known of its key, nor of itself, and nobody runs."""
        known = _Known(token.key, self._layout.token(token.key), Tokens(), None, 0, {}, None)
        known.tokens.reserve(token, None, self._ours.clock.now(end))
        guards = [*requests.absent(self._layout.message(token.key, token.id))]
        if token.running:
            guards += requests.absent(self._layout.lock(running_key(token.key)))
        return [*guards, *known.changes()]

    def _runner(self, token: Token, known: _Known, end: float) -> tuple[str | None, list[Operation]]:
        """Return the id of the task that runs, and what must be so that this is still true."""
        ours, running = self._ours, running_key(token.key)
        if not known.names:
            path = self._layout.lock(running)
            # Without contenders a container is there that the servers have not removed yet.
            return None, [*requests.absent(path)] if known.names is None else [requests.deleted(path)]
        wanted = [(one, ours.path_of(running, one)) for one in Line(known.names).contenders]
        nodes, _ = ours.read(wanted, end)
        ids = [node.told["id"] for node in nodes if node is not None and isinstance(node.told.get("id"), str)]
        others = [one for one in ids if one != token.id]
        return next(iter(others or ids), None), [requests.there(path) for _, path in wanted]

    def begin(self, token: Token, claim: Claim | None) -> Begun | Superseded:
        """Start a message; see :meth:`Uniqueness.begin`.

        Raises:
            StoreUnavailable: there was no answer.
        """
        claims = [] if claim is None else [claim]
        owing = claim is not None and self._is_new(claim)
        answer = self._ours.run(lambda end: self._begin_message(token, claim, end), claims, owing=owing)
        self._ours.sweep()
        return answer

    def _begin_message(self, token: Token, claim: Claim | None, end: float) -> Begun | Superseded:
        ours = self._ours
        while True:
            _, known = self._read(token, [token.id], end, running=claim is not None)
            answer = known.tokens.begin(token, ours.clock.now(end))
            if answer is not None:
                return answer
            changes, line = known.changes(), Line(known.names or ())
            if claim is None or line.contenders or (claim.key, claim.owner) in ours.barred:
                if changes and not self._do(changes, end):
                    continue
                index = None if claim is None else line.index_of(claim.owner)
                if claim is None or index is None or index >= line.placed:
                    return Begun()
                return Begun(self._take_again(claim, line.contenders[index], end).fence)
            if known.names is not None:
                changes.append(requests.deleted(self._layout.lock(claim.key)))
            entered = ours.found(claim, end, before=changes)
            if entered is not None:
                return Begun(ours.granted(claim, entered.node, entered.answer, alone=True).fence)
            self._prepare(end)

    def cancel(self, token: Token, *, window: bool) -> None:
        """Free the place of a message that will not start; see :meth:`Uniqueness.cancel`.

        Raises:
            StoreUnavailable: there was no answer.
        """
        self._ours.run(lambda end: self._cancel(token, window, end))
        self._ours.sweep()

    def _cancel(self, token: Token, window: bool, end: float) -> None:
        while True:
            _, known = self._read(token, [], end)
            known.tokens.cancel(token, window=window)
            changes = known.changes()
            if not changes or self._do(changes, end):
                return

    # -- nodes --------------------------------------------------------------------------------------------------------

    def _read(
        self, token: Token, ids: Iterable[str], end: float, *, running: bool = False, first: Sequence[Operation] = ()
    ) -> tuple[Any, _Known]:
        """Read what is known of a key.

        Arguments:
            token: whose.
            ids: the messages whose own nodes count.
            end: monotonic time.
            running: whether the running key counts, too.
            first: what to try before; what has become of it is returned as well.
        """
        layout, ours = self._layout, self._ours
        where = {one: layout.message(token.key, one) for one in ids}
        path = layout.token(token.key)
        asked = [requests.together(*first)] if first else []
        asked += map(requests.get, (path, *where.values()))
        if running:
            asked.append(requests.children(layout.lock(running_key(token.key))))
        replies = ours.session.exchange(asked, end).replies
        results = replies.pop(0) if first else None
        names = replies.pop() if running else None
        state, *others = [None if isinstance(one, KazooException) else one for one in replies]
        known = _Known(
            token.key,
            path,
            self._tokens(token.key, [one[0] for one in (state, *others) if one is not None], end),
            None if state is None else seal_of(state[0]),
            0 if state is None else state[1].version,
            {
                name: (at, None if one is None else one[1].version)
                for (name, at), one in zip(where.items(), others, strict=True)
            },
            None if isinstance(names, KazooException) else names,
        )
        return results, known

    def _tokens(self, key: str, told: Iterable[bytes], end: float) -> Tokens:
        """Return what counts of what was told."""
        tokens, place, clock = Tokens(), (key, ""), self._ours.clock
        for data in told:
            node = json.loads(data)
            if "mark" in node:
                name, until = (key, node["id"]), node["until"]
                if clock.is_past(until, end):
                    continue
                if node["mark"] == "superseded":
                    tokens.superseded.put(name, until, None)
                else:
                    tokens.begun.put(name, until, node.get("witness"))
            if "queued" in node and not clock.is_past(node["queued"][1], end):
                tokens.queued.put(place, node["queued"][1], node["queued"][0])
            if "window" in node and not clock.is_past(node["window"][1], end):
                tokens.windows.put(place, node["window"][1], (node["window"][0], node["window"][2]))
        return tokens

    def _do(self, operations: Sequence[Operation], end: float) -> bool:
        """Do all of this; False if something has changed since it was read."""
        [results] = self._ours.session.exchange([requests.together(*operations)], end).replies
        if any(isinstance(one, NoNodeError) for one in results):
            self._prepare(end)
        return _executed(results)

    def _prepare(self, end: float) -> None:
        """See to it that there is a place for tokens, and for locks."""
        above = (self._layout.unique, self._layout.above(running_key("")))
        self._ours.session.exchange([requests.ensure(path) for path in above], end)


def _executed(results: Sequence[Any]) -> bool:
    return not any(isinstance(one, Exception) for one in results)
