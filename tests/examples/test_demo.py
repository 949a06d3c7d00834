"""``make demo``: it keeps its promises, and leaves nothing running, however it ends."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.examples.conftest import StartExample
from tests.support.process import Process, is_running
from tests.support.redis_server import executable
from tests.support.servers import missing
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def a_redis_server_to_embed() -> None:
    pytest.importorskip("rich")
    if sys.version_info >= (3, 13) and executable() is None:
        missing("redis-server")


@pytest.fixture
def demo(start_example: StartExample) -> Process:
    return start_example("demo")


@pytest.fixture
def left_running(demo: Process) -> Iterator[list[psutil.Process]]:
    """Every process that the demo had when the test asked it to end; none of them may be alive afterwards."""
    theirs: list[psutil.Process] = []
    yield theirs
    assert theirs, "the test saw none of the demo's processes"
    eventually(lambda: not [one for one in theirs if is_running(one)], 10, f"the end of {theirs}")


def test_the_demo_shows_what_the_lock_is_good_for(demo: Process, left_running: list[psutil.Process]) -> None:
    demo.wait_for_log("charges: customers", 60)
    left_running += psutil.Process(demo.pid).children(recursive=True)
    assert demo.wait(90) == 0, demo.log
    assert "Everything as promised" in demo.log
    assert demo.log.count("✓") == 5
    assert "✗" not in demo.log


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_an_interrupted_demo_leaves_nothing_running(
    demo: Process, left_running: list[psutil.Process], signum: int, status: int, tmp_path: Path
) -> None:
    demo.wait_for_log("tickets sold", 60)
    left_running += psutil.Process(demo.pid).children(recursive=True)
    os.kill(demo.pid, signum)
    assert demo.wait(15) == status
    if signum != signal.SIGKILL:
        assert not list(tmp_path.glob("celery-distlock-*"))
