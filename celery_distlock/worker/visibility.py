"""Keep the broker from delivering a message again while this worker holds it.

Kombu's Redis transport gives a message back to its queue when it has been unacknowledged for ``visibility_timeout``
seconds, counted from its entry in a sorted set. Entering a new time there (``ZADD XX``, so that nothing is created)
is a heartbeat: a message that a live worker holds, running, reserved, or scheduled for later, is never delivered twice.
Other transports have nothing to refresh.

The broker is another server than the store, so this is a thread of its own: a broker that hangs must not keep leases
from being renewed.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

__all__ = ["Visibility"]

log = logging.getLogger(__name__)

#: How many times per visibility timeout a message's time is refreshed.
_PER_TIMEOUT = 3
#: A message that was not refreshed for this part of the timeout may have been delivered again.
_EXPOSED_AFTER = 0.9
#: Seconds that a shutdown waits for the thread.
_STOP_PATIENCE = 1.0


class Visibility:
    """The refreshing thread; it starts with the first message of a transport that needs it."""

    def __init__(self) -> None:
        self._held: dict[int, Any] = {}
        #: The channel of the last message, and how long its messages stay invisible at least (None: for ever).
        self._channel: Any = None
        self._patience: float | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def hold(self, request: Any) -> None:
        """Refresh the request's message from now on, if its transport needs that."""
        channel = request.message.channel
        if channel is not self._channel:
            self._channel = channel
            can = hasattr(channel, "unacked_index_key") and hasattr(channel, "conn_or_acquire")
            self._patience = _EXPOSED_AFTER * channel.visibility_timeout if can else None
        if self._patience is None:
            return
        request.exposed_from = time.monotonic() + self._patience
        self._held[id(request)] = request
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, args=(channel.visibility_timeout,), name="distlock-visibility", daemon=True
            )
            self._thread.start()

    def drop(self, request: Any) -> None:
        """Stop refreshing the request's message: it was acknowledged or rejected."""
        self._held.pop(id(request), None)

    def drop_all(self) -> None:
        """Stop refreshing everything: the connection it was received on is gone."""
        self._held.clear()
        self._channel = None

    def stop(self) -> None:
        """End the thread; one that waits for a broker that hangs ends when that answers."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_STOP_PATIENCE)

    @staticmethod
    def exposed(request: Any) -> bool:
        """Return whether the request's message may have been delivered again since it was received."""
        return bool(request.exposed or time.monotonic() > request.exposed_from)

    @staticmethod
    def unrefreshed(request: Any) -> float | None:
        """Return the visibility timeout of a transport where it cannot be refreshed; None where there is none."""
        channel = request.message.channel
        timeout = None if hasattr(channel, "unacked_index_key") else getattr(channel, "visibility_timeout", None)
        return float(timeout) if timeout else None

    def _run(self, timeout: float) -> None:
        while not self._stop.wait(timeout / _PER_TIMEOUT):
            try:
                self._refresh()
            except Exception as error:
                # Tried again soon; a message that is exposed meanwhile is known by the gap.
                log.warning("could not refresh the visibility of held messages: %r", error)

    def _refresh(self) -> None:
        by_channel: dict[Any, list[Any]] = {}
        for request in list(self._held.values()):
            by_channel.setdefault(request.message.channel, []).append(request)
        for channel, requests in by_channel.items():
            if channel.closed:
                # Its connection is gone, and kombu gives its messages back or lets their time run out.
                continue
            started = time.monotonic()
            with channel.conn_or_acquire() as client:
                now = time.time()
                tags = {request.message.delivery_tag: now for request in requests}
                client.zadd(channel.unacked_index_key, tags, xx=True)
            for request in requests:
                request.exposed = self.exposed(request)
                request.exposed_from = started + _EXPOSED_AFTER * channel.visibility_timeout
