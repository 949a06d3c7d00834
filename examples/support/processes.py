"""Child processes that are always ended: servers, Celery workers, beat.

Each leads a process group of its own, so that ending it ends its pool processes, and so that Ctrl-C in a terminal
reaches the example alone, which then ends them in good order. Should the example itself be killed, :mod:`.leash` does
it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from examples.support.waiting import wait_until

__all__ = ["Process", "Processes"]

_ROOT = Path(__file__).parents[2]
_GRACE = 5.0


class Process:
    """One child process and what it wrote."""

    def __init__(self, name: str, argv: Sequence[str], log: Path) -> None:
        self.name = name
        self._log = log
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=_ROOT,
                start_new_session=True,
            )
        self.pid = self._popen.pid
        self._killed = False

    @property
    def log(self) -> str:
        """What it wrote."""
        return self._log.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        """Whether it (not necessarily what it has forked) still runs."""
        return self._popen.poll() is None

    def wait_ready(self, text: str, timeout: float = 60.0) -> Process:
        """Wait until it has written ``text``.

        Raises:
            RuntimeError: it ended instead; the message shows what it wrote.
            TimeoutError: it did not within ``timeout`` seconds.
        """

        def look() -> bool:
            alive = self.alive
            if text in self.log:
                return True
            if not alive:
                raise RuntimeError(f"{self.name} ended with {self._popen.returncode}:\n{self.log[-3000:]}")
            return False

        wait_until(look, f"{self.name}: {text!r}", timeout, every=0.02)
        return self

    def freeze_main(self) -> None:
        """Stop its main process (SIGSTOP); what it has forked goes on."""
        os.kill(self.pid, signal.SIGSTOP)

    def ask_to_end(self) -> None:
        """Send SIGTERM: a Celery worker finishes what it is doing."""
        if self.alive:
            self._popen.terminate()

    def kill(self) -> None:
        """Kill its whole group at once (SIGKILL), like a machine that loses power, and wait until it is gone."""
        if self._killed:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait(10)
        # The number may be somebody else's from now on.
        self._killed = True

    def wait(self, until: float) -> None:
        """Wait for its end, at most until the monotonic time ``until``."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(max(0.0, until - time.monotonic()))


class Processes:
    """A context manager: what is started in its block is ended with it, all at once.

    What must outlive the others, such as a server, is started in a block around theirs.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="celery-distlock-")
        self._started: list[Process] = []
        self._leash = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("leash.py"))],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def folder(self) -> Path:
        """A folder for files that go away with the processes."""
        return Path(self._folder.name)

    def start(self, name: str, *argv: str) -> Process:
        """Start a process.

        Arguments:
            name: what to call it in messages; its log's name as well.
            argv: the command.
        """
        process = Process(name, argv, self.folder / f"{len(self._started)}-{name}.log")
        self._started.append(process)
        self._tell_leash(f"+{process.pid}")
        return process

    def worker(self, app: str, *, concurrency: int = 4, wait: bool = True) -> Process:
        """Start a Celery worker.

        Arguments:
            app: the module with the application.
            concurrency: how many tasks it runs at once, in processes of their own.
            wait: return only when it is ready for tasks; else see :meth:`wait_for_workers`.
        """
        name = f"worker{len(self._started)}"
        # Mingle waits a second for other workers, gossip talks with them: not what is shown here.
        options = ["--hostname", f"{name}@%h", "--loglevel", "INFO", "--without-mingle", "--without-gossip"]
        process = self.start(
            name, sys.executable, "-m", "celery", "-A", app, "worker", "--concurrency", str(concurrency), *options
        )
        return process.wait_ready(" ready.") if wait else process

    def workers(self, app: str, count: int, *, concurrency: int = 4) -> list[Process]:
        """Start several Celery workers at once, and wait until all of them are ready for tasks."""
        started = [self.worker(app, concurrency=concurrency, wait=False) for _ in range(count)]
        return [worker.wait_ready(" ready.") for worker in started]

    def beat(self, app: str) -> Process:
        """Start Celery's scheduler, without a schedule file."""
        argv = ["-m", "celery", "-A", app, "beat", "--scheduler", "celery.beat:Scheduler", "--loglevel", "INFO"]
        return self.start("beat", sys.executable, *argv, "--pidfile=")

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            for process in self._started:
                process.ask_to_end()
            until = time.monotonic() + _GRACE
            for process in self._started:
                process.wait(until)
        finally:
            # Kill what did not go, and what outlived its leader; a second Ctrl-C comes here at once.
            for process in self._started:
                process.kill()
                self._tell_leash(f"-{process.pid}")
            assert self._leash.stdin is not None
            self._leash.stdin.close()
            self._leash.wait(10)
            self._folder.cleanup()

    def _tell_leash(self, line: str) -> None:
        assert self._leash.stdin is not None
        self._leash.stdin.write(line + "\n")
        self._leash.stdin.flush()
