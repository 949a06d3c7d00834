"""Removing what counts no more and nobody has come for: nodes that stay, and tell until when they count.

Who sweeps
    Whichever process uses such nodes, or renews leases, and finds that nobody has swept for a while: writing the node
    ``swept`` makes it its turn. It goes on until it has found nothing left, and begins again with the next use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from kazoo.exceptions import KazooException

from celery_distlock.stores.zookeeper import requests
from celery_distlock.stores.zookeeper.clock import Clock
from celery_distlock.stores.zookeeper.layout import Layout, until_of
from celery_distlock.stores.zookeeper.record import seal_of, told_until
from celery_distlock.stores.zookeeper.session import Session

__all__ = ["Sweeper"]

#: Seconds between two sweeps.
EVERY = 600.0
#: How many nodes are looked at in one go.
_MANY = 500


class Sweeper:
    """Sweeps for one process.

    Arguments:
        session, layout, clock: of the store.
        remove: removes contenders that nobody keeps alive, given the paths of their nodes.
    """

    def __init__(
        self,
        session: Session,
        layout: Layout,
        clock: Clock,
        remove: Callable[[Sequence[str], float], None],
    ) -> None:
        self._session = session
        self._layout = layout
        self._clock = clock
        self._remove = remove
        #: Monotonic time at which to look whether it is time for a sweep.
        self.due_at = 0.0
        #: Whether there may be something left.
        self.more = False

    def sweep(self) -> None:
        """Sweep, if nobody has for a while.

        Raises:
            StoreUnavailable: there was no answer.
        """
        # Whatever happens now, it is not tried again at once.
        self.due_at, self.more = time.monotonic() + EVERY, True
        self._session.run_if_open(self._turn)
        if self.due_at > time.monotonic():
            return
        self.due_at = time.monotonic() + EVERY
        self.more = False
        for folder in (self._layout.done, self._layout.unique):
            self._in_parts(folder, self._sweep_told)
        self._in_parts(self._layout.kept, self._sweep_kept)

    def _turn(self, end: float) -> None:
        """Make this the process that sweeps, by being due now, if nobody has for a while."""
        path = self._layout.swept
        while True:
            [reply] = self._session.exchange([requests.get(path)], end).replies
            if not isinstance(reply, KazooException):
                break
            self._session.exchange([requests.ensure(path)], end)
            if not isinstance(self._session.exchange([requests.put(path, b"", 0)], end).replies[0], KazooException):
                self.due_at = 0.0
                return
        _, stat = reply
        left = stat.mtime / 1000 + EVERY - self._clock.now(end)
        if left > 0:
            self.due_at = time.monotonic() + left
        elif not isinstance(self._session.exchange([requests.put(path, b"", stat.version)], end).replies[0], Exception):
            self.due_at = 0.0

    def _in_parts(self, folder: str, work: Callable[[Sequence[str], float], bool]) -> None:
        names: list[str] = []

        def look(end: float) -> None:
            [reply] = self._session.exchange([requests.children(folder)], end).replies
            names.extend(() if isinstance(reply, KazooException) else sorted(reply))

        self._session.run_if_open(look)
        for start in range(0, len(names), _MANY):
            paths = [f"{folder}/{name}" for name in names[start : start + _MANY]]

            def part(end: float, paths: Sequence[str] = paths) -> None:
                self.more = work(paths, end) or self.more

            self._session.run_if_open(part)

    def _sweep_told(self, paths: Sequence[str], end: float) -> bool:
        """Remove those that tell that they count no more; tell whether there are others."""
        now = self._clock.now(end)
        replies = self._session.exchange([*map(requests.get, paths)], end).replies
        found = [
            (path, *reply, until)
            for path, reply in zip(paths, replies, strict=True)
            if not isinstance(reply, KazooException) and (until := told_until(reply[0])) is not None
        ]
        overdue = [self._removal(path, data, stat.version) for path, data, stat, until in found if until <= now]
        self._session.exchange(overdue, end)
        return len(overdue) < len(found)

    def _removal(self, path: str, data: bytes, version: int) -> requests.Request:
        seal = seal_of(data)
        if seal is None:
            return requests.delete(path, version)
        return requests.together(*requests.unsealed(path, seal, version))

    def _sweep_kept(self, paths: Sequence[str], end: float) -> bool:
        now = self._clock.now(end)
        overdue = [path for path in paths if until_of(path.rpartition("/")[2]) <= now]
        replies = self._session.exchange([*map(requests.get, overdue)], end).replies
        self._remove([reply[0].decode() for reply in replies if not isinstance(reply, KazooException)], end)
        # If the contender has gone already.
        self._session.exchange([*map(requests.delete, overdue)], end)
        return len(overdue) < len(paths)
