"""A real ZooKeeper ensemble of three: it serves as long as two of them see each other."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.support.ports import free_port
from tests.support.waiting import eventually
from tests.support.zookeeper_server import ZooKeeperServer, close_session, connected

__all__ = ["ZooKeeperEnsemble"]

_SIZE = 3


class ZooKeeperEnsemble:
    """Three ZooKeeper servers, started by the constructor, which returns when all three serve clients.

    Arguments:
        folder: takes a folder for each server.
        tick: seconds (``tickTime``). A follower that is silent for ten ticks is dropped.
        max_session: the longest session time-out that is granted, in seconds.
        config: further lines for every ``zoo.cfg``.
    """

    def __init__(
        self, folder: Path, *, tick: float = 0.2, max_session: float = 60.0, config: Sequence[str] = ()
    ) -> None:
        numbers = range(1, _SIZE + 1)
        members = [f"server.{number}=127.0.0.1:{free_port()}:{free_port()}" for number in numbers]
        lines = ["initLimit=25", "syncLimit=10", *members, *config]
        self.servers = [
            ZooKeeperServer(folder / f"server{number}", tick=tick, max_session=max_session, config=lines, myid=number)
            for number in numbers
        ]
        self._chroots = itertools.count(1)
        self.wait_until_whole()

    def __repr__(self) -> str:
        return f"<ensemble of {', '.join(f'{server!r} ({server.mode})' for server in self.servers)}>"

    # What clients are told.

    @property
    def hosts(self) -> str:
        """The members' addresses, as ``host:port,host:port,host:port``."""
        return ",".join(server.hosts for server in self.servers)

    @property
    def url(self) -> str:
        """The URL of the root, with every member."""
        return f"zookeeper://{self.hosts}"

    def fresh_chroot(self) -> str:
        """Make an empty chroot and return its URL, with every member."""
        name = f"test{next(self._chroots)}"
        with self.client() as client:
            client.create(f"/{name}")
        return f"{self.url}/{name}"

    def client(self, chroot: str = "", **options: Any) -> contextlib.AbstractContextManager[Any]:
        """Return a started ``KazooClient`` as a context manager."""
        return connected(self.hosts + chroot, **options)

    # Who is what.

    def leader(self, timeout: float = 30.0) -> ZooKeeperServer:
        """Return the leader, once one is elected.

        Raises:
            AssertionError: there was none within ``timeout`` seconds.
        """

        def look() -> ZooKeeperServer | None:
            return next((server for server in self.servers if server.mode == "leader"), None)

        found = eventually(look, timeout, "an elected leader", every=0.02)
        assert found is not None
        return found

    def followers(self) -> list[ZooKeeperServer]:
        """Return the followers that serve clients, in the order of :attr:`servers`."""
        return [server for server in self.servers if server.mode == "follower"]

    # What can happen to them.

    def kill(self, *servers: ZooKeeperServer) -> None:
        """End servers with SIGKILL, all at once; two of three make the others stop serving."""
        with ThreadPoolExecutor(_SIZE) as threads:
            list(threads.map(ZooKeeperServer.kill, servers))

    def lose_quorum(self) -> list[ZooKeeperServer]:
        """Kill the leader and a follower, and return them: the one that is left serves nobody."""
        lost = [self.leader(), self.followers()[0]]
        self.kill(*lost)
        return lost

    @contextlib.contextmanager
    def losing_leaders(self, every: float = 0.5) -> Iterator[list[ZooKeeperServer]]:
        """Kill the leader, let it come back, and so on for as long as the block lasts; yield the killed.

        Arguments:
            every: seconds for which the ensemble is whole in between.
        """
        over = threading.Event()
        killed: list[ZooKeeperServer] = []

        def lose_one() -> None:
            leader = self.leader()
            self.kill(leader)
            killed.append(leader)
            self.restore()

        def lose() -> None:
            while not over.wait(every):
                lose_one()

        with ThreadPoolExecutor(1) as thread:
            losing = thread.submit(lose)
            try:
                yield killed
            finally:
                over.set()
                losing.result()

    def expire(self, client: Any) -> None:
        """End a client's session from outside, as the leader does when the session's time is over.

        Raises:
            AssertionError: the session was over already.
        """
        close_session(self.hosts, *client.client_id)

    def restore(self) -> None:
        """Let the frozen go on, start the dead again, with their data, and wait until all three serve clients."""
        for server in self.servers:
            server.thaw()
            if not server.process.alive:
                server.process.end()
                server.start()
        self.wait_until_whole()

    def wait_until_whole(self, timeout: float = 60.0) -> None:
        """Wait until all three serve clients, under one leader."""
        for server in self.servers:
            server.wait_until_serving(timeout)
        eventually(
            lambda: len(self.followers()) == _SIZE - 1, timeout, f"a leader and its followers: {self!r}", every=0.02
        )

    def stop(self) -> None:
        """End all three."""
        with ThreadPoolExecutor(_SIZE) as threads:
            list(threads.map(ZooKeeperServer.stop, self.servers))
