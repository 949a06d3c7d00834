"""Commands and replies on the socket of a connection that redis-py has made, in RESP 2.

redis-py's way from a reply's bytes to its value passes through nine functions, which cost more than the system calls
do. The replies of one exchange mostly come in one piece, and RESP 2 has five kinds of them, so they are read here.
With RESP 3 the server may speak up unasked; there redis-py reads.
"""

from __future__ import annotations

import builtins
import socket
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from redis.exceptions import ConnectionError, InvalidResponse, ResponseError, TimeoutError

__all__ = ["Pushes", "Wire", "pushes_of", "wire_of"]

_CHUNK = 65536
_ERROR, _STRING, _INTEGER, _TEXT, _ARRAY = b"-$:+*"


class Wire:
    """The socket of one connected redis-py connection that speaks RESP 2."""

    __slots__ = ("_at", "_data", "_end", "_error_of", "_sock")

    def __init__(self, connection: Any) -> None:
        self._sock = connection._sock
        self._error_of = connection._parser.parse_error
        self._data = b""
        self._at = 0
        self._end = 0.0

    def exchange(self, commands: bytes, count: int, end: float) -> list[Any]:
        """Send these commands and return their replies, errors included.

        After whatever is raised the connection cannot be used any more.

        Arguments:
            commands: in one piece, since each piece is a system call.
            count: how many they are.
            end: monotonic time after which no further piece of the replies is waited for.

        Raises:
            redis.ConnectionError: the connection is lost, or the server refuses everything.
            redis.TimeoutError: the socket's timeout, or ``end``, has passed.
            redis.InvalidResponse: this is not RESP 2.
        """
        self.send(commands)
        return self.receive(count, end)

    def send(self, commands: bytes) -> None:
        """Send these commands; their replies are to be received before anything else is sent.

        Raises:
            redis.ConnectionError, redis.TimeoutError: see :meth:`exchange`.
        """
        try:
            self._sock.sendall(commands)
        except builtins.TimeoutError as exc:
            raise TimeoutError("no answer in time") from exc
        except OSError as exc:
            raise ConnectionError(f"the connection was lost: {exc}") from exc

    def receive(self, count: int, end: float) -> list[Any]:
        """Return the replies to what was sent; arguments and errors are those of :meth:`exchange`."""
        try:
            data = self._data = self._sock.recv(_CHUNK)
            if not data:
                self._closed()
            self._at = 0
            self._end = end
            replies = [self._reply()] if count == 1 else [self._reply() for _ in range(count)]
        except builtins.TimeoutError as exc:
            raise TimeoutError("no answer in time") from exc
        except OSError as exc:
            raise ConnectionError(f"the connection was lost: {exc}") from exc
        except ValueError as exc:
            raise InvalidResponse(f"the server does not speak RESP 2: {exc}") from exc
        if self._at != len(self._data):
            raise InvalidResponse("the server sent more than it was asked for")
        return replies

    def _reply(self) -> Any:
        start = self._at
        stop = self._data.find(b"\r\n", start)
        if stop < 0:
            stop = self._rest_of_line(start)
        self._at = stop + 2
        kind, line = self._data[start], self._data[start + 1 : stop]
        if kind == _INTEGER:
            return int(line)
        if kind == _STRING:
            return self._string(int(line))
        if kind == _ARRAY:
            length = int(line)
            return None if length < 0 else [self._reply() for _ in range(length)]
        if kind == _ERROR:
            return self._failure(line)
        if kind == _TEXT:
            return line
        raise ValueError(f"a reply begins with {self._data[start:stop]!r}")

    def _rest_of_line(self, start: int) -> int:
        stop = -1
        while stop < 0:
            self._more()
            stop = self._data.find(b"\r\n", start)
        return stop

    def _string(self, length: int) -> bytes | None:
        if length < 0:
            return None
        start = self._at
        stop = start + length
        while len(self._data) < stop + 2:
            self._more()
        self._at = stop + 2
        return self._data[start:stop]

    def _failure(self, text: bytes) -> ResponseError:
        error = self._error_of(text.decode(errors="replace"))
        if isinstance(error, ResponseError):
            return error
        # It says nothing about one command, but about all of them: loading, too many clients.
        raise error

    def _more(self) -> None:
        if time.monotonic() >= self._end:
            raise TimeoutError("only a part of the answer came in time")
        piece = self._sock.recv(_CHUNK)
        if not piece:
            self._closed()
        self._data += piece

    @staticmethod
    def _closed() -> NoReturn:
        raise ConnectionError("the server closed the connection")


class _IncompleteError(Exception):
    """A reply has not come as a whole yet."""


class Pushes(Wire):
    """What the server sends unasked to one connected redis-py connection that has subscribed to something.

    From now on its socket does not block.
    """

    __slots__ = ()

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self._sock.setblocking(False)

    def arrived(self) -> Iterator[Any]:
        """Read once, and yield what has come as a whole by now.

        Raises:
            redis.ConnectionError: the connection is lost.
            redis.InvalidResponse: this is not RESP 2.
        """
        try:
            piece = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as exc:
            raise ConnectionError(f"the connection was lost: {exc}") from exc
        if not piece:
            self._closed()
        self._data = self._data[self._at :] + piece
        self._at = 0
        while self._at < len(self._data):
            start = self._at
            try:
                push = self._reply()
            except _IncompleteError:
                self._at = start
                return
            except ValueError as exc:
                raise InvalidResponse(f"the server does not speak RESP 2: {exc}") from exc
            yield push

    def _more(self) -> NoReturn:
        raise _IncompleteError


def wire_of(connection: Any) -> Wire | None:
    """Return the wire of a connected redis-py connection; None if it does not speak RESP 2."""
    return Wire(connection) if str(connection.protocol) == "2" else None


def pushes_of(connection: Any) -> Pushes | None:
    """Return what is pushed to a connection of which everything that has come so far was read by redis-py.

    None if it does not speak RESP 2, or its socket is not a plain one: behind encryption there is another buffer, of
    which an event loop knows nothing.
    """
    plain = type(connection._sock) is socket.socket
    return Pushes(connection) if plain and str(connection.protocol) == "2" else None
