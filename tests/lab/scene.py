"""Everybody who takes part in a run: real servers, real workers, plain processes, each with wires of its own."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.lab import history
from tests.lab.clock import Clock, compiler
from tests.lab.effects import RESOURCE
from tests.lab.locker import URL
from tests.lab.setting import MUTANT, ROLE
from tests.lab.sites import Site
from tests.lab.wires import Wire
from tests.support.process import Process
from tests.support.redis_server import RedisServer
from tests.support.workers import Settings, Worker

__all__ = ["Actor", "Scene", "WorkerActor"]

KEYS = ("one", "two")
#: Seconds after which kombu takes an unacknowledged message for forgotten.
VISIBILITY = 3
_ROOT = str(Path(__file__).parents[2])


class Actor:
    """A process with a way to the store; it can be started again.

    Arguments:
        name: its role.
        argv: the command.
        wire: to the store.
        scene: where its log and history go.
        clock: its own, if it has one.
        env: further environment variables.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        wire: Wire,
        scene: Scene,
        clock: Clock | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.wire = wire
        self.clock = clock
        self._argv = [sys.executable, *argv]
        self._log = scene.folder / f"{name}.log"
        clocked = clock.env if clock is not None else {}
        told = {URL: wire.url, "PYTHONPATH": _ROOT, "PYTHONWARNINGS": None}
        self._env: dict[str, str | None] = {**scene.env(name), **told, **clocked, **(env or {})}
        self._starting = threading.Lock()
        self._begin()

    def __repr__(self) -> str:
        return self.name

    def start(self) -> None:
        """Start it again; what may be left of it, since two faults have struck it at once, is ended."""
        with self._starting:
            self.process.end(0.0)
            self._begin()

    def _begin(self) -> None:
        self.process = Process(self._argv, name=self.name, log=self._log, env=self._env)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.alive

    def freeze(self) -> None:
        """Stop it (SIGSTOP), with its children."""
        self.process.freeze()

    def thaw(self) -> None:
        """Let it go on."""
        self.process.thaw()

    def kill(self) -> None:
        """End it (SIGKILL), with its children."""
        self.process.kill()
        self.process.end(0.0)

    def end(self) -> None:
        """End it by force, whatever state it is in."""
        self.process.end(0.0)

    @property
    def log(self) -> str:
        """What it has written, in all its lives."""
        return self._log.read_text(errors="replace")


class WorkerActor:
    """A Celery worker with ways to the store and to the broker, and a clock of its own."""

    def __init__(self, name: str, scene: Scene, *, concurrency: int = 2) -> None:
        self.name = name
        self.wire = scene.site.wire()
        self.broker = Wire([scene.broker], scene.broker.url_of(1))
        self._settings = Settings(
            self.broker.url,
            self.broker.url.rpartition("/")[0] + "/2",
            self.wire.url,
            scene.folder / "journal",
            {
                "distlock_ttl": scene.site.ttl,
                "broker_transport_options": {
                    "visibility_timeout": VISIBILITY,
                    "unacked_restore_interval": 1,
                    "unacked_restore_throttle": 1,
                },
                "broker_connection_retry_on_startup": True,
                "broker_connection_timeout": 2,
            },
        )
        self.clock = scene.clock_of(name)
        clock = self.clock.env if self.clock is not None else {}
        self._env: dict[str, str | None] = {**scene.env(name), **clock}
        self._concurrency = concurrency
        self._log = scene.folder / f"{name}.log"
        self._starting = threading.Lock()
        self._begin()

    def __repr__(self) -> str:
        return self.name

    def start(self) -> None:
        """Start it again; it consumes some seconds later. What may be left of it is ended."""
        with self._starting:
            self.worker.end()
            self._begin()

    def _begin(self) -> None:
        self.worker = Worker(
            "tests.lab.app", self._settings, self._log, concurrency=self._concurrency, env=self._env, name=self.name
        )

    def wait_ready(self) -> None:
        """Wait until it consumes."""
        self.worker.wait_ready(60.0)

    @property
    def alive(self) -> bool:
        """Whether its main process runs."""
        return self.worker.alive

    def pool(self) -> list[int]:
        """Return the pids of its pool processes."""
        return self.worker.children()

    def freeze(self) -> None:
        """Stop it (SIGSTOP), with its pool."""
        self.worker.freeze()

    def thaw(self) -> None:
        """Let it go on."""
        self.worker.thaw()

    def kill(self) -> None:
        """End it as a host that loses power does."""
        self.worker.kill_all()
        self.worker.end()

    def end(self) -> None:
        """End it by force, whatever state it is in."""
        self.worker.end()

    @property
    def log(self) -> str:
        """What it has written, in all its lives."""
        return self._log.read_text(errors="replace")


