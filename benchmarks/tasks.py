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
from celery_distlock.stores.redis.arguments import LINGER, of_claim
from celery_distlock.stores.redis.layout import Layout
from celery_distlock.stores.redis.scripts import ACQUIRE, RELEASE
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
    for script in (ACQUIRE, RELEASE):
        made.sendall(script.load)
        made.recv(4096)
    return made


def _calls() -> tuple[bytes, bytes]:
    """Return how a lock is taken and given back, with the mark where its key, its owner and its fence are told."""
    layout, record = Layout("benchmark"), {"task": "benchmarks.tasks.locked", "host": "bench@here", "id": _MARK}
    key, owner = layout.packed(f"benchmarks.tasks.locked:{_MARK}"), _MARK.encode()
    taken = ACQUIRE.call(key, (owner, *of_claim(Claim("", "", 30.0, 1, record))[1:]))
    return taken, RELEASE.call(key, (owner, LINGER, _FENCE, b"0"))


_MARK = "m" * 32
_FENCE = b"f" * 16
_ACQUIRED, _RELEASED = _calls()


@app.task
def floor(number: int) -> None:
    """Do nothing but make a lock's two calls, on a bare socket: less no lock of this kind can cost."""
    mark, server = b"%032x" % number, _socket()
    server.sendall(_ACQUIRED.replace(_MARK.encode(), mark))
    fence = server.recv(4096)[5:-2]
    server.sendall(_RELEASED.replace(_MARK.encode(), mark).replace(_FENCE, fence))
    if server.recv(4096) != b":1\r\n":
        raise RuntimeError("the lock was not released")


@app.task(acks_late=True)
def bare_late(number: int) -> None:
    """Do nothing; acknowledged late."""


@app.task(base=LockedTask, acks_late=True)
def locked_late(number: int) -> None:
    """Do nothing, under a lock; acknowledged late, with a completion record."""
