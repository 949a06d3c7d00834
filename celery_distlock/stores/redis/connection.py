"""Connections to one Redis server: taken by one thread or greenlet at a time, and never shared with another process.

redis-py makes the connections (so TLS, authentication and Sentinel are its own) and then stands aside: its command
layer costs more than the commands, and its reader more than the reading (``wire.py``).

What each failure does

* Connection lost: the command is sent once more on a fresh connection, since after a server's restart every pooled
  connection is dead. All our commands may be executed twice.
* No answer in time: no second attempt; the time is used up.
* The server says why not (LOADING, READONLY, wrong password, …): no second attempt.
* Anything else that interrupts a command, a signal's exception above all: the connection is closed, for the reply
  that is still to come would be taken for the next command's.
* Fork: the child closes its copies of the sockets, without a word to the server.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ConnectionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)
from redis.retry import Retry

from celery_distlock.errors import StoreUnavailable
from celery_distlock.stores.redis.wire import Wire, wire_of

__all__ = ["Answer", "Connections"]

#: More idle connections than this are closed: they come from a burst of threads or greenlets.
_MAX_IDLE = 64

#: Subclasses of ConnectionError that a second attempt would only meet again.
_FINAL = (AuthenticationError, AuthorizationError, BusyLoadingError)


class Answer(NamedTuple):
    """Attributes: ``replies``: one per command, errors of the server included; ``sent``: monotonic time before they
    were sent (for the last time); ``attempts``: 2 if the commands may have been executed twice."""

    replies: list[Any]
    sent: float
    attempts: int


class _Link:
    """A redis-py connection, whether it is connected, and how long its socket waits."""

    __slots__ = ("__weakref__", "connected", "connection", "patience", "seconds", "wire")

    def __init__(self, connection: Any, timeout: float) -> None:
        # The caller bounds the whole operation; redis-py's own retries, with their pauses, would stretch it.
        connection.retry = Retry(NoBackoff(), 0)
        self.connection = connection
        self.connected = False
        #: None while redis-py has to read the replies itself.
        self.wire: Wire | None = None
        #: How long the socket waits at most.
        self.patience = min(timeout, connection.socket_timeout or timeout)
        #: How long it waits now.
        self.seconds = self.patience

    def connect(self, seconds: float) -> None:
        # A peer that is gone or frozen can use up two waits: for the connection, and for the first reply of the
        # handshake. Each gets half.
        connection = self.connection
        connection.disconnect()  # the last one may have been interrupted itself
        connection.socket_timeout = connection.socket_connect_timeout = min(self.patience, seconds / 2)
        connection.connect()
        self.wire = wire_of(connection)
        self.connected = True
        self.seconds = connection.socket_timeout

    def wait_at_most(self, seconds: float) -> None:
        seconds = min(self.patience, seconds)
        if seconds != self.seconds and self.connected:
            self.connection._sock.settimeout(seconds)
            self.seconds = seconds

    def disconnect(self) -> None:
        self.connected = False
        self.wire = None
        self.connection.disconnect()


class Connections:
    """The connections of one store, per process.

    Arguments:
        make: makes an unconnected redis-py connection.
        timeout: seconds that one exchange takes at most, reconnecting included.
        name: the server's address, for errors.
    """

    def __init__(self, make: Callable[[], Any], *, timeout: float, name: str) -> None:
        self._make = make
        self._timeout = timeout
        self._name = name
        # Threads and greenlets share it without a lock: list.pop and list.append are atomic.
        self._idle: list[_Link] = []
        self._all: weakref.WeakSet[_Link] = weakref.WeakSet()
        self._pid = os.getpid()
        _everywhere.add(self)

    def exchange(self, commands: Sequence[bytes], give_up: float | None = None) -> Answer:
        """Send these commands in one go and read a reply for each.

        Arguments:
            commands: whole commands in RESP; each may be executed twice.
            give_up: monotonic time; the default is the connections' timeout from now.

        Raises:
            StoreUnavailable: not all replies came.
        """
        packed = commands[0] if len(commands) == 1 else b"".join(commands)
        link = self._take()
        end = time.monotonic() + self._timeout if give_up is None else give_up
        attempts = 0
        try:
            while True:
                attempts += 1
                try:
                    if not link.connected:
                        link.connect(max(end - time.monotonic(), 0.001))
                        link.wait_at_most(max(end - time.monotonic(), 0.001))
                    elif give_up is not None:
                        link.wait_at_most(max(end - time.monotonic(), 0.001))
                    sent = time.monotonic()
                    if link.wire is not None:
                        replies = link.wire.exchange(packed, len(commands), end)
                    else:
                        replies = _by_redis_py(link.connection, packed, len(commands), end)
                    for reply in replies:
                        if isinstance(reply, ResponseError) and _is_read_only(reply):
                            # The primary we knew has become a replica. Whoever is primary now may answer to the name.
                            link.disconnect()
                    if link.seconds != link.patience:
                        link.wait_at_most(self._timeout)
                    return Answer(replies, sent, attempts)
                except ConnectionError as exc:
                    link.disconnect()
                    if attempts > 1 or isinstance(exc, _FINAL) or time.monotonic() >= end:
                        raise
        except (RedisError, OSError) as exc:
            link.disconnect()
            raise StoreUnavailable(self._name, str(exc) or type(exc).__name__) from exc
        except BaseException:
            link.disconnect()
            raise
        finally:
            self._give(link)

    def begin(self, command: bytes) -> Callable[[float], Answer | None] | None:
        """Send one command on a connection that is there, and do not wait.

        Returns:
            None if there is none, or it is lost: nothing is connected here. Else what is to be called once, with the
            seconds that it may wait, and returns the answer; None if it did not come in time.
        """
        if self._pid != os.getpid():
            return None
        try:
            link = self._idle.pop()
        except IndexError:
            return None
        wire, sent = link.wire, time.monotonic()
        try:
            if wire is None:
                self._give(link)
                return None
            wire.send(command)
        except BaseException as exc:
            link.disconnect()
            self._give(link)
            if isinstance(exc, RedisError):
                return None
            raise

        def finish(seconds: float) -> Answer | None:
            try:
                link.wait_at_most(seconds)
                replies = wire.receive(1, time.monotonic() + seconds)
                link.wait_at_most(self._timeout)
                return Answer(replies, sent, 1)
            except BaseException as exc:
                # Its reply would be taken for the next command's.
                link.disconnect()
                if isinstance(exc, RedisError):
                    return None
                raise
            finally:
                self._give(link)

        return finish

    def _take(self) -> _Link:
        if self._pid != os.getpid():
            self.drop()
        try:
            return self._idle.pop()
        except IndexError:
            link = _Link(self._make(), self._timeout)
            self._all.add(link)
            return link

    def _give(self, link: _Link) -> None:
        if len(self._idle) < _MAX_IDLE:
            self._idle.append(link)
        else:
            link.disconnect()

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().disconnect()

    def drop(self) -> None:
        """Forget the parent's connections in a forked child: redis-py closes the copies of the sockets in a process
        that did not make them without shutting the connections down."""
        links, self._all, self._idle = list(self._all), weakref.WeakSet(), []
        self._pid = os.getpid()
        for link in links:
            link.disconnect()


def _by_redis_py(connection: Any, commands: bytes, count: int, end: float) -> list[Any]:
    """Do what :meth:`Wire.exchange` does on a connection that speaks RESP 3."""
    connection.send_packed_command([commands], check_health=False)
    replies: list[Any] = []
    while True:
        try:
            replies.append(connection.read_response(disable_decoding=True))
        except ResponseError as exc:
            replies.append(exc)
        if len(replies) == count:
            return replies
        if time.monotonic() >= end:
            raise TimeoutError(f"{len(replies)} of {count} replies came in time")


def _is_read_only(error: ResponseError) -> bool:
    # Before Redis 7, an error inside a script is wrapped into another.
    return isinstance(error, ReadOnlyError) or "-READONLY " in str(error)


_everywhere: weakref.WeakSet[Connections] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for connections in list(_everywhere):
        connections.drop()


os.register_at_fork(after_in_child=_after_fork_in_child)
