"""When a pool process dies, its key can be had at once, and never while its body runs."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.journal import Journal
from tests.support.servers import Databases
from tests.support.waiting import eventually
from tests.support.workers import LoadApp, StartWorker
from tests.worker.behind import assert_nothing_left
from tests.worker.watching import Death, assert_free_at_once, first_grant, lock_of, seen_held

pytestmark = pytest.mark.also_in_zookeeper

ENDINGS = "tests.worker.apps.endings"

#: What Celery logs of killed children.
MAY_LOG = ["WorkerLostError", "Terminated", "TimeLimitExceeded", "Hard time limit", "SystemExit"]

#: From a child's death to the first grant of its key, as a median, in seconds.
AT_ONCE = 0.1
#: The same while the machine is busy with other tests: neither the ttl nor Celery's report takes less than five.
SOON = 1.0


def _kill(tasks: Any, journal: Journal, key: str, task_id: str) -> None:
    os.kill(_pid(journal, key), signal.SIGKILL)


def _go(tasks: Any, journal: Journal, key: str, task_id: str) -> None:
    journal.record("go", key=key)


def _terminate(tasks: Any, journal: Journal, key: str, task_id: str) -> None:
    tasks.app.control.revoke(task_id, terminate=True, signal="SIGTERM")


def _terminate_kill(tasks: Any, journal: Journal, key: str, task_id: str) -> None:
    tasks.app.control.revoke(task_id, terminate=True, signal="SIGKILL")


def _wait(tasks: Any, journal: Journal, key: str, task_id: str) -> None:
    """Leave it to the time limit."""


def _pid(journal: Journal, key: str) -> int:
    (start,) = journal.wait_for("start", key=key)
    return int(start["pid"])


#: How a child dies: the task that it runs, and what brings the death about.
DEATHS: dict[str, tuple[str, Callable[[Any, Journal, str, str], None]]] = {
    "SIGKILL": ("hold", _kill),
    "out of memory": ("vanish", _go),
    "terminate with SIGTERM": ("hold", _terminate),
    "terminate with SIGKILL": ("hold", _terminate_kill),
    "hard time limit": ("hold", _wait),
    "hard time limit, SIGTERM ignored": ("ignore_sigterm", _wait),
}


def _die_and_look(how: str, tasks: Any, journal: Journal, trials: int) -> list[float]:
    """Let as many children die, one after the other; return how long after each death its key was granted."""
    name, die = DEATHS[how]
    keys = [f"key-{number}" for number in range(trials)]
    limits = {"time_limit": 0.0} if how.startswith("hard") else {}
    results = []
    for number, key in enumerate(keys):
        if limits:
            limits["time_limit"] = 2.0 + 0.25 * number
        results.append(getattr(tasks, name).apply_async((key,), **limits))
    deaths = [Death(_pid(journal, key)) for key in keys]
    delays = []
    for key, result, death in zip(keys, results, deaths, strict=True):
        die(tasks, journal, key, result.id)
        grant = first_grant(lock_of(tasks, key), death)
        died = death.wait()
        journal.died(death.pid)
        (run,) = journal.runs(key)
        # A body that SIGTERM unwinds has ended before its process, and so may its lock.
        assert grant.after or run.error == "SystemExit", f"{key} was granted while its holder {death.pid} lived"
        assert grant.after or grant.at >= run.end, f"{key} was granted while its body ran"
        assert run.fence is not None
        assert grant.fence > run.fence
        delays.append(grant.at - died)
    return delays


@pytest.mark.parametrize("how", DEATHS)
def test_the_key_of_a_dead_child_can_be_had_at_once_but_not_before(
    how: str, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    worker(ENDINGS, concurrency=5, may_log=MAY_LOG)
    delays = _die_and_look(how, load(ENDINGS), journal, 5)
    assert statistics.median(delays) <= SOON, delays
    assert_nothing_left(databases.locks)


@pytest.mark.slow
@pytest.mark.parametrize("how", DEATHS)
def test_the_keys_of_twenty_dead_children_can_be_had_at_once(
    how: str, worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    worker(ENDINGS, concurrency=20, may_log=MAY_LOG)
    delays = _die_and_look(how, load(ENDINGS), journal, 20)
    assert statistics.median(delays) <= AT_ONCE, delays
    assert_nothing_left(databases.locks)
    print(f"\n{how}: median {1000 * statistics.median(delays):.1f} ms, worst {1000 * max(delays):.1f} ms")


def test_a_body_that_ignores_sigterm_keeps_its_lock_until_it_is_dead(
    worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    ttl = 3.0
    node = worker(ENDINGS, conf={"distlock_ttl": ttl}, may_log=MAY_LOG)
    tasks = load(ENDINGS)
    result = tasks.ignore_sigterm.delay("a")
    death = Death(_pid(journal, "a"))
    tasks.app.control.revoke(result.id, terminate=True, signal="SIGTERM")
    node.wait_for_log("Terminating")
    # Celery takes the task for gone; the warden must not.
    seen_held(lock_of(tasks, "a"), 1.5 * ttl)
    assert not death.happened
    os.kill(death.pid, signal.SIGKILL)
    grant = first_grant(lock_of(tasks, "a"), death)
    assert grant.after
    assert grant.at - death.wait() <= SOON
    assert_nothing_left(databases.locks)


def test_recycled_children_leave_no_lock(
    worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    # Three, because Celery takes up to five seconds to replace one.
    worker(ENDINGS, options=["--max-tasks-per-child", "1"], concurrency=3)
    tasks = load(ENDINGS)
    for _ in range(3):
        assert tasks.succeed.delay("a").get(timeout=20) == "a"
        assert_free_at_once(tasks, "a")
    assert len({run.pid for run in journal.runs("a")}) == 3
    assert_nothing_left(databases.locks)


def _wait_until_ended(tasks: Any, task_id: str) -> None:
    """Wait until the main process has read that a task has ended: Celery refuses to stop its child before."""

    def ended() -> bool:
        (active,) = (tasks.app.control.inspect(timeout=20, limit=1).active() or {"": [{"id": task_id}]}).values()
        return task_id not in [task["id"] for task in active]

    eventually(ended, 20, f"the end of {task_id} in the main process")


@pytest.mark.slow
def test_a_pool_that_grows_and_shrinks_supervises_its_new_children_and_leaves_no_lock(
    worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    ttl = 3.0
    node = worker(ENDINGS, concurrency=1, conf={"distlock_ttl": ttl}, may_log=MAY_LOG)
    tasks = load(ENDINGS)
    results = [tasks.hold.delay("first")]
    journal.wait_for("start", key="first")
    tasks.app.control.pool_grow(2)
    eventually(lambda: len(node.children()) == 3, 10, "two more children")
    # Forked after the warden had its cells: they are kept alive like the first one.
    for key in ("second", "third"):
        results.append(tasks.hold.delay(key))
        _pid(journal, key)
        seen_held(lock_of(tasks, key), ttl + 1)
    for key, result in (("first", results[0]), ("third", results[2])):
        idle = Death(_pid(journal, key))
        journal.record("go", key=key)
        result.get(timeout=20)
        _wait_until_ended(tasks, result.id)
        # Once: a child takes a second to end, meanwhile counts as one that can be stopped, and who asks again may find
        # the next one.
        (answer,) = tasks.app.control.pool_shrink(1, reply=True, timeout=20, limit=1)
        assert [list(told) for told in answer.values()] == [["ok"]], answer
        idle.wait()
    seen_held(lock_of(tasks, "second"), ttl + 1)
    os.kill(_pid(journal, "second"), signal.SIGKILL)
    assert_free_at_once(tasks, "second", within=0.3)
    assert_nothing_left(databases.locks)


def test_after_the_main_process_was_killed_the_next_holder_runs_within_the_ttl_and_a_second(
    worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    ttl = 2.0
    conf = {"distlock_ttl": ttl}
    node = worker(ENDINGS, conf=conf)
    tasks = load(ENDINGS, conf=conf)
    tasks.hold.delay("a")
    death = Death(_pid(journal, "a"))
    killed = time.monotonic()
    node.kill()
    grant = first_grant(lock_of(tasks, "a"), death)
    assert grant.after, "granted while the child lived"
    assert grant.at - killed <= ttl + 1
