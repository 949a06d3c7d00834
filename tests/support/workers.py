"""Real ``celery worker`` processes."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

from tests.support.journal import VARIABLE
from tests.support.process import Process

__all__ = ["POOLS", "LoadApp", "Pool", "Settings", "StartWorker", "Worker"]

Pool = Literal["prefork", "threads", "solo", "gevent", "eventlet"]
POOLS: tuple[Pool, ...] = ("prefork", "threads", "solo", "gevent", "eventlet")

#: Seconds that a shutdown may take. Billiard's processes wait for half a minute if the worker is told to stop before it
#: has read that their task has begun.
_SHUTDOWN = 60.0

_ROOT = Path(__file__).parents[2]
# Where one record of a worker's log begins.
_RECORD = re.compile(r"^\[\d{4}-\d\d-\d\d ", re.MULTILINE)


@dataclass(frozen=True)
class Settings:
    """What an application learns from its environment."""

    broker: str
    results: str
    locks: str
    journal: Path
    conf: Mapping[str, Any] = field(default_factory=dict)

    def with_conf(self, conf: Mapping[str, Any] | None) -> Settings:
        """Return a copy with these settings merged into ``conf``."""
        return replace(self, conf={**self.conf, **(conf or {})})

    def with_broker(self, url: str) -> Settings:
        """Return a copy with another broker."""
        return replace(self, broker=url)

    @property
    def env(self) -> dict[str, str]:
        """The environment of the worker."""
        return {
            "BROKER_URL": self.broker,
            "RESULT_BACKEND": self.results,
            "DISTLOCK_URL": self.locks,
            VARIABLE: str(self.journal),
            "CELERY_TEST_CONF": json.dumps(dict(self.conf)),
        }


class Worker:
    """A worker process; the constructor returns at once, see :meth:`wait_ready`.

    Arguments:
        app_module: the module with the application, e.g. ``"tests.worker.apps.bare"``.
        settings: its broker, results, locks, journal and settings.
        log: the file for its output.
        pool: the pool's name.
        concurrency: pool slots.
        queues: queues to consume; empty: the application's.
        options: further command-line options.
        env: further environment variables.
        name: the node's name, without host.
        may_log: regular expressions; a log record with a traceback or of level CRITICAL fails the test unless it
            matches one of them.
    """

    def __init__(
        self,
        app_module: str,
        settings: Settings,
        log: Path,
        *,
        pool: Pool = "prefork",
        concurrency: int = 2,
        queues: Sequence[str] = (),
        options: Sequence[str] = (),
        env: Mapping[str, str | None] | None = None,
        name: str = "worker",
        may_log: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.may_log = tuple(may_log)
        argv = [sys.executable, "-m", "celery", "-A", app_module, "worker", "--pool", pool, "--loglevel", "INFO"]
        # Mingle waits a second for other nodes, and gossip talks with them; neither matters to a lock.
        argv += ["--concurrency", str(concurrency), "--hostname", f"{name}@%h", "--without-mingle", "--without-gossip"]
        if queues:
            argv += ["--queues", ",".join(queues)]
        argv += options
        environment: dict[str, str | None] = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
        # The worker imports what the test does, and shows warnings instead of raising them.
        environment |= {"PYTHONPATH": str(_ROOT), "PYTHONWARNINGS": None, **settings.env, **(env or {})}
        self.process = Process(argv, name=f"worker {name}", log=log, env=environment, cwd=log.parent)

    def __repr__(self) -> str:
        return repr(self.process)

    def wait_ready(self, timeout: float = 30.0) -> Worker:
        """Wait until it says that it consumes."""
        self.process.wait_for_log(r"@\S+ ready\.", timeout)
        return self

    @property
    def pid(self) -> int:
        """The pid of its main process."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether its main process runs."""
        return self.process.alive

    def children(self) -> list[int]:
        """Return the pids of its living pool processes."""
        return self.process.children()

    @property
    def log(self) -> str:
        """What it has logged."""
        return self.process.log

    def wait_for_log(self, pattern: str, timeout: float = 30.0) -> re.Match[str]:
        """Wait until its log matches a regular expression."""
        return self.process.wait_for_log(pattern, timeout)

    def stop_warm(self, *, wait: bool = True) -> None:
        """Shut it down: running tasks are finished (SIGTERM)."""
        self.process.signal(signal.SIGTERM)
        if wait:
            self.wait_stopped()

    def stop_cold(self, *, wait: bool = True) -> None:
        """Shut it down: running tasks are cancelled (SIGQUIT)."""
        self.process.signal(signal.SIGQUIT)
        if wait:
            self.wait_stopped()

    def wait_stopped(self) -> None:
        """Wait for its end."""
        self.process.wait(_SHUTDOWN)

    def kill(self) -> None:
        """Kill its main process only, and wait for that; Celery's pool processes then end by themselves."""
        self.process.kill(group=False)

    def kill_all(self) -> None:
        """Kill the main process and its pool processes at once: a host that loses power."""
        self.process.kill(group=True)

    def freeze(self, *, main_only: bool = False) -> None:
        """Stop it (SIGSTOP) with its pool processes, or its main process only."""
        self.process.freeze(group=not main_only)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.thaw()

    def end(self) -> None:
        """End it by force."""
        self.process.end(0.0)

    def complaints(self) -> list[str]:
        """Return the log records with a traceback or of level CRITICAL that ``may_log`` does not cover."""
        text = self.log
        starts = [match.start() for match in _RECORD.finditer(text)]
        # What stands before the first record (an import error, say) is one too.
        bounds = [0, *starts, len(text)]
        records = [text[a:b] for a, b in pairwise(bounds)]
        bad = [record for record in records if "Traceback" in record or ": CRITICAL/" in record]
        return [record for record in bad if not any(re.search(allowed, record) for allowed in self.may_log)]


class StartWorker(Protocol):
    """The fixture ``worker``: start a worker, wait until it is ready, end it after the test.

    It takes the arguments of :class:`Worker`; without ``settings`` those of the fixture ``settings``. ``conf`` is
    merged into the settings' own. With ``wait=False`` it returns at once (see :meth:`Worker.wait_ready`).
    """

    def __call__(
        self,
        app_module: str,
        settings: Settings | None = None,
        *,
        pool: Pool = "prefork",
        concurrency: int = 2,
        queues: Sequence[str] = (),
        options: Sequence[str] = (),
        env: Mapping[str, str | None] | None = None,
        name: str | None = None,
        may_log: Sequence[str] = (),
        conf: Mapping[str, Any] | None = None,
        wait: bool = True,
    ) -> Worker: ...


class LoadApp(Protocol):
    """The fixture ``load``: the test's own copy of an application's module, with the workers' settings."""

    def __call__(
        self, app_module: str, settings: Settings | None = None, *, conf: Mapping[str, Any] | None = None
    ) -> Any: ...
