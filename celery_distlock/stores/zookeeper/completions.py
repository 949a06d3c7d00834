"""Completion records: which runs have done their work.

A record is a node of its own, named after the digest of key and run, that tells until when it counts, by the leader's
clock: ZooKeeper's own nodes with a time to live need a server that was told to have them. It is removed by who
acknowledges the message, else swept (``sweeping.py``).
"""

from __future__ import annotations

from typing import Any

from kazoo.exceptions import KazooException, NodeExistsError, NoNodeError

from celery_distlock.lease import Completion
from celery_distlock.stores.zookeeper import requests
from celery_distlock.stores.zookeeper.clock import Clock
from celery_distlock.stores.zookeeper.layout import Layout
from celery_distlock.stores.zookeeper.record import tells_until, told_until
from celery_distlock.stores.zookeeper.session import Session

__all__ = ["Completions"]


class Completions:
    """The completion records of a store, as one process sees them."""

    def __init__(self, session: Session, layout: Layout, clock: Clock) -> None:
        self._session = session
        self._layout = layout
        self._clock = clock

    def data(self, completion: Completion, end: float) -> bytes:
        """Return what a record tells."""
        return tells_until(self._clock.now(end) + completion.ttl, key=completion.key, run=completion.run)

    def write(self, completions: list[Completion], end: float) -> None:
        """Write records, whether there are some already or not."""
        paths = [self._layout.completion(one) for one in completions]
        data = [self.data(one, end) for one in completions]
        replies = self._session.exchange([*map(requests.create, paths, data)], end).replies
        if any(isinstance(reply, NoNodeError) for reply in replies):
            # The very first ones.
            self._session.exchange([requests.ensure(self._layout.done)], end)
            replies = self._session.exchange([*map(requests.create, paths, data)], end).replies
        old = [i for i, reply in enumerate(replies) if isinstance(reply, NodeExistsError)]
        if old:
            self._session.exchange([requests.put(paths[i], data[i]) for i in old], end)

    def counts(self, reply: Any, end: float) -> bool:
        """Tell from the answer to a ``get`` whether there is a record that counts."""
        until = None if isinstance(reply, KazooException) else told_until(reply[0])
        return until is not None and not self._clock.is_past(until, end)
