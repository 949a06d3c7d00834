"""What ``unacked_restore_interval=1`` does, for kombu before 5.7, which looks for overdue messages every 100 s."""

from __future__ import annotations

from typing import Any

import kombu
from kombu.transport import redis

__all__ = ["look_every_second"]


def look_every_second() -> None:
    """Have this process's workers look every second for messages that nobody has acknowledged in time."""
    transport: Any = redis.Transport
    qos: Any = redis.QoS
    if kombu.VERSION >= (5, 7) or hasattr(transport, "looks_every_second"):
        return
    register, restore = transport.register_with_event_loop, qos.restore_visible

    def register_and_look(self: Any, connection: Any, loop: Any) -> None:
        register(self, connection, loop)
        loop.call_repeatedly(1, self.cycle.maybe_restore_messages)

    def each_time(self: Any, start: int = 0, num: int = 10, interval: int = 10) -> None:
        restore(self, start, num, 1)

    transport.register_with_event_loop = register_and_look
    qos.restore_visible = each_time
    transport.looks_every_second = True
