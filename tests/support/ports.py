"""Ports that nobody uses and that the kernel will not give away."""

from __future__ import annotations

import os
import random
import socket

__all__ = ["free_port"]

_given: set[int] = set()
# The processes of a parallel run (pytest-xdist) have each their own share: a server that is down for a moment, because
# its test restarts it, keeps its port.
_SHARES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_SHARE = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])


def free_port() -> int:
    """Return a loopback TCP port for a server.

    It comes from below the range of ephemeral ports: one from inside it could be taken by any outgoing connection
    while the server that owns it restarts.

    Raises:
        RuntimeError: no free port was found.
    """
    for _ in range(1000):
        port = random.randrange(15_000 + _SHARE, 32_000, _SHARES)
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
