"""A process that takes other people's locks, again and again: ``python -m tests.lab.peer KIND KEY TTL HOLD``.

It believes in a lock for as long as the library's own object says that it is held. It ends when it is killed.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from abc import ABC, abstractmethod
from typing import Any

import redis
import redis.lock
import redis_lock
from kazoo.client import KazooClient

from tests.lab import history, setting
from tests.lab.belief import believing
from tests.lab.effects import RESOURCE, Lists
from tests.lab.locker import URL

__all__ = ["PEERS", "Peer"]

_ALWAYS = 1e5


class Peer(ABC):
    """Somebody else's lock.

    Arguments:
        url: where it lives.
        key: its name.
        ttl: seconds.
    """

    def __init__(self, url: str, key: str, ttl: float) -> None:
        self.url, self.key, self.ttl = url, key, ttl

    @abstractmethod
    def acquire(self) -> bool:
        """Wait for it, for a while."""

    @abstractmethod
    def release(self) -> None:
        """Give it back."""

    @abstractmethod
    def says_it_holds(self) -> bool:
        """Return what the library's object says, without asking anybody."""

    @property
    def remaining(self) -> float:
        """Seconds for which it may be believed: none of them gives a time."""
        return _ALWAYS if self.says_it_holds() else 0.0


class RedisPy(Peer):
    """``redis.lock.Lock``."""

    def __init__(self, url: str, key: str, ttl: float) -> None:
        super().__init__(url, key, ttl)
        self._client = redis.Redis.from_url(url.partition("?")[0], socket_timeout=1.0)
        self._lock: redis.lock.Lock = self._client.lock(key, timeout=ttl, sleep=0.02)

    def acquire(self) -> bool:
        return bool(self._lock.acquire(blocking_timeout=2.0))

    def release(self) -> None:
        self._lock.release()

    def says_it_holds(self) -> bool:
        return self._lock.local.token is not None


class PythonRedisLock(Peer):
    """``redis_lock.Lock``, with its own renewal."""

    def __init__(self, url: str, key: str, ttl: float) -> None:
        super().__init__(url, key, ttl)
        client = redis.Redis.from_url(url.partition("?")[0], socket_timeout=10.0)
        self._lock: Any = redis_lock.Lock(client, key, expire=max(1, round(ttl)), auto_renewal=True)
        self._held = False

    def acquire(self) -> bool:
        self._held = bool(self._lock.acquire(blocking=True, timeout=max(1, int(self.ttl))))
        return self._held

    def release(self) -> None:
        self._held = False
        self._lock.release()

    def says_it_holds(self) -> bool:
        return self._held


class Kazoo(Peer):
    """``kazoo.recipe.lock.Lock``."""

    _client: Any = None

    def __init__(self, url: str, key: str, ttl: float) -> None:
        super().__init__(url, key, ttl)
        if Kazoo._client is None:
            Kazoo._client = KazooClient(hosts=url.partition("://")[2].partition("?")[0], timeout=2.0)
            Kazoo._client.start(timeout=15)
        self._lock = Kazoo._client.Lock(f"/peers/{key}", identifier=setting.role())

    def acquire(self) -> bool:
        return bool(self._lock.acquire(timeout=5.0))

    def release(self) -> None:
        self._lock.release()

    def says_it_holds(self) -> bool:
        return bool(self._lock.is_acquired)


PEERS: dict[str, type[Peer]] = {"redis-py": RedisPy, "python-redis-lock": PythonRedisLock, "kazoo": Kazoo}


def lock_for_ever(kind: str, key: str, ttl: float, hold: float) -> None:
    """Take it, hold it, give it back; for ever."""
    while True:
        lock = PEERS[kind](os.environ[URL], key, ttl)
        try:
            held = lock.acquire()
        except Exception as error:
            history.note("unavailable", error=str(error)[:200])
            time.sleep(0.1)
            continue
        if not held:
            continue
        with believing(lock, key, uuid.uuid4().hex, time.time_ns() // 1000, role=setting.role()) as it:
            lists = Lists(key, time.time_ns() // 1000) if RESOURCE in os.environ else None
            it.hold(hold)
            if lists is not None:
                lists.write("plain")
        try:
            lock.release()
        except Exception as error:
            history.note("release refused", error=f"{type(error).__name__}: {error}"[:200])
        time.sleep(0.01)


if __name__ == "__main__":
    lock_for_ever(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
