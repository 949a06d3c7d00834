"""As much of a Docker client as pytest-celery asks for, with local processes for containers.

The plugin talks to Docker through one fixture, ``docker_client``. Where no engine answers, this stands in
for it, and the plugin's own classes run unmodified: an image is a name, a network is nothing, a volume is a folder, a
container is a process.
"""

from __future__ import annotations

import shlex
import signal
import socket
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.support.ports import free_port
from tests.support.process import Process

__all__ = ["LocalDocker"]

_ROOT = Path(__file__).parents[2]


@dataclass
class _Thing:
    """An image, a network, a volume or a container, as long as nobody looks closer."""

    name: str
    id: str

    def remove(self, *_: Any, **__: Any) -> None:
        """Do nothing: the folder goes with the session."""


class LocalDocker:
    """Stands in for ``docker.DockerClient``.

    Arguments:
        folder: takes the volumes and the logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # One object answers for all collections: their methods do not clash.
        self.images = self.networks = self.volumes = self.containers = self

    def build(self, tag: str = "scratch", **_: Any) -> tuple[_Thing, list[str]]:
        return _Thing(tag, tag), []

    def pull(self, repository: str, **_: Any) -> _Thing:
        return _Thing(repository, repository)

    get = pull

    def create(self, name: str = "", *, image: str | None = None, **options: Any) -> Any:
        """Create a network, a volume (a folder, unused by the former), or a container that is not started."""
        if image is None:
            (self.folder / name).mkdir()
            return _Thing(name, name)
        return _Container(self.folder, image, **options)

    def run(self, image: str, **options: Any) -> _Container:
        container = _Container(self.folder, image, **options)
        container.start()
        return container


class _Container(_Thing):
    def __init__(
        self,
        folder: Path,
        image: str,
        *,
        command: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        ports: Mapping[str, int | None] | None = None,
        volumes: Mapping[str, Mapping[str, str]] | None = None,
        labels: Mapping[str, str] | None = None,
        **_: Any,
    ) -> None:
        self.image = image
        ident = uuid.uuid4().hex
        super().__init__(f"local-{ident[:12]}", ident)
        self._folder = folder / ident
        self._folder.mkdir()
        self._log = self._folder / "log"
        self._binds = {volume["bind"]: folder / name for name, volume in (volumes or {}).items()}
        self._ports = {port: int(host or free_port()) for port, host in (ports or {}).items()}
        self._env: dict[str, str | None] = {**(environment or {})}
        paths = [str(self._binds[bind]) for bind in self._binds]
        self._env["PYTHONPATH"] = ":".join([*paths, str(_ROOT)])
        self._command = [word.replace("%h", ident[:12]) for word in command]
        address = next((f"127.0.0.1:{host}" for host in self._ports.values()), "127.0.0.1")
        self.process: Process | None = None
        self.attrs = {
            # What others connect to: the network has no names, so the address is the host's name.
            "Config": {"Hostname": address, "Env": [], "Labels": dict(labels or {})},
            "HostConfig": {"PortBindings": {}},
            "Mounts": [],
            "NetworkSettings": {
                "Networks": {"local": {"IPAddress": "127.0.0.1"}},
                "Ports": {port: [{"HostPort": str(host)}] for port, host in self._ports.items()},
            },
        }

    def start(self) -> None:
        program, *rest = self._command
        if program == "celery":
            argv = [sys.executable, "-m", "celery", *rest]
        elif program == "redis-server":
            argv = [*self._command, "--bind", "127.0.0.1", "--port", str(self._ports["6379/tcp"])]
        else:
            raise NotImplementedError(f"{program} has no local counterpart")
        self.process = Process(argv, name=self.name, log=self._log, env=self._env, cwd=self._folder)

    @property
    def status(self) -> str:
        if self.process is None:
            return "created"
        return "running" if self.process.alive else "exited"

    def reload(self) -> None:
        """Do nothing: every answer is fresh."""

    def logs(self, **_: Any) -> bytes:
        return self._log.read_bytes() if self._log.exists() else b""

    def put_archive(self, path: str, data: IO[bytes]) -> None:
        with tarfile.open(fileobj=data) as archive:
            archive.extractall(self._binds[path], filter="data")

    def exec_run(self, command: str, **_: Any) -> tuple[int, bytes]:
        if command.startswith("cat /proc/net/tcp"):
            return 0, "\n".join(f"0: 0:{int(port.split('/')[0]):04X} 0:0 0A" for port in self._listening()).encode()
        environment = {name: value for name, value in self._env.items() if value is not None}
        done = subprocess.run(shlex.split(command), env=environment, capture_output=True, check=False, cwd=self._folder)
        return done.returncode, done.stdout + done.stderr

    def _listening(self) -> list[str]:
        """Return the container's ports whose counterparts on the host accept connections."""
        found = []
        for port, host in self._ports.items():
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", host)) == 0:
                    found.append(port)
        return found

    def kill(self, signal: str | int | None = None) -> None:
        assert self.process is not None
        signum = _signal_number(signal or "SIGKILL")
        # A container's first process takes all others with it when it is killed.
        self.process.signal(signum, group=signum == _KILL)
        if signum == _KILL:
            self.process.wait()

    def wait(self, timeout: float = 10.0, **_: Any) -> dict[str, int]:
        assert self.process is not None
        return {"StatusCode": self.process.wait(timeout)}

    def restart(self, timeout: float = 10.0) -> None:
        self.remove(grace=timeout)
        self.start()

    def remove(self, *_: Any, grace: float = 0.0, **__: Any) -> None:
        if self.process is not None:
            self.process.end(grace)


_KILL = signal.SIGKILL


def _signal_number(name: str | int) -> int:
    return name if isinstance(name, int) else signal.Signals[name]
