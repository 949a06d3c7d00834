"""How an example is run by its test: as a reader runs it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.support.process import Process

_ROOT = Path(__file__).parents[2]


class StartExample(Protocol):
    """Start ``python -m examples.<name> <arguments>``, with these variables in its environment."""

    def __call__(self, name: str, *arguments: str, **env: str) -> Process: ...


class RunExample(Protocol):
    """Run ``python -m examples.<name> <arguments>`` on an empty database; return what it printed.

    The test fails if the example does.
    """

    def __call__(self, name: str, *arguments: str, timeout: float = 60.0) -> str: ...


@pytest.fixture
def start_example(tmp_path: Path) -> Iterator[StartExample]:
    """Start an example, and end it after the test."""
    started: list[Process] = []

    def start(name: str, *arguments: str, **env: str) -> Process:
        argv = [sys.executable, "-m", f"examples.{name}", *arguments]
        log = tmp_path / f"{name}.log"
        # Its temporary files go where pytest tidies up; it imports what the test does.
        env = {"PYTHONPATH": str(_ROOT), "PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path), **env}
        started.append(Process(argv, name=f"example {name}", log=log, env=env, cwd=_ROOT))
        return started[-1]

    yield start
    for process in started:
        process.end()


@pytest.fixture
def run_example(start_example: StartExample, redis_url: str) -> RunExample:
    """Run an example to its end."""

    def run(name: str, *arguments: str, timeout: float = 60.0) -> str:
        process = start_example(name, *arguments, REDIS_URL=redis_url)
        status = process.wait(timeout)
        assert status == 0, f"{process!r}:\n{process.log}"
        return process.log

    return run
