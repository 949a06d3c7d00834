"""Kazoo's connection to one server after the other, as we need it.

Authority
    The leader ends sessions, when it has not heard of them for their time-out. The server in between tells it of its
    clients' signs of life every half tick only.

So an answer proves less than it seems to. A process that was stopped for nearly its time-out, and then asks again, may
be answered by a follower, while the leader, which has not heard of that question, is about to end the session: the
answer would be believed for another time-out, and somebody else be let in meanwhile. Therefore a connection that has
been silent for three quarters of the time-out is not used again. It is made anew: then the server asks the leader,
which starts the session's time from the beginning, or says that it is over. A time-out is two ticks at least, so what
is heard of within three quarters of it reaches the leader in time.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from kazoo.protocol.connection import ConnectionDropped, ConnectionHandler

__all__ = ["Connection"]

_SILENCE = 0.75


class Connection(ConnectionHandler):  # type: ignore[misc]  # kazoo has no types
    """Knows the negotiated time-out, and when the servers have last heard of the session.

    Arguments:
        patience: seconds that a server may take to answer the request for a session; kazoo would wait for a good part
            of the time-out, though a server that is just starting may have overheard it.
    """

    def __init__(self, *args: Any, patience: float, **options: Any) -> None:
        super().__init__(*args, **options)
        #: Seconds of silence after which the servers end the present session; 0.0 before there was one.
        self.negotiated = 0.0
        self._patience = patience
        #: Monotonic time at which something was sent that has been answered, the latest.
        self._heard = 0.0
        #: When the requests without an answer were sent.
        self._sent: deque[float] = deque()
        self._pinged = 0.0

    def _connect(self, *args: Any) -> Any:
        self._heard = time.monotonic()
        read_timeout, connect_timeout = super()._connect(*args)
        # Logging in may have left some.
        self._sent.clear()
        # What kazoo makes of it: two thirds, in milliseconds.
        self.negotiated = read_timeout * 1.5 / 1000
        return read_timeout, connect_timeout

    def _invoke(self, timeout: float, *args: Any, **options: Any) -> Any:
        return super()._invoke(min(timeout, self._patience), *args, **options)

    def _submit(self, request: Any, timeout: Any, xid: int | None = None) -> None:
        now = time.monotonic()
        if xid is not None:
            if self.negotiated and now - self._heard > self.negotiated * _SILENCE:
                raise ConnectionDropped("silent for too long: the leader must be asked whether the session goes on")
            if xid > 0:
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
            self._heard = max(self._heard, self._pinged)
        return read

    def _read_response(self, *args: Any) -> Any:
        self._heard = max(self._heard, self._sent.popleft())
        return super()._read_response(*args)
