"""Completion records: which runs have done their work.

A record is a node of its own, named after the digest of key and run, that tells until when it counts, by the wall clock
of who wrote it: ZooKeeper's own nodes with a time to live need a server that was told to have them. What is overdue is
swept by whoever writes records, every now and then.
"""

from __future__ import annotations

import json
import time
from typing import Any

from kazoo.exceptions import KazooException, NodeExistsError

from celery_distlock.lease import Completion
from celery_distlock.stores.zookeeper import requests
from celery_distlock.stores.zookeeper.layout import Layout
from celery_distlock.stores.zookeeper.session import Session

__all__ = ["Completions"]

#: Seconds between two sweeps of a process that writes records.
_SWEEP_EVERY = 600.0
#: How many records are looked at in one go.
_MANY = 500


class Completions:
    """The completion records of a store, as one process sees them."""

    def __init__(self, session: Session, layout: Layout) -> None:
        self._session = session
        self._layout = layout
        #: Whether the node above the records is known to exist.
        self._ready = False
        #: When to sweep next; infinite until a record was written.
        self.sweep_at = float("inf")

    def data(self, completion: Completion) -> bytes:
        """Return what a record tells."""
        return json.dumps({"until": time.time() + completion.ttl}).encode()

    def prepare(self, end: float) -> None:
        """See to it that records can be written."""
        if not self._ready:
            self._session.exchange([requests.ensure(self._layout.done)], end)
            self._ready = True
            self.sweep_at = time.monotonic()

    def write(self, completions: list[Completion], end: float) -> None:
        """Write records, whether there are some already or not."""
        paths = [self._layout.completion(one) for one in completions]
        data = [self.data(one) for one in completions]
        replies = self._session.exchange([*map(requests.create, paths, data)], end).replies
        old = [i for i, reply in enumerate(replies) if isinstance(reply, NodeExistsError)]
        if old:
            self._session.exchange([requests.put(paths[i], data[i]) for i in old], end)

    def sweep(self, end: float) -> None:
        """Delete records that count no more."""
        names = self._session.exchange([requests.children(self._layout.done)], end).replies[0]
        self.sweep_at = time.monotonic() + _SWEEP_EVERY
        if isinstance(names, KazooException):
            return
        paths = [f"{self._layout.done}/{name}" for name in names]
        for start in range(0, len(paths), _MANY):
            some = paths[start : start + _MANY]
            replies = self._session.exchange([*map(requests.get, some)], end).replies
            overdue = [path for path, reply in zip(some, replies, strict=True) if not counts(reply, other=True)]
            self._session.exchange([*map(requests.delete, overdue)], end)


def counts(reply: Any, *, other: bool = False) -> bool:
    """Tell from the answer to a ``get`` whether there is a record that counts; ``other`` if that cannot be read."""
    if isinstance(reply, KazooException):
        return other
    try:
        return bool(json.loads(reply[0])["until"] > time.time())
    except (ValueError, TypeError, KeyError):
        return other
