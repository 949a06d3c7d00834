"""What the tests of endings look at: when a process died, and when a key could be had."""

from __future__ import annotations

import os
import select
import threading
import time
from typing import Any

from celery_distlock import Lock
from tests.support.journal import Journal

__all__ = [
    "Death",
    "Grant",
    "assert_free_at_once",
    "excluded_until_its_end",
    "first_grant",
    "lock_of",
    "seen_held",
]


class Death:
    """The moment a process ends, by its pidfd: no report of anybody's, and no number that is used again.

    Arguments:
        pid: a process that is alive.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        self._at: float | None = None
        self._noted = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name=f"death-of-{pid}").start()

    def _watch(self) -> None:
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        poller.poll()
        self._at = time.monotonic()
        self._noted.set()

    @property
    def happened(self) -> bool:
        """Whether the process has ended by now; asked from the kernel."""
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return bool(poller.poll(0))

    def wait(self, timeout: float = 20.0) -> float:
        """Wait for it and return its monotonic time, at most a moment late."""
        assert self._noted.wait(timeout), f"process {self.pid} still lives after {timeout} s"
        assert self._at is not None
        return self._at


class Grant:
    """What :func:`first_grant` saw.

    Attributes:
        asked: monotonic time at which the request that succeeded was sent.
        at: when its answer was there.
        fence: the grant's number.
        after: whether the watched process had ended by then; True where none was watched.
    """

    def __init__(self, asked: float, at: float, fence: int, after: bool) -> None:
        self.asked, self.at, self.fence, self.after = asked, at, fence, after


def lock_of(tasks: Any, key: str, **options: Any) -> Lock:
    """Return a lock of the test's own on a task's key."""
    return Lock(key, app=tasks.app, **options)


def first_grant(lock: Lock, death: Death | None = None, timeout: float = 20.0) -> Grant:
    """Ask for a lock again and again, a millisecond apart, until it is granted; then release it."""
    deadline = time.monotonic() + timeout
    while True:
        asked = time.monotonic()
        if lock.acquire(blocking=False):
            at = time.monotonic()
            after = death is None or death.happened
            fence = lock.fence
            lock.release()
            assert fence is not None
            return Grant(asked, at, fence, after)
        assert time.monotonic() < deadline, f"{lock!r} was not granted within {timeout} s; held by {lock.holders()}"
        # Nothing tells a stranger when a key becomes free: the tests' measure is a polling lock.
        time.sleep(0.001)


def assert_free_at_once(tasks: Any, key: str, within: float = 3.0) -> None:
    """Fail unless the key can be had now; a result is stored a moment before its lock is released."""
    lock = lock_of(tasks, key)
    assert lock.acquire(timeout=within), f"{key!r} is still held by {lock.holders()}"
    lock.release()
    assert lock.holders() == []


def excluded_until_its_end(tasks: Any, journal: Journal, key: str) -> None:
    """Fail if the key of a body that ends by itself, and well, could be had before its end; wait for that."""
    journal.wait_for("start", key=key)
    grant = first_grant(lock_of(tasks, key))
    (run,) = journal.runs(key)
    assert run.error is None
    assert grant.at >= run.end, f"{key!r} was granted while its body ran"


def seen_held(lock: Lock, seconds: float) -> None:
    """Fail if the key can be had within so many seconds, which are more than its holder's ttl."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert not lock.acquire(timeout=max(0.0, end - time.monotonic())), f"{lock!r} was granted"