class Scene:
    """A run's processes, started by the constructor.

    Arguments:
        folder: takes logs, histories and the servers' data.
        site: where the locks live.
        seed: what the processes' own dice begin with.
        workers, lockers: how many.
        styles: of the lockers, in turn; see :mod:`.locker`.
        keys: what plain locks and tasks fight for.
        hold: seconds, about.
        per_second: how many tasks are published.
        twice: how often a message is published a second time.
        mutant: what is broken in every process.
        clocks: whether workers and lockers have clocks that can be set.
    """

    def __init__(
        self,
        folder: Path,
        site: Site,
        seed: int,
        *,
        workers: int = 2,
        lockers: int = 2,
        styles: Sequence[str] = ("mixed",),
        keys: Sequence[str] = KEYS,
        hold: float = 0.15,
        per_second: float = 12.0,
        twice: float = 0.1,
        mutant: str | None = None,
        clocks: bool = False,
    ) -> None:
        self.folder = folder
        self.site = site
        self.seed = seed
        self.mutant = mutant
        self.keys = tuple(keys)
        self._clocks = clocks
        self.history = folder / "history"
        self.history.mkdir(parents=True)
        self.rng = random.Random(seed)
        self.resource = RedisServer(folder / "resource")
        self.workers: list[WorkerActor] = []
        self.publisher: Actor | None = None
        if workers:
            self.broker = RedisServer(folder / "broker")
            self.workers = [WorkerActor(f"worker{n}", self) for n in range(workers)]
        self.lockers = [self._locker(f"locker{n}", styles[n % len(styles)], keys, hold) for n in range(lockers)]
        for worker in self.workers:
            worker.wait_ready()
        if workers:
            wire = site.wire()
            settings = Settings(self.broker.url_of(1), self.broker.url_of(2), wire.url, folder / "journal")
            argv = ["-m", "tests.lab.publisher", ",".join(keys), str(hold), str(per_second), str(twice), str(seed)]
            self.publisher = Actor("publisher", argv, wire, self, env=settings.env)

    def _locker(self, name: str, style: str, keys: Sequence[str], hold: float) -> Actor:
        argv = ["-m", "tests.lab.locker", ",".join(keys), str(self.site.ttl), str(hold), style, f"{self.seed}{name}"]
        clock = self.clock_of(name)
        return Actor(name, argv, self.site.wire(), self, clock)

    def clock_of(self, name: str) -> Clock | None:
        """Return a clock for one machine, if machines have clocks that can be set."""
        return Clock(self.folder / f"clock-{name}") if self._clocks and compiler() else None

    def env(self, name: str) -> dict[str, str | None]:
        """Return what every process of the run is told."""
        return {
            history.FOLDER: str(self.history),
            ROLE: name,
            RESOURCE: self.resource.url,
            MUTANT: self.mutant,
            "PYTHONFAULTHANDLER": "1",
        }

    @property
    def actors(self) -> list[Actor | WorkerActor]:
        """Everybody but the servers."""
        publisher = [] if self.publisher is None else [self.publisher]
        return [*self.workers, *self.lockers, *publisher]

    def revive(self) -> None:
        """Start those again that have ended by themselves, as their supervisors would.

        Kombu ends a worker whose broker is lost in the moment in which it is being connected to.
        """
        for actor in self.actors:
            if not actor.alive:
                self.note("ended by itself", actor=actor.name)
                actor.start()

    def note(self, event: str, **fields: Any) -> None:
        """Write into the history, as the one who breaks things."""
        history.note(event, folder=self.history, **fields)

    def mend(self) -> None:
        """Undo what was done to wires and servers, let everybody go on, and start the dead again."""
        self.site.mend()
        for actor in self.actors:
            actor.wire.mend()
            if isinstance(actor, WorkerActor):
                actor.broker.mend()
            actor.thaw()
        self.revive()

    def end_processes(self) -> None:
        """End everybody but the servers, in whatever state."""
        for actor in self.actors:
            actor.end()

    def close(self) -> None:
        """End everything."""
        self.end_processes()
        for actor in self.actors:
            actor.wire.close()
            if isinstance(actor, WorkerActor):
                actor.broker.close()
        if self.workers:
            self.broker.kill()
        self.site.stop()

    def close_resource(self) -> None:
        """End the resource, whose lists are looked at last."""
        self.resource.kill()


def is_alive(pid: int) -> bool:
    """Return whether a process runs."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
