"""The servers in which the locks live, and what can happen to them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from tests.lab.clock import Clock, compiler
from tests.lab.wires import Wire
from tests.support.redis_server import RedisServer
from tests.support.waiting import eventually
from tests.support.zookeeper_ensemble import ZooKeeperEnsemble

__all__ = ["RedisSite", "Site", "ZooKeeperSite"]


class Site(Protocol):
    """Where locks live.

    Attributes:
        ttl: seconds of a lease, as its holder sees it.
        silence: seconds for which a dead holder may be believed.
    """

    ttl: float
    silence: float

    def wire(self) -> Wire:
        """Return a new machine's way to it."""

    def leftovers(self) -> list[str]:
        """Name what is still there, some time after everybody has ended."""

    def mend(self) -> None:
        """Have it serve, whatever was done to it."""

    def stop(self) -> None:
        """End it."""


class RedisSite:
    """A Redis server that keeps its data on disk, with a clock of its own."""

    ttl = silence = 2.0

    def __init__(self, folder: Path) -> None:
        self.clock = Clock(folder / "clock") if compiler() else None
        self._folder = folder / "redis"
        #: Others that were started beside it.
        self.replicas: list[RedisServer] = []
        self.server = RedisServer(
            self._folder,
            options=["--appendonly", "yes", "--appendfsync", "always"],
            env=self.clock.env if self.clock is not None else None,
        )

    def wire(self) -> Wire:
        """Return a new machine's way to it."""
        return Wire([self.server], f"{self.server.url}?timeout=1.0")

    def restart(self, *, without_data: bool = False) -> None:
        """Kill it and start it anew."""
        self.server.kill()
        if without_data:
            shutil.rmtree(self._folder / "appendonlydir")
        self.server.start()

    def leftovers(self) -> list[str]:
        """Name the keys of holders, waiters and offers; tombstones last an hour, completion records two."""
        with self.server.client() as client:
            found = [key for key in client.scan_iter("distlock:*") if key.split(":")[3] in ("h", "w", "d", "q")]
            return [f"{key}: {client.zrange(key, 0, -1) if client.type(key) == 'zset' else ''}" for key in found]

    def mend(self) -> None:
        """Have it serve."""
        self.server.thaw()
        if not self.server.process.alive:
            self.restart()

    def stop(self) -> None:
        """End it, and its replicas."""
        for server in (self.server, *self.replicas):
            server.thaw()
            server.kill()


class ZooKeeperSite:
    """An ensemble of three."""

    SESSION = 2.0
    ttl = SESSION / 2

    def __init__(self, folder: Path) -> None:
        self.ensemble = ZooKeeperEnsemble(folder / "zookeeper")
        # A session ends up to a tick after its time; a new leader gives every session its time anew.
        self.silence = self.SESSION + self.ensemble.servers[0].tick
        self._url = self.ensemble.fresh_chroot()

    def wire(self) -> Wire:
        """Return a new machine's way to it: to each of its members."""
        return Wire(self.ensemble.servers, f"{self._url}?session_timeout={self.SESSION}")

    def delete_holder(self, key: str) -> None:
        """Delete the first contender's node, as somebody with a client of his own may do."""
        with self.ensemble.client(urlsplit(self._url).path) as client:
            parent = f"/distlock/locks/{key}"
            nodes = sorted(client.get_children(parent), key=lambda name: int(name[-10:]))
            client.delete(f"{parent}/{nodes[0]}")

    def lose_data(self) -> None:
        """Kill all three, and start them anew with nothing."""
        self.ensemble.kill(*self.ensemble.servers)
        for server in self.ensemble.servers:
            server.process.end()
            shutil.rmtree(server.folder / "data")
            server.start()
        self.ensemble.wait_until_whole()
        with self.ensemble.client() as client:
            client.create(urlsplit(self._url).path)

    def leftovers(self) -> list[str]:
        """Name the contenders; empty containers are removed by the servers within a minute."""
        with self.ensemble.client(urlsplit(self._url).path) as client:

            def nodes() -> list[str]:
                root = "/distlock/locks"
                if not client.exists(root):
                    return []
                return [
                    f"{key}/{node}"
                    for key in client.get_children(root)
                    for node in client.get_children(f"{root}/{key}")
                ]

            # Sessions of the killed end by themselves.
            try:
                eventually(lambda: not nodes(), self.SESSION + 3.0, "the end of all sessions", every=0.1)
            except AssertionError:
                return nodes()
            return []

    def mend(self) -> None:
        """Have it serve."""
        self.ensemble.restore()

    def stop(self) -> None:
        """End it."""
        for server in self.ensemble.servers:
            server.thaw()
        self.ensemble.stop()
