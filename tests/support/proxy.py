"""A TCP proxy that breaks connections on demand.

One thread accepts, two more carry the bytes of each connection, one per direction. Directions are named after the
receiver: ``"server"`` for requests, ``"client"`` for replies.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Literal, Protocol
from urllib.parse import urlsplit, urlunsplit

from tests.support.ports import free_port

__all__ = ["Direction", "Fault", "Match", "Proxy", "Target"]

Direction = Literal["server", "client"]
Match = bytes | Callable[[bytes], bool]

_DIRECTIONS: tuple[Direction, ...] = ("server", "client")
_CHUNK = 65536


class Target(Protocol):
    """A server that a proxy can stand before."""

    host: str
    port: int


class Fault:
    """A fault that waits for a request.

    Attributes:
        happened: set once the connection was broken.
        request: the bytes that set it off.
    """

    def __init__(self, match: Match, *, forward: bool) -> None:
        self._match = match
        self.forward = forward
        self.happened = threading.Event()
        self.request = b""

    def matches(self, data: bytes) -> bool:
        return self._match in data if isinstance(self._match, bytes) else self._match(data)

    def wait(self, timeout: float = 10.0) -> None:
        """Wait until the fault has happened.

        Raises:
            AssertionError: it did not within ``timeout`` seconds.
        """
        assert self.happened.wait(timeout), "no request matched: the fault did not happen"


class _Connection:
    """A client's connection and the one to the server that it stands for."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self.proxy = proxy
        self.ends: dict[Direction, socket.socket] = {"client": client, "server": server}
        self.fault: Fault | None = None
        self._open_ways = 2
        self._lock = threading.Lock()
        for to in _DIRECTIONS:
            threading.Thread(target=self._carry, args=(to,), daemon=True, name=f"proxy-to-{to}").start()

    def _carry(self, to: Direction) -> None:
        source = self.ends["client" if to == "server" else "server"]
        try:
            while data := source.recv(_CHUNK):
                self.proxy.pass_gate(to)
                if to == "server":
                    fault = self.proxy.take_fault(data)
                    if fault is not None:
                        # Before the request is sent: its reply may come at once, in the other thread.
                        self.fault = fault
                        if not fault.forward:
                            return self._break()
                elif self.fault is not None:
                    return self._break()
                self.ends[to].sendall(data)
            self.proxy.pass_gate(to)
            self.ends[to].shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
        with self._lock:
            self._open_ways -= 1
            last = self._open_ways == 0
        if last:
            self.close()
        return None

    def _break(self) -> None:
        assert self.fault is not None
        self.close()
        self.fault.happened.set()

    def close(self) -> None:
        """Reset both sides."""
        for end in self.ends.values():
            with contextlib.suppress(OSError):
                # Linger 0 makes close() a reset; shutdown wakes the thread that is reading the socket.
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.proxy.forget(self)


class Proxy:
    """Forwards a loopback port of its own to a server; see the methods for what it can break.

    Arguments:
        host: the server's address.
        port: the server's port.
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.host = "127.0.0.1"
        self.port = free_port()
        self._lock = threading.Lock()
        self._connections: set[_Connection] = set()
        self._faults: list[Fault] = []
        self._gates: dict[Direction, threading.Event] = {to: threading.Event() for to in _DIRECTIONS}
        self._delays: dict[Direction, float] = dict.fromkeys(_DIRECTIONS, 0.0)
        self._never = threading.Event()
        self._listener: socket.socket | None = None
        self.resume()
        self.accept()

    def url(self, url: str) -> str:
        """Return a URL of the server with the proxy's address in its place."""
        parts = urlsplit(url)
        auth, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{auth}{at}{self.host}:{self.port}"))

    # What can be broken.

    def cut(self) -> None:
        """Reset every connection; new ones are welcome."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.close()

    def refuse(self) -> None:
        """Refuse new connections; those that exist live on (see :meth:`cut`)."""
        if self._listener is not None:
            listener, self._listener = self._listener, None
            # shutdown wakes the accepting thread, which close alone would leave waiting.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def accept(self) -> None:
        """Accept new connections, after :meth:`refuse`."""
        if self._listener is None:
            self._listener = socket.create_server((self.host, self.port), backlog=128)
            threading.Thread(target=self._serve, args=(self._listener,), daemon=True, name="proxy-accept").start()

    def pause(self, *to: Direction) -> None:
        """Hold back bytes to ``"server"``, to ``"client"``, or both when none is named."""
        for direction in to or _DIRECTIONS:
            self._gates[direction].clear()

    def resume(self, *to: Direction) -> None:
        """Deliver what was held back, and go on."""
        for direction in to or _DIRECTIONS:
            self._gates[direction].set()

    def delay(self, seconds: float, *to: Direction) -> None:
        """Deliver every piece of data ``seconds`` later (0 ends it)."""
        for direction in to or _DIRECTIONS:
            self._delays[direction] = seconds

    def half_close(self, to: Direction) -> None:
        """Tell one side of every connection that the other has nothing more to say."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.ends[to].shutdown(socket.SHUT_WR)

    def swallow_reply(self, match: Match = b"") -> Fault:
        """Forward the next request that matches, wait for the server's reply, drop it and reset the connection."""
        return self._add(Fault(match, forward=True))

    def swallow_request(self, match: Match = b"") -> Fault:
        """Drop the next request that matches and reset the connection: the server never sees it."""
        return self._add(Fault(match, forward=False))

    def disarm(self) -> None:
        """Forget the faults that wait for a request."""
        with self._lock:
            self._faults.clear()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        with self._lock:
            return len(self._connections)

    def close(self) -> None:
        """Refuse and reset everything."""
        self.refuse()
        self.resume()
        self.cut()

    # For the threads.

    def _add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def take_fault(self, data: bytes) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.matches(data):
                    self._faults.remove(fault)
                    fault.request = data
                    return fault
        return None

    def pass_gate(self, to: Direction) -> None:
        self._gates[to].wait()
        if self._delays[to]:
            self._never.wait(self._delays[to])

    def forget(self, connection: _Connection) -> None:
        with self._lock:
            self._connections.discard(connection)

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self.target, timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._connections.add(_Connection(self, client, server))
