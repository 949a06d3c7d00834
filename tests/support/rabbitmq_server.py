"""A real RabbitMQ server of our own, as root or not, without systemd."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

import amqp

from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.waiting import eventually

__all__ = ["RabbitMQServer", "executable"]

# Not the wrapper in PATH: that one changes user, and insists on being root or rabbitmq.
_PROGRAM = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_CONTROL = Path("/usr/lib/rabbitmq/bin/rabbitmqctl")


def executable() -> str | None:
    """Return the path of the server's program, or None where it is not installed."""
    return str(_PROGRAM) if _PROGRAM.exists() and shutil.which("epmd") else None


class RabbitMQServer:
    """A RabbitMQ node on free loopback ports, with data, log and Erlang's port mapper of its own.

    Arguments:
        folder: takes its data and logs.
        config: lines for ``rabbitmq.conf``, e.g. ``["consumer_timeout = 5000"]``.
    """

    def __init__(self, folder: Path, *, config: Sequence[str] = ()) -> None:
        program = executable()
        if program is None:
            raise RuntimeError("rabbitmq-server is not installed (Debian package: rabbitmq-server)")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.host = "127.0.0.1"
        self.port = free_port()
        mapper_port = free_port()
        (folder / "rabbitmq.conf").write_text("".join(f"{line}\n" for line in ("loopback_users = none", *config)))
        (folder / "enabled_plugins").write_text("[].\n")
        self._env = {
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(mapper_port),
            "ERL_EPMD_ADDRESS": self.host,
            "RABBITMQ_NODENAME": f"distlock{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": self.host,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "no-such-file"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_FEATURE_FLAGS_FILE": str(folder / "feature_flags"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            # Two schedulers that do not spin: the machine is shared with the workers under test.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
        }
        # The server would start a mapper itself, as a daemon that outlives it.
        self._mapper = Process(
            [str(shutil.which("epmd")), "-port", str(mapper_port), "-address", self.host],
            name="epmd",
            log=folder / "epmd.log",
            env=self._env,
        )
        self._argv = [program]
        self._vhosts = itertools.count(1)
        self.start()

    def start(self) -> None:
        """Start it (again, with its data) and wait until it lets clients in."""
        self.process = Process(
            self._argv, name=f"rabbitmq-server:{self.port}", log=self.folder / "rabbitmq.log", env=self._env
        )

        def lets_in() -> bool:
            if not self.process.alive:
                raise AssertionError(f"{self.process!r}:\n{self.process.log[-4000:]}")
            try:
                with amqp.Connection(f"{self.host}:{self.port}", "guest", "guest"):
                    return True
            except (OSError, amqp.AMQPError):
                return False

        eventually(lets_in, 60, f"a connection to {self.process!r}", every=0.2)

    @property
    def url(self) -> str:
        """The URL of the virtual host ``/``."""
        return f"amqp://guest:guest@{self.host}:{self.port}//"

    def fresh_vhost(self) -> str:
        """Make an empty virtual host and return its URL: what a database is to Redis."""
        name = f"test{next(self._vhosts)}"
        self.control("add_vhost", name)
        self.control("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
        return f"amqp://guest:guest@{self.host}:{self.port}/{name}"

    def messages(self, url: str) -> int:
        """Count the messages of a virtual host, waiting or delivered, that nobody has acknowledged."""
        vhost = url.rpartition("/")[2]
        return sum(map(int, self.control("--quiet", "list_queues", "-p", vhost, "messages").split()[1:]))

    def control(self, *command: str) -> str:
        """Run ``rabbitmqctl`` and return its output.

        Raises:
            AssertionError: it failed.
        """
        log = self.folder / "rabbitmqctl.log"
        process = Process([str(_CONTROL), *command], name=f"rabbitmqctl {command[0]}", log=log, env=self._env)
        status = process.wait(60)
        process.end()
        assert status == 0, process.log
        return process.log

    def kill(self) -> None:
        """End it with SIGKILL; its data stay."""
        self.process.kill()
        self.process.end()

    def stop(self) -> None:
        """End it, and the mapper."""
        self.process.end(grace=15)
        self._mapper.end()

    def freeze(self) -> None:
        """Make it silent (SIGSTOP)."""
        self.process.freeze()

    def thaw(self) -> None:
        """Let it go on."""
        self.process.thaw()
