"""Kazoo's connection to one server after the other, as we need it.

Authority
    The leader ends sessions, when it has not heard of them for their time-out. The server in between tells it of its
    clients' signs of life every half tick only; should that server die, the last ones are lost.

So an answer proves less than it seems to: a follower may give it right before the leader, which has not heard of the
question, ends the session. What the leader does know of are signs of life that are older than half a tick, which is a
quarter of the time-out at most, since a time-out is two ticks at least; and new connections, for which it is asked.

The rule
    A request is sent only if the leader is known to have heard of the session within the last *half* of its time-out:
    by a connection made since then, or by a sign of life that is at least a quarter old. Then the session lasts for
    another half from the moment of sending, whoever dies; that is what :class:`~.session.Session` relies upon. Else the
    connection is made anew first. Pings are sent often enough that this happens only after this process stood still.
"""

from __future__ import annotations

import ssl
import time
from collections import deque
from typing import Any

from kazoo.protocol.connection import ConnectionDropped, ConnectionHandler

__all__ = ["RELIED_UPON", "Connection"]

#: The part of the time-out for which a session lasts from the sending of an answered request on.
RELIED_UPON = 0.5
#: Within this part of the time-out a sign of life reaches the leader.
_REPORTED = 0.25
#: Signs of life are remembered at intervals of this part of the time-out.
_GRAIN = 0.02
#: The socket is not ready.
_NOT_YET = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
#: Kazoo pings every half of its read time-out; with this part of it, more often than every quarter of the time-out.
_READ_TIMEOUT = 0.7


class Connection(ConnectionHandler):  # type: ignore[misc]  # kazoo has no types
    """Knows the negotiated time-out, and when the leader has last heard of the session.

    Arguments:
        patience: seconds that a server may take to answer the request for a session; kazoo would wait for a good part
            of the time-out, though a server that is just starting may have overheard it.
    """

    #: Of the last request.
    _number = 0

    def __init__(self, *args: Any, patience: float, **options: Any) -> None:
        super().__init__(*args, **options)
        #: Seconds of silence after which the servers end the present session; 0.0 before there was one.
        self.negotiated = 0.0
        self._patience = patience
        #: Monotonic times: when the present connection was asked for, and when something was sent that was answered.
        self._asked = 0.0
        self._heard: deque[float] = deque()
        #: When the requests without an answer were sent.
        self._sent: deque[float] = deque()
        self._pinged = 0.0
        #: What is said to log in belongs to the request for the session.
        self._connecting = False

    # Kazoo numbers requests from 1 on in every connection. But a server finds out which of its clients' writes has been
    # committed by the session and the number, and one of the last connection, by way of another server, may still be
    # under way. Java's client goes on counting, too.

    @property
    def _xid(self) -> int:
        return self._number

    @_xid.setter
    def _xid(self, number: int | None) -> None:
        if number:
            self._number = number

    def leader_knows(self, now: float) -> bool:
        """Tell whether what is sent now will find a session that lasts for another half."""
        since, until = now - self.negotiated * (1 - RELIED_UPON), now - self.negotiated * _REPORTED
        while self._heard and self._heard[0] < since:
            self._heard.popleft()
        return self._asked >= since or (bool(self._heard) and self._heard[0] <= until)

    def _connect(self, *args: Any) -> Any:
        self._asked = time.monotonic()
        self._sent.clear()
        self._heard.clear()
        self._connecting = True
        try:
            read_timeout, connect_timeout = super()._connect(*args)
        finally:
            self._connecting = False
        # What kazoo makes of it: two thirds, in milliseconds.
        self.negotiated = read_timeout * 1.5 / 1000
        return read_timeout * _READ_TIMEOUT, connect_timeout

    def _invoke(self, timeout: float, *args: Any, **options: Any) -> Any:
        return super()._invoke(min(timeout, self._patience), *args, **options)

    # Kazoo makes a selector before it reads, and before it writes, though as a rule it could do so at once.

    def _read(self, length: int, timeout: Any) -> bytes:
        with self._socket_error_handling():
            try:
                read: bytes = self._socket.recv(length)
            except _NOT_YET:
                return bytes(super()._read(length, timeout))
            if not read:
                raise ConnectionDropped("socket connection broken")
        return read if len(read) == length else read + super()._read(length - len(read), timeout)

    def _write(self, msg: bytes, timeout: Any) -> None:
        with self._socket_error_handling():
            try:
                sent = self._socket.send(msg)
            except _NOT_YET:
                sent = 0
        if sent < len(msg):
            super()._write(msg[sent:], timeout)

    def _submit(self, request: Any, timeout: Any, xid: int | None = None) -> None:
        if xid is not None and xid > 0 and not self._connecting:
            now = time.monotonic()
            if not self.leader_knows(now):
                raise ConnectionDropped("silent for too long: the leader must be asked whether the session goes on")
            self._sent.append(now)
        super()._submit(request, timeout, xid)

    def _send_ping(self, connect_timeout: Any) -> None:
        # There may be a second one under way before the first is answered.
        if not self.ping_outstanding.is_set():
            self._pinged = time.monotonic()
        super()._send_ping(connect_timeout)

    def _read_socket(self, read_timeout: Any) -> Any:
        pinging = self.ping_outstanding.is_set()
        read = super()._read_socket(read_timeout)
        if pinging and not self.ping_outstanding.is_set():
            self._note(self._pinged)
        return read

    def _read_response(self, header: Any, *args: Any) -> Any:
        pending = self.client._pending
        due = pending[0][2] if pending else None
        if header.xid != due:
            # A session has moved, for the leader, when another server has asked for it since: one that was too slow for
            # us, so that we went on to this one. A write is not answered then. The server closes the connection, but
            # what it has to send is sent before, and with it answers to what we have asked after the write, since
            # reads need no leader. Nothing was written, and the next connection moves the session back. Kazoo's thread
            # would end by such an answer, and who waits for the write get a RuntimeError.
            raise ConnectionDropped(f"an answer to {header.xid} where one to {due} was due")
        self._note(self._sent.popleft())
        request = pending[0][0]
        if hasattr(request, "number"):
            request.number = header.zxid
        return super()._read_response(header, *args)

    def _note(self, sent: float) -> None:
        if not self._heard or sent - self._heard[-1] >= self.negotiated * _GRAIN:
            self._heard.append(sent)
