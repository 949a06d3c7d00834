"""A real Redis server of our own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import redis

from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.waiting import eventually

__all__ = ["DATABASES", "RedisServer", "executable"]

DATABASES = 128


def executable() -> str | None:
    """Return the path of ``redis-server``, or None where it is not installed."""
    return shutil.which("redis-server")


class RedisServer:
    """A Redis server on a free loopback port, without persistence, started by the constructor.

    Arguments:
        folder: its working directory (log, unix socket).
        options: further command-line options, e.g. ``["--maxmemory-policy", "allkeys-lru"]``.
        password: sets ``requirepass``.
        replica_of: another server, to follow.
        unix_socket: listen on ``<folder>/redis.sock`` as well.
        env: further environment variables.
    """

    def __init__(
        self,
        folder: Path,
        *,
        options: Sequence[str] = (),
        password: str | None = None,
        replica_of: RedisServer | None = None,
        unix_socket: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.host = "127.0.0.1"
        self.port = free_port()
        self.password = password
        self.socket = folder / "redis.sock" if unix_socket else None
        program = executable()
        if program is None:
            raise RuntimeError("redis-server is not installed (Debian package: redis-server)")
        self._argv = [program, "--port", str(self.port), "--bind", self.host]
        self._argv += ["--save", "", "--appendonly", "no", "--databases", str(DATABASES), "--dir", str(folder)]
        # Replicas come up at once instead of after five seconds of waiting for others.
        self._argv += ["--repl-diskless-sync-delay", "0"]
        if password is not None:
            self._argv += ["--requirepass", password]
        if self.socket is not None:
            self._argv += ["--unixsocket", str(self.socket)]
        if replica_of is not None:
            self._argv += ["--replicaof", replica_of.host, str(replica_of.port)]
            if replica_of.password is not None:
                self._argv += ["--masterauth", replica_of.password]
        self._argv += options
        self._env = env
        self.start()

    def start(self) -> None:
        """Start it (again, on the same port, without data) and wait until it answers."""
        self.process = Process(
            self._argv, name=f"redis-server:{self.port}", log=self.folder / "redis.log", env=self._env
        )
        with self.client() as client:

            def answers() -> bool:
                if not self.process.alive:
                    raise AssertionError(f"{self.process!r}:\n{self.process.log}")
                try:
                    return bool(client.ping())
                except (redis.ConnectionError, redis.BusyLoadingError):
                    return False

            eventually(answers, 10, f"an answer of {self.process!r}")

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return self.url_of(0)

    def url_of(self, db: int) -> str:
        """Return the URL of a database."""
        auth = f":{self.password}@" if self.password is not None else ""
        return f"redis://{auth}{self.host}:{self.port}/{db}"

    @property
    def socket_url(self) -> str:
        """The ``redis+socket://`` URL of database 0."""
        assert self.socket is not None, "start the server with unix_socket=True"
        auth = f":{self.password}@" if self.password is not None else ""
        return f"redis+socket://{auth}{self.socket}?virtual_host=0"

    def client(self, db: int = 0, **options: Any) -> redis.Redis:
        """Return a redis-py client for a database; answers are text unless ``decode_responses=False``."""
        options = {"decode_responses": True, "socket_timeout": 10.0, **options}
        return redis.Redis(host=self.host, port=self.port, db=db, password=self.password, **options)

    def stop(self) -> None:
        """End it in good order (SIGTERM)."""
        self.process.end()

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.end()

    def restart(self) -> None:
        """Kill it and start it anew on the same port: its data are gone."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Make it silent (SIGSTOP): connections stay open, nobody is answered."""
        self.process.freeze()

    def thaw(self) -> None:
        """Let it go on."""
        self.process.thaw()
