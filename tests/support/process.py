"""Child processes that are always ended, with their output in a file.

Every child leads a session (and process group) of its own, so that ending it ends what it has forked. Children are
ended by :meth:`Process.end`, by the session's end, and, when pytest itself is killed, by :mod:`.watchdog`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.support.waiting import eventually

__all__ = ["Process", "is_running", "known", "leftovers"]

#: In the environment of every child and of what it starts, so that strays can be found.
MARK = "DISTLOCK_TEST_RUN"
RUN = uuid.uuid4().hex
_PYTEST = os.getpid()

_started: list[Process] = []
_watchdog: subprocess.Popen[bytes] | None = None


def _runs_on(pid: int) -> bool:
    """Return whether a thread of a process that was told to stop has not done so."""
    for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
        # It may have ended, or its name may be any text.
        with contextlib.suppress(OSError):
            if thread.read_text().rpartition(")")[2].split()[0] not in "TtZX":
                return True
    return False


def _tell_watchdog(line: str) -> None:
    global _watchdog
    if _watchdog is None:
        script = Path(__file__).with_name("watchdog.py")
        _watchdog = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script), str(os.getpid())],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        atexit.register(_end_all)
    assert _watchdog.stdin is not None
    _watchdog.stdin.write(line.encode() + b"\n")
    _watchdog.stdin.flush()


def _end_all() -> None:
    global _watchdog
    if os.getpid() != _PYTEST:  # a fork of pytest that exits the ordinary way
        return
    for process in _started:
        process.end(0.0)
    if _watchdog is not None and _watchdog.stdin is not None:
        _watchdog.stdin.close()
        _watchdog.wait(10)
        _watchdog = None


class Process:
    """A child process in a group of its own.

    Arguments:
        argv: the command.
        name: names it in failure reports.
        log: the file that takes its standard output and error (appended).
        env: added to this process's environment; None as a value removes a variable.
        cwd: its working directory.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        name: str,
        log: Path,
        env: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.argv = list(argv)
        self.name = name
        self.log_path = log
        environment: dict[str, str] = {**os.environ, MARK: RUN}
        for variable, value in (env or {}).items():
            if value is None:
                environment.pop(variable, None)
            else:
                environment[variable] = value
        self._log_start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=cwd,
                start_new_session=True,
            )
        self.pid = self._popen.pid
        _started.append(self)
        _tell_watchdog(f"+{self.pid}")
        self._ended = False

    def __repr__(self) -> str:
        state = "running" if self.alive else f"ended with {self._popen.returncode}"
        return f"<{self.name} pid {self.pid}, {state}>"

    @property
    def alive(self) -> bool:
        """Whether the child itself (not what it has forked) still runs."""
        return self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._popen.poll()

    @property
    def log(self) -> str:
        """What it has written since it was started."""
        with self.log_path.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")

    def children(self) -> list[int]:
        """Return the pids of its living descendants."""
        try:
            return [child.pid for child in psutil.Process(self.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def wait_for_log(self, pattern: str, timeout: float = 30.0) -> re.Match[str]:
        """Wait until its output matches a regular expression, and return the match.

        Raises:
            AssertionError: it did not within ``timeout`` seconds, or the child ended first.
        """

        def look() -> re.Match[str] | None:
            ended = not self.alive
            found = re.search(pattern, self.log, re.MULTILINE)
            if not found and ended:
                raise AssertionError(f"{self!r} before it wrote {pattern!r}:\n{self.log[-4000:]}")
            return found

        found = eventually(look, timeout, f"{pattern!r} in the output of {self!r}", every=0.02)
        assert found is not None
        return found

    def signal(self, signum: int, *, group: bool = False) -> None:
        """Send a signal to the child, or to its whole group; nothing happens if it is gone."""
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(self.pid, signum)
            elif self.alive:
                os.kill(self.pid, signum)

    def wait(self, timeout: float = 10.0) -> int:
        """Wait for the child to end and return its exit status.

        Raises:
            AssertionError: it still ran after ``timeout`` seconds.
        """
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self!r} did not end within {timeout} s") from None

    def kill(self, *, group: bool = True) -> None:
        """Kill it (with its group) at once and wait until it is gone."""
        self.signal(signal.SIGKILL, group=group)
        self.wait()

    def freeze(self, *, group: bool = True) -> None:
        """Stop it (with its group) with SIGSTOP, and wait until it has stopped: the signal takes its time."""
        self.signal(signal.SIGSTOP, group=group)
        with contextlib.suppress(psutil.NoSuchProcess):
            main = psutil.Process(self.pid)
            pids = [each.pid for each in (main, *(main.children(recursive=True) if group else ()))]
            eventually(lambda: not any(map(_runs_on, pids)), 10, f"the stop of {self!r}", every=0.001)

    def thaw(self) -> None:
        """Let the group run on."""
        self.signal(signal.SIGCONT, group=True)

    def end(self, grace: float = 5.0) -> None:
        """End it: SIGTERM, ``grace`` seconds later SIGKILL, to the whole group. Safe to call twice."""
        if self._ended:
            return
        self.thaw()
        if grace and self.alive:
            self.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(grace)
        # Children that outlived their leader are still in its group, which keeps the number from being used anew.
        self.signal(signal.SIGKILL, group=True)
        self._popen.wait(10)
        _tell_watchdog(f"-{self.pid}")
        self._ended = True


def is_running(process: psutil.Process) -> bool:
    """Tell whether a process, our child or not, is alive; a zombie that nobody reaps is not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def known() -> list[Process]:
    """Return every process that was started, oldest first."""
    return list(_started)


def leftovers() -> list[str]:
    """Name the processes of this test run that are still alive and that nobody will end."""
    sessions = {process.pid for process in _started}
    strays = []
    for found in psutil.process_iter(["pid", "cmdline", "status"]):
        pid = found.info["pid"]
        if pid == os.getpid() or found.info["status"] == psutil.STATUS_ZOMBIE:
            continue
        if _watchdog is not None and pid == _watchdog.pid:
            continue
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(pid) in sessions or found.environ().get(MARK) == RUN:
                strays.append(f"{pid}: {' '.join(found.info['cmdline'] or [])[:200]}")
    return strays
