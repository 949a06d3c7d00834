"""The examples in ``zookeeper``: on a server of the test's, or on those that they start themselves."""

from __future__ import annotations

import re
from typing import Protocol

import pytest

from tests.examples.conftest import StartExample
from tests.support.servers import missing
from tests.support.zookeeper_server import executable


class RunZooKeeperExample(Protocol):
    """Run ``python -m examples.zookeeper.<name> <arguments>``; return the lines that it printed, without their times.

    The test fails if the example does.
    """

    def __call__(self, name: str, *arguments: str) -> list[str]: ...


@pytest.fixture
def run(start_example: StartExample) -> RunZooKeeperExample:
    """Run an example to its end."""

    def run(name: str, *arguments: str) -> list[str]:
        process = start_example(f"zookeeper.{name}", *arguments)
        status = process.wait(90)
        assert status == 0, f"{process!r}:\n{process.log}"
        lines = process.log.splitlines()
        assert all(re.match(r" *\d+\.\d\d s  ", line) for line in lines), process.log
        return [line.split("  ", 1)[1].lstrip() for line in lines]

    return run


@pytest.fixture
def embedded() -> None:
    """The example starts servers itself."""
    if executable() is None:
        missing("zookeeper")


@pytest.mark.usefixtures("embedded")
def test_thread_b_starts_when_a_is_done(run: RunZooKeeperExample) -> None:
    assert run("turns", "1.0") == [
        "A wants the lock",
        "A starts",
        "B wants the lock",
        "A is done",
        "B starts",
        "B is done",
    ]


def test_fifty_contenders_get_the_lock_one_at_a_time(run: RunZooKeeperExample, zookeeper_url: str) -> None:
    assert run("contenders", "50", "--url", zookeeper_url) == [
        "50 contenders are off",
        "50 increments, at most 1 at a time",
        "fences grew from grant to grant: yes",
        "is the lock taken? no",
    ]


@pytest.mark.usefixtures("embedded")
def test_a_lock_on_several_hosts_outlives_their_leader(run: RunZooKeeperExample) -> None:
    log = run("machines", "0.5")
    killed = next(line for line in log if line.startswith("the leader"))
    assert re.fullmatch(r"the leader of the ensemble, 127\.0\.0\.1:\d+, is killed", killed)
    assert "web2 sees that web1 has the lock" in log
    log.remove("web2 sees that web1 has the lock")
    assert log == [
        "web1 has the lock",
        "web3 sees that web1 has the lock",
        "web3 gives up after 0.5 s",
        killed,
        "web1 still has it, and gives it back",
        "web2 has the lock",
        "web2 still has it, and gives it back",
    ]


def test_a_lock_can_be_tried_waited_for_and_looked_at(run: RunZooKeeperExample, zookeeper_url: str) -> None:
    log = run("tries", "0.2", "--url", zookeeper_url)
    gave_up = [line for line in log if line.startswith("with theirs: ")]
    assert len(gave_up) == 1
    assert re.search(r"gave up on lock 'example:tries' after 0\.\d+ s; it is held by 'ours'", gave_up[0])
    log.remove(gave_up[0])
    assert log == [
        "locked(): False",
        "ours.acquire(): True",
        "locked(): True, by ['ours']",
        "theirs.acquire(blocking=False): False",
        "theirs.acquire(timeout=0.2): False",
        "locked() after the release: False",
        "theirs.held inside of with: True",
        "a second release: lock 'example:tries' is no longer ours: it is not held by this object",
    ]
