"""Ports that nobody uses and that the kernel will not give away."""

from __future__ import annotations

import random
import socket

__all__ = ["free_port"]

_given: set[int] = set()


def free_port() -> int:
    """Return a loopback TCP port for a server.

    It comes from below the range of ephemeral ports: one from inside it could be taken by any outgoing connection
    while the server that owns it restarts.

    Raises:
        RuntimeError: no free port was found.
    """
    for _ in range(1000):
        port = random.randrange(15_000, 32_000)
        if port in _given:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise RuntimeError("no free port between 15000 and 32000")
