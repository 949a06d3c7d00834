"""The way into the consumer's thread, the only one that may touch the pool, channels and QoS."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["ConsumerThread"]

log = logging.getLogger(__name__)


class ConsumerThread:
    """Runs functions in the consumer's thread, or greenlet, soon.

    Under an event loop a socket wakes it (``hub.call_soon`` does that from kombu 5.7 on only, and its timer not at
    all); green pools have no event loop, and a timer that is one.
    """

    def __init__(self) -> None:
        self._calls: deque[Callable[[], object]] = deque()
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._hub: Any = None
        self._timer: Any = None
        self._ident: int | None = None
        self._readers: dict[int, Callable[[], bool]] = {}
        self._closed = False

    @property
    def has_hub(self) -> bool:
        """Whether the consumer's thread runs an event loop."""
        return self._hub is not None

    def register(self, hub: Any) -> None:
        """Listen in this event loop; it forgets its readers at every reconnect."""
        self._hub, self._ident = hub, threading.get_ident()
        hub.add_reader(self._read, self._run)
        for fd, callback in list(self._readers.items()):
            self._begin_reading(fd, callback)

    def connected(self, consumer: Any) -> None:
        """Note the consumer's timer."""
        self._timer = consumer.timer

    def call(self, function: Callable[[], object]) -> None:
        """Run ``function`` soon; from any thread."""
        self._calls.append(function)
        if self._hub is None and self._timer is not None:
            self._timer.call_after(0, self._run)
        else:
            # A full pipe means that the wake-up is under way.
            with contextlib.suppress(OSError):
                self._write.send(b"\0")

    def call_first(self, function: Callable[[], object]) -> None:
        """Run ``function`` now, if this is the consumer's thread, under an event loop; else soon."""
        if threading.get_ident() == self._ident:
            function()
        else:
            self.call(function)

    def call_after(self, delay: float, function: Callable[[], None]) -> None:
        """Run ``function`` after ``delay`` seconds; from the consumer's thread."""
        self._timer.call_after(delay, function)

    def add_reader(self, fd: int, callback: Callable[[], bool]) -> None:
        """Call ``callback`` now and whenever ``fd`` is readable, until it returns False; see :class:`EventLoop`."""
        self._readers[fd] = callback
        self.call(lambda: self._begin_reading(fd, callback))

    def remove_reader(self, fd: int, then: Callable[[], None]) -> None:
        """Call the callback of ``fd`` no more, and then ``then``; see :class:`EventLoop`."""
        callback = self._readers.get(fd)

        def remove() -> None:
            self._stop_reading(fd, callback)
            then()

        if self._closed:
            then()
        else:
            self.call(remove)

    def _begin_reading(self, fd: int, callback: Callable[[], bool]) -> None:
        if self._readers.get(fd) is callback:
            self._hub.add_reader(fd, self._on_readable, fd, callback)
            self._on_readable(fd, callback)

    def _on_readable(self, fd: int, callback: Callable[[], bool]) -> None:
        if not callback():
            self._stop_reading(fd, callback)

    def _stop_reading(self, fd: int, callback: Callable[[], bool] | None) -> None:
        # By now the number may be that of somebody else's socket.
        if callback is not None and self._readers.get(fd) is callback:
            del self._readers[fd]
            self._hub.remove_reader(fd)

    def close(self) -> None:
        """Close the sockets."""
        self._closed = True
        self._read.close()
        self._write.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while self._read.recv(4096):
                pass
        while self._calls:
            try:
                self._calls.popleft()()
            except Exception:
                log.exception("unexpected error in the consumer's thread")
