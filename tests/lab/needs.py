"""What a test of the lab needs to be installed."""

from __future__ import annotations

from tests.lab.clock import compiler
from tests.support import redis_server, zookeeper_server
from tests.support.servers import missing

__all__ = ["needs"]


def needs(store: str = "redis", *, clocks: bool = False) -> None:
    """Skip the test where its servers are not installed; in CI, fail it.

    Arguments:
        store: where its locks live. Every run needs Redis, for the broker and for what the locks protect.
        clocks: whether clocks must be set, for which something must be compiled.
    """
    if redis_server.executable() is None:
        missing("redis-server")
    if store == "zookeeper" and zookeeper_server.executable() is None:
        missing("zookeeper")
    if clocks and compiler() is None:
        missing("gcc")
