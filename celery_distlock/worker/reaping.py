"""Have the pool notice a dead child at once.

The pool looks at a child when its sentinel becomes readable, which is a moment before the kernel lets it be reaped;
then the next look is up to five seconds away (likely celery #9588). The lock is free by then, but the task's result,
its slot in the pool and, with late acknowledgement, its message wait for that look. So the pool is asked to look
again, soon and less and less often, until the child is gone from it.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

__all__ = ["Reaping"]

_FIRST_LOOK, _LAST_LOOK = 0.005, 1.0


class Reaping:
    """Carries the news of a death from the warden's thread into the event loop's, the only one that may touch the pool.

    Arguments:
        worker: the worker; only prefork pools under an event loop are looked after.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._hub: Any = None

    def register(self, hub: Any) -> None:
        """Listen in this event loop; it forgets its readers at every reconnect."""
        self._hub = hub
        hub.add_reader(self._read, self._told)

    def child_died(self) -> None:
        """Tell the event loop, from any thread. (``hub.call_soon`` wakes it only from kombu 5.7 on.)"""
        with contextlib.suppress(OSError):
            self._write.send(b"\0")

    def _told(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._read.recv(4096):
                pass
        self._look(_FIRST_LOOK)

    def _look(self, pause: float) -> None:
        pool = getattr(self._worker.pool, "_pool", None)
        if pool is None:
            return
        pool.maintain_pool()
        if pause <= _LAST_LOOK and any(process.exitcode is None and _is_zombie(process.pid) for process in pool._pool):
            self._hub.call_later(pause, self._look, pause * 2)


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return False
