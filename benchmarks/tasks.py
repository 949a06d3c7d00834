"""Tasks that do nothing, each under another library's lock: what is measured is the lock alone.

All libraries keep their locks in the same Redis database.
"""

from __future__ import annotations

import functools
import socket
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

import redis
from celery_heimdall import HeimdallTask
from celery_once import AlreadyQueued, QueueOnce
from celery_singleton import Singleton

from celery_distlock import LockedTask
from celery_distlock.lease import Claim, Completion, Holder, Lease, Renewal, deadline_of
from celery_distlock.stores.base import LockStore
from tests.support.apps import make_app

#: What celery-once raises when it does not publish; the others return the first one's result.
REFUSED = AlreadyQueued

app = make_app(__name__, worker_prefetch_multiplier=8)
_locks = app.conf.get("distlock_url", "redis://localhost")
app.conf.update(
    ONCE={"backend": "celery_once.backends.Redis", "settings": {"url": _locks, "default_timeout": 3600}},
    singleton_backend_url=_locks,
    # A duplicate is told at once, as the other libraries do it; the default is to wait for a second.
    heimdall_unique_lock_blocking=False,
)


class Heimdall(HeimdallTask):
    """Keep the locks where the others' are; by default they are beside the results."""

    abstract = True

    def setup_redis(self) -> redis.Redis:
        return redis.Redis.from_url(_locks)


@app.task
def bare(number: int) -> None:
    """Do nothing."""


@app.task(base=LockedTask)
def locked(number: int) -> None:
    """Do nothing, under a lock named by all arguments."""


@app.task(base=LockedTask, lock_key="order:{number}")
def locked_keyed(number: int) -> None:
    """Do nothing, under a lock named by a template."""


@app.task(base=LockedTask, lock_key=lambda number: None)
def no_key(number: int) -> None:
    """Do nothing, in a class that could lock it."""


class _AtOnce(LockStore):
    """Grant everything, without asking anybody."""

    name = "at once"

    def acquire(self, claim: Claim) -> Lease:
        deadline = deadline_of(time.monotonic(), claim.ttl)
        return Lease(claim.key, claim.owner, 1, claim.ttl, deadline, claim.limit)

    def release(self, leases: Sequence[Lease], completions: Sequence[Completion | None] = ()) -> list[bool]:
        return [True] * len(leases)

    def renew(self, leases: Sequence[Lease]) -> list[Renewal]:
        return [Renewal.HELD] * len(leases)

    def forget(self, completions: Sequence[Completion]) -> None: ...

    def holders(self, key: str | None = None, *, prefix: str = "") -> list[Holder]:
        return []

    def close(self) -> None: ...


class _WithoutAStore(LockedTask):
    """Have the lock granted at once."""

    abstract = True
    _lock_store = _AtOnce()


@app.task(base=_WithoutAStore)
def at_once(number: int) -> None:
    """Do nothing, under a lock that is had without asking."""


@app.task(base=LockedTask, unique_while="queued_or_running")
def unique(number: int) -> None:
    """Do nothing, under a lock, and not be queued twice either."""


@app.task(base=QueueOnce)
def celery_once(number: int) -> None:
    """Do nothing, under celery-once's lock."""


@app.task(base=Singleton)
def celery_singleton(number: int) -> None:
    """Do nothing, under celery-singleton's lock."""


@app.task(base=Heimdall, heimdall={"unique": True})
def celery_heimdall(number: int) -> None:
    """Do nothing, under celery-heimdall's lock."""


@functools.cache
def _socket() -> socket.socket:
    address = urlsplit(app.conf.distlock_url)
    made = socket.create_connection((address.hostname, address.port))
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


#: As long as what acquires a lock; the server answers with as much.
_PING = b"*2\r\n$4\r\nPING\r\n$700\r\n" + b"x" * 700 + b"\r\n"


@app.task
def floor(number: int) -> None:
    """Do nothing but two round trips to the lock store on a bare socket: less no lock of this kind can cost."""
    for _ in range(2):
        _socket().sendall(_PING)
        _socket().recv(4096)


@app.task(acks_late=True)
def bare_late(number: int) -> None:
    """Do nothing; acknowledged late."""


@app.task(base=LockedTask, acks_late=True)
def locked_late(number: int) -> None:
    """Do nothing, under a lock; acknowledged late, with a completion record."""
