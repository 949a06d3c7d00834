"""The tasks that the benchmarks run."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

from celery import Celery

from celery_distlock import LockedTask

app = Celery("benchmarks.tasks")


def configure() -> None:
    """Read the addresses from the environment; called again by the benchmark once it knows them."""
    app.conf.update(
        broker_url=os.environ.get("BROKER_URL", "memory://"),
        result_backend=os.environ.get("RESULT_BACKEND", "cache+memory://"),
        distlock_url=os.environ.get("DISTLOCK_URL", "memory://"),
        broker_connection_retry_on_startup=True,
        worker_prefetch_multiplier=8,
    )


configure()


@app.task
def bare(number: int) -> None:
    """Do nothing."""


@app.task(base=LockedTask)
def locked(number: int) -> None:
    """Do nothing, under a lock named by all arguments."""


@app.task(base=LockedTask, lock_key="order:{number}")
def locked_keyed(number: int) -> None:
    """Do nothing, under a lock named by a template."""


_socket: socket.socket | None = None
#: As long as what acquires a lock; the server answers with as much.
_PING = b"*2\r\n$4\r\nPING\r\n$700\r\n" + b"x" * 700 + b"\r\n"


@app.task
def floor(number: int) -> None:
    """Do nothing but two round trips to the lock store on a bare socket: less no lock of this kind can cost."""
    global _socket
    if _socket is None:
        address = urlsplit(app.conf.distlock_url)
        _socket = socket.create_connection((address.hostname, address.port))
        _socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(2):
        _socket.sendall(_PING)
        _socket.recv(4096)


@app.task(acks_late=True)
def bare_late(number: int) -> None:
    """Do nothing; acknowledged late."""


@app.task(base=LockedTask, acks_late=True)
def locked_late(number: int) -> None:
    """Do nothing, under a lock; acknowledged late, with a completion record."""
