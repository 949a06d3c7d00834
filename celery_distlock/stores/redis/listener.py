"""Hearing of offers: one pub/sub connection and one thread.

Authority
    None. A hint says "look now"; whether there is an offer, the store's scripts decide. Hints that are lost, because
    the connection was, cost the time until the next poll.

The thread connects, and sees that the connection lives. It also reads, unless it is given an event loop::

    thread                                      event loop
    connect ─ subscribe ─ report the gap ─────▶ reads whatever comes
    waits; asks for a sign of life              │
      ▲  the connection is lost, or to end      │
      └──────────────────────────────────◀──────┘
    has it removed from the loop, and only then closed: by then its number may be another socket's

What each failure does

* Connection lost or refused: connected anew, at once, then after pauses that double up to a second, for ever.
  Whenever it is subscribed (again), the gap is reported, for hints may have been lost in it.
* A peer that vanished without a word: after ten seconds without a hint the server is asked for a sign of life, and
  ten seconds later taken for gone.
* Fork: the child closes its copy of the socket; nobody there listens.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, RedisError, TimeoutError
from redis.retry import Retry

from celery_distlock.lease import new_owner
from celery_distlock.stores.base import EventLoop, Listener
from celery_distlock.stores.redis.layout import Layout
from celery_distlock.stores.redis.scripts import command
from celery_distlock.stores.redis.wire import Pushes, pushes_of

__all__ = ["RedisListener"]

logger = logging.getLogger(__name__)

#: Seconds of silence after which the server must give a sign of life.
_QUIET = 10.0
_FIRST_PAUSE, _LAST_PAUSE = 0.05, 1.0
#: How redis-py is to read; with RESP 3, what it is told is a push.
_READING = {"disable_decoding": True, "disconnect_on_error": False, "push_request": True}


class RedisListener(Listener):
    """Hears of offers to one process's waiters.

    Arguments:
        make: makes an unconnected redis-py connection.
        layout: the store's.
        on_offer, on_gap: see :meth:`Queueing.listen`.
        address: the server's, for the log.
        loop: reads in the thread's stead.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        layout: Layout,
        on_offer: Callable[[str, str], None],
        on_gap: Callable[[], None],
        address: str,
        loop: EventLoop | None = None,
    ) -> None:
        self.name = new_owner()
        self._make = make
        self._layout = layout
        self._on_offer = on_offer
        self._on_gap = on_gap
        self._address = address
        self._loop = loop
        self._connection: Any = None
        self._heard_at = 0.0
        #: Set when the event loop reads no more.
        self._over = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="distlock-listener", daemon=True)
        _everywhere.add(self)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether it will never hear anything again."""
        return self._closed.is_set()

    def close(self) -> None:
        """Hear nothing more; the thread ends at once."""
        self._closed.set()
        self._over.set()
        sock = getattr(self._connection, "_sock", None)
        if sock is not None:
            # This wakes the thread, which closes the connection.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        if self._thread is not threading.current_thread():
            self._thread.join(1.0)

    def drop(self) -> None:
        """Close the copy of the parent's socket in a forked child, without a word to the server."""
        self._closed = threading.Event()
        self._closed.set()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    def _run(self) -> None:
        pause = 0.0
        while not self._closed.wait(pause):
            heard = False
            try:
                self._connect()
                heard = True
                if self._loop is None:
                    self._listen()
                else:
                    self._listen_in(self._loop)
            except (RedisError, OSError) as exc:
                if not self._closed.is_set():
                    logger.debug("listening at %s: %s", self._address, exc, extra={"store": self._address})
            except Exception:
                logger.exception("listening at %s: unexpected error; the thread goes on", self._address)
            finally:
                connection, self._connection = self._connection, None
                if connection is not None:
                    connection.disconnect()
            pause = 0.0 if heard and not pause else min(_LAST_PAUSE, max(_FIRST_PAUSE, 2 * pause))

    def _connect(self) -> None:
        connection = self._make()
        connection.retry = Retry(NoBackoff(), 0)
        connection.socket_timeout = _QUIET
        if connection.socket_connect_timeout is None:
            connection.socket_connect_timeout = _QUIET
        self._connection = connection
        connection.connect()
        self._over.clear()
        channel = self._layout.channel(self.name)
        connection.send_packed_command([command(b"SUBSCRIBE", channel)], check_health=False)
        connection.read_response(disable_decoding=True, push_request=True)
        self._on_gap()

    def _listen(self) -> None:
        connection = self._connection
        asked = False
        while not self._closed.is_set():
            try:
                self._hear(connection.read_response(**_READING))
            except TimeoutError:
                if asked:
                    raise ConnectionError("the server is silent") from None
                asked = True
                connection.send_packed_command([command(b"PING")], check_health=False)
                continue
            asked = False

    def _listen_in(self, loop: EventLoop) -> None:
        """Have an event loop read."""
        connection = self._connection
        fd = connection._sock.fileno()
        failures: list[Exception] = []
        self._heard_at = time.monotonic()

        pushes: Pushes | None = None

        def read() -> bool:
            nonlocal pushes
            try:
                if pushes is not None:
                    self._heard_at = time.monotonic()
                    for push in pushes.arrived():
                        self._hear(push)
                    return not self._over.is_set()
                while not self._over.is_set() and connection.can_read(timeout=0):
                    self._heard_at = time.monotonic()
                    self._hear(connection.read_response(**_READING))
                # By now nothing is left in redis-py's own buffer, which took more time than everything else.
                pushes = pushes_of(connection)
            except Exception as exc:
                # Our thread says what it makes of it.
                failures.append(exc)
                self._over.set()
            return not self._over.is_set()

        def ask() -> None:
            # By who reads: while it looks whether there is anything to read, the socket waits for nothing.
            with contextlib.suppress(RedisError, OSError):
                connection.send_packed_command([command(b"PING")], check_health=False)

        loop.add_reader(fd, read)
        try:
            asked_at = 0.0
            while not self._closed.is_set():
                quiet_until = max(self._heard_at, asked_at) + _QUIET
                if self._over.wait(max(0.0, quiet_until - time.monotonic())):
                    break
                if self._heard_at + _QUIET > quiet_until:
                    continue
                if self._heard_at < asked_at:
                    raise ConnectionError("the server is silent")
                asked_at = time.monotonic()
                loop.call(ask)
        finally:
            gone = threading.Event()
            loop.remove_reader(fd, gone.set)
            gone.wait()
        if failures:
            raise failures[0]

    def _hear(self, push: Any) -> None:
        if isinstance(push, list) and len(push) == 3 and push[0] == b"message":
            hint = self._layout.hint(push[2])
            if hint is not None:
                self._on_offer(*hint)


_everywhere: weakref.WeakSet[RedisListener] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for listener in list(_everywhere):
        listener.drop()


os.register_at_fork(after_in_child=_after_fork_in_child)
