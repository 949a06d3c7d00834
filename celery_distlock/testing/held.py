"""Be the one who is in the way."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery_distlock.errors import LockContended
from celery_distlock.lease import Claim, Completed, Lease, new_owner
from celery_distlock.stores.base import LockStore

__all__ = ["hold"]


@contextmanager
def hold(store: LockStore, key: str, *, ttl: float = 60.0, limit: int = 1, **record: Any) -> Iterator[Lease]:
    """Hold one place of a key while the ``with`` block runs; it is not renewed.

    Arguments:
        store: where the lock lives.
        key: the whole key, as the task under test computes it.
        ttl: seconds until the place may be taken over; a small one shows what happens after a holder's death.
        limit: how many may hold the key.
        record: what the contended task sees of its holder: ``task``, ``id``, ``identifier``, ….

    Raises:
        LockContended: somebody else holds the key.
        StoreUnavailable: the store did not answer.
    """
    described = {"since": time.time(), "host": socket.gethostname(), "pid": os.getpid(), **record}
    lease = store.acquire(Claim(key, new_owner(), ttl, limit, described))
    if not isinstance(lease, Lease):
        raise LockContended(key, None if isinstance(lease, Completed) else lease.holder)
    try:
        yield lease
    finally:
        store.release([lease])
