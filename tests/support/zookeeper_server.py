"""A real ZooKeeper server of our own, standalone or a member of an ensemble."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from kazoo.client import KazooClient

from tests.support.certificates import make_certificates
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.waiting import eventually

__all__ = ["Mode", "ZooKeeperServer", "close_session", "connected", "executable"]

Mode = Literal["standalone", "leader", "follower"]

_JARS = Path("/usr/share/java")
_JAR = _JARS / "zookeeper.jar"
#: What it does not name itself: a logger, without which it is mute, and what TLS needs.
_MORE_JARS = [_JARS / f"{name}.jar" for name in ("slf4j-simple", "netty-codec", "netty-resolver")]
_QUICK_START = ("-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")
_PROPERTIES = {
    "org.slf4j.simpleLogger.defaultLogLevel": "warn",
    # A killed process loses nothing that it has written: only a machine's end is what syncing guards against.
    "zookeeper.forceSync": "no",
    # KiB; the default of 64 MiB is written out for every server that starts.
    "zookeeper.preAllocSize": "1024",
}


def executable() -> str | None:
    """Return the path of ``java``, or None where it or ZooKeeper is not installed."""
    return shutil.which("java") if _JAR.exists() else None


@contextlib.contextmanager
def connected(hosts: str, **options: Any) -> Iterator[Any]:
    """Start a client of kazoo's, and close its session at the end of the block.

    Arguments:
        hosts: ``host:port,…/chroot``.
        options: of ``KazooClient``; ``timeout`` is the session time-out in seconds (10).
    """
    client = KazooClient(hosts=hosts, **options)
    client.start(timeout=15)
    try:
        yield client
    finally:
        client.stop()
        client.close()


def close_session(hosts: str, number: int, password: bytes) -> None:
    """End a session by its number and password: a second connection takes it over, and closes it.

    The client learns it from its connection, which the server closes. It may take its session back before it is closed:
    so it is asked for again until the server refuses it, which is when this returns.

    Raises:
        AssertionError: the session was over already.
    """
    for attempt in range(10):
        clone = KazooClient(hosts=hosts, client_id=(number, password))
        try:
            # A server can lose sight of one of two clients that claim one session at the same moment.
            clone.start(timeout=3 * (attempt + 1))
        except clone.handler.timeout_exception:
            clone.close()
            continue
        is_over = clone.client_id[0] != number
        clone.stop()
        clone.close()
        if is_over:
            assert attempt, "the session was over already"
            return
    raise AssertionError("the session could not be ended")


class ZooKeeperServer:
    """A ZooKeeper server on a free loopback port, started by the constructor. Its data outlive :meth:`restart`.

    Sessions may last from two ticks to ``max_session`` seconds, and expire up to a tick late.

    Arguments:
        folder: takes its configuration, data and log.
        tick: seconds (``tickTime``).
        max_session: the longest session time-out that it grants, in seconds.
        config: lines for ``zoo.cfg``, e.g. ``["maxClientCnxns=2"]``.
        users: name → password of those who may log in by SASL (DIGEST-MD5).
        container_check: seconds between two looks for containers that have lost their last child.
        tls: encrypt a second port, ``tls_port``, on which a client's certificate is wanted (``"client"``) or not
            (``"server"``); see ``certificates``.
        myid: the number of a member of an ensemble; ``config`` then names the members (``server.N=…``).
    """

    def __init__(
        self,
        folder: Path,
        *,
        tick: float = 0.2,
        max_session: float = 60.0,
        config: Sequence[str] = (),
        users: Mapping[str, str] | None = None,
        container_check: float = 60.0,
        tls: Literal["server", "client"] | None = None,
        myid: int | None = None,
    ) -> None:
        java = executable()
        if java is None:
            raise RuntimeError("zookeeper is not installed (Debian package: zookeeper)")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.host = "127.0.0.1"
        self.port = free_port()
        self.tick = tick
        self._myid = myid
        self._data = folder / "data"
        lines = [
            f"tickTime={round(tick * 1000)}",
            f"maxSessionTimeout={round(max_session * 1000)}",
            f"dataDir={self._data}",
            f"clientPort={self.port}",
            f"clientPortAddress={self.host}",
            "maxClientCnxns=0",
            "admin.enableServer=false",
            "4lw.commands.whitelist=*",
            *(self._with_tls(tls) if tls else ()),
            *(["authProvider.1=org.apache.zookeeper.server.auth.SASLAuthenticationProvider"] if users else ()),
            *config,
        ]
        (folder / "zoo.cfg").write_text("".join(f"{line}\n" for line in lines))
        main = "ZooKeeperServerMain" if myid is None else "quorum.QuorumPeerMain"
        self._argv = [java, *_QUICK_START]
        self._argv += [f"-D{name}={value}" for name, value in _PROPERTIES.items()]
        self._argv.append(f"-Dznode.container.checkIntervalMs={round(container_check * 1000)}")
        if users:
            entries = "".join(f'\n  user_{name}="{password}"' for name, password in users.items())
            login = "org.apache.zookeeper.server.auth.DigestLoginModule required"
            (folder / "jaas.conf").write_text(f"Server {{\n  {login}{entries};\n}};\n")
            self._argv.append(f"-Djava.security.auth.login.config={folder / 'jaas.conf'}")
        classes = ":".join(map(str, (_JAR, *_MORE_JARS)))
        self._argv += ["-cp", classes, f"org.apache.zookeeper.server.{main}", str(folder / "zoo.cfg")]
        self._chroots = itertools.count(1)
        self.start()

    def _with_tls(self, tls: str) -> list[str]:
        self.certificates = make_certificates(self.folder / "certificates")
        self.tls_port = free_port()
        return [
            "serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory",
            f"secureClientPort={self.tls_port}",
            f"secureClientPortAddress={self.host}",
            f"ssl.keyStore.location={self.certificates.server}",
            f"ssl.trustStore.location={self.certificates.authority}",
            f"ssl.clientAuth={'need' if tls == 'client' else 'none'}",
        ]

    def __repr__(self) -> str:
        return repr(self.process)

    def start(self) -> None:
        """Start it (again, on the same port, with its data); a standalone server answers when this returns."""
        self._data.mkdir(exist_ok=True)
        if self._myid is not None:
            (self._data / "myid").write_text(f"{self._myid}\n")
        self.process = Process(self._argv, name=f"zookeeper:{self.port}", log=self.folder / "zookeeper.log")
        if self._myid is None:
            # A member of an ensemble has nothing to say before there is a quorum.
            self.wait_until_serving()

    def wait_until_serving(self, timeout: float = 30.0) -> None:
        """Wait until it serves clients, which a member of an ensemble does while there is a quorum.

        Raises:
            AssertionError: it did not within ``timeout`` seconds, or it has ended.
        """

        def serves() -> bool:
            if not self.process.alive:
                raise AssertionError(f"{self.process!r}:\n{self.process.log[-4000:]}")
            return self.mode is not None

        eventually(serves, timeout, f"an answer of {self.process!r}", every=0.02)

    # What clients are told.

    @property
    def hosts(self) -> str:
        """Its address, as ``host:port``."""
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL of its root."""
        return f"zookeeper://{self.hosts}"

    def fresh_chroot(self) -> str:
        """Make an empty chroot and return its URL: what a database is to Redis."""
        name = f"test{next(self._chroots)}"
        with self.client() as client:
            client.create(f"/{name}")
        return f"{self.url}/{name}"

    def client(self, chroot: str = "", **options: Any) -> contextlib.AbstractContextManager[Any]:
        """Return a started ``KazooClient`` as a context manager; see :func:`connected` for the options."""
        return connected(self.hosts + chroot, **options)

    # What it says of itself.

    def command(self, word: str, *, timeout: float = 1.0) -> str:
        """Send one of the four-letter commands (``srvr``, ``mntr``, ``dump``, ``cons``, …) and return the answer.

        Raises:
            OSError: it is not there, or silent for ``timeout`` seconds.
        """
        with socket.create_connection((self.host, self.port), timeout=timeout) as connection:
            connection.sendall(word.encode())
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        return answer.decode()

    @property
    def mode(self) -> Mode | None:
        """What it is; None while it serves nobody."""
        try:
            answer = self.command("srvr")
        except OSError:
            return None
        modes: tuple[Mode, ...] = ("standalone", "leader", "follower")
        return next((mode for mode in modes if f"Mode: {mode}" in answer), None)

    def sessions(self) -> dict[int, float]:
        """Return the time-outs, in seconds, of the sessions that are connected to this very server, by their ids."""
        return {
            int(session, 16): int(timeout) / 1000
            for session, timeout in re.findall(r"sid=(0x\w+),.*?,to=(\d+)", self.command("cons"))
        }

    # What can happen to it.

    def stop(self) -> None:
        """End it in good order (SIGTERM)."""
        self.process.end()

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.end()

    def restart(self, *, without_data: bool = False) -> None:
        """Kill it and start it anew on the same port, with its data unless told otherwise.

        A request to connect that comes in the very moment of the start can be lost: kazoo's client waits for an answer
        as long as its session may last, and finds it expired then.
        """
        self.kill()
        if without_data:
            shutil.rmtree(self._data)
        self.start()

    def freeze(self) -> None:
        """Make it silent (SIGSTOP): connections stay open, nobody is answered, no session expires."""
        self.process.freeze()

    def thaw(self) -> None:
        """Let it go on."""
        self.process.thaw()

    def expire(self, client: Any) -> None:
        """End a client's session from outside, as the server does when the session's time is over.

        Raises:
            AssertionError: the session was over already.
        """
        close_session(self.hosts, *client.client_id)
