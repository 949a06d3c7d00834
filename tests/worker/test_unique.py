"""Unique tasks, from the publisher to the end of their run, whatever that is."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError

from celery_distlock import LockTimeout
from celery_distlock.stores import open_store
from celery_distlock.tokens import running_key
from tests.support.journal import Journal
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer
from tests.support.servers import Databases
from tests.support.waiting import eventually
from tests.support.workers import LoadApp, Pool, StartWorker
from tests.worker.behind import behind
from tests.worker.shared import PATIENCE, Shared, shared_workers

pytestmark = [pytest.mark.xdist_group("unique"), pytest.mark.also_in_zookeeper]

APP = "tests.worker.apps.unique"
EXPECTED = [r"LockContended", r"WorkerLostError", r"Terminated", r"LockTimeout"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Shared]:
    with shared_workers(
        tmp_path_factory.mktemp("unique"), redis_server, APP, may_log=EXPECTED, concurrency=3
    ) as shared:
        yield shared


@pytest.fixture
def key() -> str:
    return f"key-{uuid.uuid4().hex[:8]}"


def test_a_worker_that_is_gone_frees_the_place_when_its_lease_ends(
    worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    first = worker(APP, concurrency=1)
    tasks = load(APP)
    tasks.running_too.delay("k")
    journal.wait_for("start", key="k")
    first.kill_all()
    assert tasks.running_too.delay("k").duplicate
    eventually(lambda: not tasks.running_too.delay("k").duplicate, 3.0 + 1.0, "the end of the lease")


@pytest.mark.parametrize("pool", ["threads", "gevent", "solo"])
def test_on_every_pool_the_place_ends_with_the_run(
    worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases, pool: Pool
) -> None:
    worker(APP, pool=pool)
    tasks = load(APP)
    first = tasks.running_too.delay("k")
    journal.wait_for("start", key="k")
    assert tasks.running_too.delay("k").id == first.id
    with redis.Redis.from_url(databases.broker) as broker:
        broker.rpush("gate:k", "open")
    assert first.get(timeout=PATIENCE) == ""
    eventually(lambda: not tasks.running_too.apply_async(("k",), {"gate": False}).duplicate, 5.0, "the end of the run")


def started(shared: Shared, key: str, task: Any, **options: Any) -> Any:
    """Publish a task and wait until its body runs."""
    result = task.apply_async((key,), **options)
    assert not result.duplicate
    shared.journal.wait_for("start", key=key, id=result.id)
    return result


def leases(shared: Shared, key: str) -> list[Any]:
    store = open_store(shared.settings.locks)
    try:
        return store.holders(running_key(key))
    finally:
        store.close()


def free_again(shared: Shared, key: str, task: Any, within: float = 5.0) -> Any:
    """Wait until a call is accepted again, and return its result; it is asked without being run."""
    accepted: list[Any] = []

    def accept() -> bool:
        result = task.apply_async((key,), {"gate": False})
        accepted.append(result)
        return not result.duplicate

    eventually(accept, within, f"the place of {key}")
    assert accepted[-1].get(timeout=PATIENCE) == ""
    return accepted[-1]


class TestWhileItRuns:
    def test_queued_ends_when_the_run_starts(self, shared: Shared, key: str) -> None:
        first = started(shared, key, shared.tasks.queued)
        second = shared.tasks.queued.delay(key)
        assert not second.duplicate
        assert shared.tasks.queued.delay(key).id == second.id
        shared.open_gate(key, 2)
        assert [each.get(timeout=PATIENCE) for each in (first, second)] == ["", ""]
        assert shared.journal.overlaps(key) == []

    @pytest.mark.parametrize("name", ["running_too", "late", "unlocked"])
    def test_queued_or_running_ends_when_the_run_ends(self, shared: Shared, key: str, name: str) -> None:
        task = getattr(shared.tasks, name)
        first = started(shared, key, task)
        second = task.delay(key)
        assert (second.duplicate, second.id) == (True, first.id)
        shared.open_gate(key)
        assert second.get(timeout=PATIENCE) == ""
        free_again(shared, key, task)
        assert len(shared.journal.runs(key)) == 2

    def test_it_is_renewed_for_as_long_as_the_run_takes(self, shared: Shared, key: str) -> None:
        first = started(shared, key, shared.tasks.running_too)
        (granted,) = leases(shared, key)
        end = time.monotonic() + 4.0

        def longer_than_its_ttl() -> bool:
            (now,) = leases(shared, key)
            assert (now["fence"], now["remaining"] > 0) == (granted["fence"], True)
            assert shared.tasks.running_too.delay(key).id == first.id
            return time.monotonic() > end

        eventually(longer_than_its_ttl, 10.0, "more than the ttl", every=0.3)
        shared.open_gate(key)
        first.get(timeout=PATIENCE)

    def test_a_retry_keeps_the_place(self, shared: Shared, key: str) -> None:
        first = started(shared, key, shared.tasks.retried)
        shared.open_gate(key)
        eventually(lambda: not leases(shared, key), 5.0, "the end of the first run")
        assert not shared.journal.entries("start", key=key, retries=1)
        assert shared.tasks.retried.delay(key).id == first.id
        shared.journal.wait_for("start", key=key, retries=1)
        assert shared.tasks.retried.delay(key).id == first.id
        shared.open_gate(key)
        assert first.get(timeout=PATIENCE) == 1
        eventually(lambda: not leases(shared, key), 5.0, "the end of the run")

    def test_a_lock_retry_keeps_the_place(self, shared: Shared, key: str) -> None:
        with shared.held_by_a_task(key):
            first = shared.tasks.running_too.apply_async((key,), {"gate": False})
            shared.journal.wait_for("contended", 2, key=key, id=first.id)
            assert shared.tasks.running_too.delay(key).id == first.id
        assert first.get(timeout=PATIENCE) == ""
        free_again(shared, key, shared.tasks.running_too)


class TestEndings:
    @pytest.mark.parametrize("name", ["running_too", "late"])
    def test_a_child_that_is_killed_frees_the_place_at_once(self, shared: Shared, key: str, name: str) -> None:
        task = getattr(shared.tasks, name)
        started(shared, key, task)
        (run,) = shared.journal.runs(key)
        os.kill(run.pid, signal.SIGKILL)
        # The lease was 3 s.
        free_again(shared, key, task, within=1.5)

    @pytest.mark.parametrize("name", ["starting_queued", "starting_running"])
    def test_so_does_one_that_is_killed_before_the_task_begins(self, shared: Shared, key: str, name: str) -> None:
        task = getattr(shared.tasks, name)
        first = task.delay(key)
        (starting,) = shared.journal.wait_for("starting", key=key, id=first.id)
        assert task.delay(key).id == first.id
        os.kill(starting["pid"], signal.SIGKILL)
        free_again(shared, key, task, within=1.5)

    def test_terminating_it_frees_the_place(self, shared: Shared, key: str) -> None:
        first = started(shared, key, shared.tasks.running_too)
        shared.tasks.app.control.revoke(first.id, terminate=True)
        free_again(shared, key, shared.tasks.running_too, within=2.5)

    @pytest.mark.parametrize("name", ["skipped", "failing"])
    def test_one_that_was_refused_its_lock_frees_the_place(self, shared: Shared, key: str, name: str) -> None:
        task = getattr(shared.tasks, name)
        with shared.held_by_a_task(key):
            first = task.delay(key)
            first.get(timeout=PATIENCE, propagate=False)
            eventually(lambda: not task.apply_async((key,), {"gate": False}).duplicate, 2.0, "its place")

    def test_revoked_while_it_is_queued(self, shared: Shared, key: str) -> None:
        task = shared.tasks.running_too
        first = task.apply_async((key,), {"gate": False}, countdown=2.0)
        assert task.delay(key).id == first.id
        shared.tasks.app.control.revoke(first.id)
        with pytest.raises(TaskRevokedError):
            first.get(timeout=PATIENCE)
        free_again(shared, key, task)

    def test_expired_in_the_worker(self, shared: Shared, key: str) -> None:
        task = shared.tasks.running_too
        first = task.apply_async((key,), {"gate": False}, countdown=1.2, expires=1.0)
        assert task.delay(key).id == first.id
        free_again(shared, key, task, within=2.0)
        with pytest.raises(TaskRevokedError):
            first.get(timeout=PATIENCE)

    def test_a_purged_queue(self, shared: Shared, key: str) -> None:
        task = shared.tasks.running_too
        first = task.apply_async((key,), queue="nobody", lock={"unique_ttl": 1.0})
        assert shared.broker.delete("nobody") == 1
        assert task.delay(key).id == first.id
        free_again(shared, key, task, within=2.0)

    def test_nothing_is_left_in_the_store(self, shared: Shared, key: str) -> None:
        for task in (shared.tasks.queued, shared.tasks.running_too, shared.tasks.late, shared.tasks.unlocked):
            task.apply_async((key,), {"gate": False}).get(timeout=PATIENCE)
            eventually(lambda: not leases(shared, key), 5.0, "the end of the run")
        with behind(shared.settings.locks) as store:
            eventually(lambda: not store.about(key), 5.0, "an empty store")


def publishing(shared: Shared, code: str, *arguments: str) -> subprocess.Popen[str]:
    """Run code in a publisher of its own, which has the application as ``tasks``."""
    prelude = f"import os, signal, sys\nimport {APP} as tasks\ntasks.app.finalize()\n"
    env = {**os.environ, **shared.settings.env, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, "-c", prelude + code, *arguments]
    return subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


#: For a publisher's code: tells whether somebody else would find its place taken.
ASK = (
    "from celery_distlock.tokens import Token\n"
    "def ask():\n"
    "    answer = tasks.running_too._lock_store.reserve(Token(sys.argv[1], 'other', 1.0))\n"
    "    print(type(answer).__name__, flush=True)\n"
)


@contextlib.contextmanager
def commands_about(shared: Shared, key: str) -> Iterator[list[str]]:
    """Collect what the lock store, if it is Redis, is told through the block that names this key, script by script."""
    told: list[str] = []
    database = urlsplit(shared.settings.locks)
    if database.scheme != "redis":
        yield told
        return
    with shared.broker.monitor() as monitor:
        yield told
        end = uuid.uuid4().hex
        shared.broker.echo(end)
        for one in monitor.listen():
            if end in one["command"]:
                break
            if one["client_type"] != "lua" and str(one["db"]) == database.path.strip("/") and key in one["command"]:
                told.append(one["command"])


class TestPublishers:
    def test_one_that_is_killed_between_the_place_and_the_message_frees_it_after_the_ttl(
        self, shared: Shared, key: str
    ) -> None:
        dying = publishing(
            shared,
            f"{ASK}"
            "def die(*_, **__):\n"
            "    ask()\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            "tasks.app.send_task = die\n"
            "tasks.running_too.apply_async((sys.argv[1],), lock={'unique_ttl': 1.0})\n",
            key,
        )
        assert dying.communicate()[0].split() == ["Duplicate"]
        assert dying.returncode == -signal.SIGKILL
        assert shared.journal.runs(key) == []
        free_again(shared, key, shared.tasks.running_too, within=2.0)

    def test_a_broker_that_is_down_frees_it_at_once(self, shared: Shared, key: str) -> None:
        failing = publishing(
            shared,
            f"{ASK}"
            "from celery.signals import before_task_publish\n"
            "before_task_publish.connect(lambda **_: ask(), weak=False)\n"
            "tasks.app.conf.broker_url = sys.argv[2]\n"
            "try:\n"
            "    tasks.running_too.apply_async((sys.argv[1],), retry=False)\n"
            "except tasks.running_too.OperationalError:\n"
            "    print('refused')\n",
            key,
            f"redis://127.0.0.1:{free_port()}/0",
        )
        assert failing.communicate()[0].split() == ["Duplicate", "refused"]
        first = shared.tasks.running_too.apply_async((key,), {"gate": False})
        assert not first.duplicate
        assert first.get(timeout=PATIENCE) == ""

    def test_of_a_thousand_calls_by_eight_processes_one_is_published(self, shared: Shared, key: str) -> None:
        code = (
            # All but the question itself is done before: eight of them are to meet.
            "tasks.queued.apply_async((sys.argv[1] + ' before',), queue=sys.argv[2])\n"
            "print('ready', flush=True); sys.stdin.readline()\n"
            "results = [tasks.queued.apply_async((sys.argv[1],), queue=sys.argv[1]) for _ in range(125)]\n"
            "print(*((result.id, result.duplicate) for result in results), sep='\\n')\n"
        )
        publishers = [publishing(shared, code, key, f"{key}-before") for _ in range(8)]
        for each in publishers:
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        with commands_about(shared, key) as commands:
            for each in publishers:
                assert each.stdin is not None
                each.stdin.write("go\n")
                each.stdin.flush()
            told = [line for each in publishers for line in each.communicate()[0].splitlines()]
        assert len(told) == 1000
        assert len({line.partition(",")[0] for line in told}) == 1
        assert sum("True" in line for line in told) == 999
        assert shared.broker.llen(key) == 1
        assert len(commands) == (1000 if shared.settings.locks.startswith("redis:") else 0)
        shared.broker.delete(key, f"{key}-before")


class TestReplace:
    def test_the_older_one_is_revoked_and_the_newest_runs(self, shared: Shared, key: str) -> None:
        results = [
            shared.tasks.replaced.apply_async((key, note), {"gate": False}, countdown=0.8) for note in ("a", "b", "c")
        ]
        assert results[2].get(timeout=PATIENCE) == "c"
        for older in results[:2]:
            with pytest.raises(TaskRevokedError, match="replaced by a newer call"):
                older.get(timeout=PATIENCE)
        assert [run.id for run in shared.journal.runs(key)] == [results[2].id]

    def test_it_is_seen_by_a_worker_that_hears_no_broadcast(self, shared: Shared, key: str) -> None:
        older, newer = (shared.tasks.replaced.apply_async((key, note), {"gate": False}) for note in ("a", "b"))
        assert newer.get(timeout=PATIENCE) == "b"
        older.get(timeout=PATIENCE, propagate=False)
        ran = {run.id for run in shared.journal.runs(key)}
        assert older.state == ("SUCCESS" if older.id in ran else "REVOKED")


class TestRerun:
    def test_what_arrives_during_a_run_runs_once_after_it_with_the_latest_arguments(
        self, shared: Shared, key: str
    ) -> None:
        first = started(shared, key, shared.tasks.rerun)
        results = [shared.tasks.rerun.apply_async((key, f"note {n}")) for n in range(5)]
        assert not any(result.duplicate for result in results)
        # Those that are refused the lock learn that there is a newer one, and do not come back.
        shared.journal.wait_for("superseded", 4, key=key)
        shared.open_gate(key, 2)
        assert first.get(timeout=PATIENCE) == ""
        assert results[-1].get(timeout=PATIENCE) == "note 4"
        assert [entry["note"] for entry in shared.journal.entries("start", key=key)] == ["", "note 4"]
        for older in results[:-1]:
            with pytest.raises(TaskRevokedError):
                older.get(timeout=PATIENCE)
        assert shared.journal.overlaps(key) == []


class TestParked:
    def test_one_that_waits_for_its_lock_is_still_queued(self, shared: Shared, key: str) -> None:
        with shared.held_by_a_task(key):
            # As long as the test takes, whatever that is.
            first = shared.tasks.waiting.apply_async((key,), {"gate": False}, lock={"timeout": 3 * PATIENCE})
            shared.journal.wait_for("contended", key=key, id=first.id)
            assert shared.tasks.waiting.delay(key).id == first.id
        assert first.get(timeout=PATIENCE) == ""
        free_again(shared, key, shared.tasks.waiting)

    def test_one_that_has_waited_for_too_long_frees_its_place(self, shared: Shared, key: str) -> None:
        with shared.held_by_a_task(key):
            first = shared.tasks.waiting.delay(key)
            with pytest.raises(LockTimeout):
                first.get(timeout=PATIENCE)
            again = shared.tasks.waiting.apply_async
            eventually(lambda: not again((key,), {"gate": False}).duplicate, 2.0, "its place")

    def test_of_those_that_wait_behind_a_run_the_latest_runs(self, shared: Shared, key: str) -> None:
        first = started(shared, key, shared.tasks.waiting_rerun)
        results = []
        for number in range(3):
            results.append(shared.tasks.waiting_rerun.apply_async((key, f"note {number}", False)))
            shared.journal.wait_for("contended", key=key, id=results[-1].id)
        shared.open_gate(key)
        assert first.get(timeout=PATIENCE) == ""
        assert results[-1].get(timeout=PATIENCE) == "note 2"
        for older in results[:-1]:
            with pytest.raises(TaskRevokedError):
                older.get(timeout=PATIENCE)
        assert [entry["note"] for entry in shared.journal.entries("start", key=key)] == ["", "note 2"]


class TestCanvas:
    def test_everything_in_a_canvas_runs(self, shared: Shared, key: str) -> None:
        si = shared.tasks.running_too.si
        done = chain(si(key, "a", False), si(key, "b", False)).apply_async()
        assert done.get(timeout=PATIENCE) == "b"
        assert group(si(key, "c", False), si(key, "d", False)).apply_async().get(timeout=PATIENCE) == ["c", "d"]
        body = chord([si(key, "e", False), si(key, "f", False)], si(key, "g", False)).apply_async()
        assert body.get(timeout=PATIENCE) == "g"

    def test_its_members_count_while_they_run(self, shared: Shared, key: str) -> None:
        si = shared.tasks.running_too.si
        done = chain(si(key, "a"), si(key, "b", False)).apply_async()
        shared.journal.wait_for("start", key=key)
        assert shared.tasks.running_too.delay(key).id == done.parent.id
        shared.open_gate(key)
        assert done.get(timeout=PATIENCE) == "b"

    def test_a_duplicate_of_a_link_leaves_the_chain_alone(self, shared: Shared, key: str) -> None:
        si = shared.tasks.running_too.si
        done = chain(si(key, "a"), si(key, "b", False)).apply_async()
        shared.journal.wait_for("start", key=key)
        for _ in range(3):
            assert shared.tasks.running_too.delay(key).duplicate
        shared.open_gate(key)
        assert done.get(timeout=PATIENCE) == "b"

    @pytest.mark.parametrize("name", ["replaced", "rerun"])
    def test_a_newer_call_takes_the_place_of_none_of_its_members(self, shared: Shared, key: str, name: str) -> None:
        task = getattr(shared.tasks, name)
        with shared.held_by_a_task(key):
            done = chain(task.si(key, "a", False), task.si(key, "b", False)).apply_async()
            shared.journal.wait_for("contended", 2, key=key, id=done.parent.id)
            newer = task.apply_async((key, "c", False))
        assert done.get(timeout=PATIENCE) == "b"
        assert newer.get(timeout=PATIENCE) == "c"

    def test_a_link_of_which_no_key_can_be_made_does_not_cost_its_predecessor_its_result(
        self, shared: Shared, key: str
    ) -> None:
        done = chain(shared.tasks.queued.si(key, key, False), shared.tasks.picky.s("b", False)).apply_async()
        assert done.parent.get(timeout=PATIENCE) == key
        assert done.get(timeout=PATIENCE) == "b"

    def test_what_is_linked_to_a_second_call_is_called(self, shared: Shared, key: str) -> None:
        first = started(shared, key, shared.tasks.running_too)
        linked = shared.tasks.queued.si(f"{key}-linked", "linked", False)
        result = linked.freeze()
        shared.tasks.running_too.apply_async((key, "", False), link=linked)
        shared.open_gate(key)
        assert first.get(timeout=PATIENCE) == ""
        assert result.get(timeout=PATIENCE) == "linked"
