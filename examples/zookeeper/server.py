"""Real ZooKeeper servers for the examples, where no address is given: one, or an ensemble of three."""

from __future__ import annotations

import atexit
import contextlib
import shutil
import socket
from pathlib import Path

from examples.support import Process, Processes, wait_until

__all__ = ["Servers", "start_zookeeper", "zookeeper"]

#: Where Debian's package puts it.
_JAR = Path("/usr/share/java/zookeeper.jar")
_JAVA_OPTIONS = ("-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")


class Servers:
    """Servers that hang together, or one.

    Attributes:
        url: names all of them.
    """

    def __init__(self, members: dict[str, Process]) -> None:
        self._members = members
        self.url = f"zookeeper://{','.join(members)}"

    def modes(self) -> dict[str, str]:
        """Return what each one is (leader, follower, standalone), by its ``host:port``; only of those that serve."""
        told = ((address, _mode(address)) for address in self._members)
        return {address: mode for address, mode in told if mode}

    def kill_leader(self) -> str:
        """Kill the leader (SIGKILL), and return its ``host:port``."""
        (leader,) = (address for address, mode in self.modes().items() if mode == "leader")
        self._members[leader].kill()
        return leader


def zookeeper(url: str | None, count: int = 1) -> tuple[str, Servers | None]:
    """Return the address of a ZooKeeper: the one given, or else that of servers which end with this program.

    Arguments:
        url: ``zookeeper://host:port,…/chroot``, or None.
        count: how many servers to start: 1 or 3.

    Raises:
        SystemExit: no address was given, and there is no ZooKeeper to start.
    """
    if url is not None:
        return url, None
    processes = Processes()
    # Sessions say goodbye at the interpreter's exit, too, and before this, which was registered earlier.
    atexit.register(processes.__exit__, None, None, None)
    servers = start_zookeeper(processes, count)
    return servers.url, servers


def start_zookeeper(processes: Processes, count: int = 1) -> Servers:
    """Start servers on free loopback ports, with their data in the processes' folder, and wait until they serve.

    Raises:
        SystemExit: there is none on this machine.
    """
    java = shutil.which("java")
    if java is None or not _JAR.exists():
        raise SystemExit(
            "There is no ZooKeeper server here. On Debian: apt-get install zookeeper. "
            "Or name one that is running: --url zookeeper://host:2181"
        )
    # Three for each: one for clients, one for followers, one for elections.
    ports = _free_ports(3 * count)
    clients, followers, elections = ports[:count], ports[count : 2 * count], ports[2 * count :]
    ensemble = [
        f"server.{number}=127.0.0.1:{follower}:{election}"
        for number, (follower, election) in enumerate(zip(followers, elections, strict=True), start=1)
    ]
    main = "quorum.QuorumPeerMain" if count > 1 else "ZooKeeperServerMain"
    members = {}
    for number, port in enumerate(clients, start=1):
        folder = processes.folder / f"zookeeper{number}"
        folder.mkdir()
        (folder / "myid").write_text(f"{number}\n")
        config = [
            "tickTime=500",
            "maxSessionTimeout=40000",
            "initLimit=10",
            "syncLimit=5",
            f"dataDir={folder}",
            "clientPortAddress=127.0.0.1",
            f"clientPort={port}",
            "admin.enableServer=false",
            *(ensemble if count > 1 else []),
        ]
        file = folder / "zoo.cfg"
        file.write_text("".join(f"{line}\n" for line in config))
        argv = [java, *_JAVA_OPTIONS, "-cp", str(_JAR), f"org.apache.zookeeper.server.{main}", str(file)]
        members[f"127.0.0.1:{port}"] = processes.start(f"zookeeper{number}", *argv)
    servers = Servers(members)
    wait_until(lambda: len(servers.modes()) == count, "ZooKeeper's start", every=0.02)
    return servers


def _mode(address: str) -> str:
    host, _, port = address.partition(":")
    answer = b""
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"srvr")
        while piece := connection.recv(4096):
            answer += piece
    return answer.decode().partition("Mode: ")[2].partition("\n")[0]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        # All at once: a port that was closed again could be given twice.
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
