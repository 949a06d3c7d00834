"""What a worker refuses to start with, rather than run tasks unlocked."""

from __future__ import annotations

import pytest

from tests.support.waiting import eventually
from tests.support.workers import Settings, StartWorker


def test_a_worker_does_not_start_with_a_pattern_that_matches_none_of_its_tasks(worker: StartWorker) -> None:
    node = worker("tests.worker.apps.unmatched", wait=False, may_log=["no registered task matches"])
    node.wait_for_log(r"lock_tasks: no registered task matches 'no\.such\.\*'", 20)
    eventually(lambda: not node.alive, 10, "the worker to end")


@pytest.mark.parametrize("url", ["nosuch://host/0", "redis://:password@host:no-port/0"])
def test_a_worker_does_not_start_with_an_address_of_no_store(worker: StartWorker, settings: Settings, url: str) -> None:
    node = worker("tests.worker.apps.endings", wait=False, conf={"distlock_url": url}, may_log=["LockConfigError"])
    node.wait_for_log(r"LockConfigError.*distlock_url", 20)
    eventually(lambda: not node.alive, 10, "the worker to end")
    assert "password" not in node.log
