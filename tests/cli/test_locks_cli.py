"""``celery -A proj locks``: what people see of the locks, and what they can do to them."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from celery import Celery
from click.testing import CliRunner, Result

from celery_distlock import Lock, LockLost, cli
from celery_distlock.lease import Claim, Lease, new_owner
from celery_distlock.stores import open_store
from celery_distlock.stores.base import LockStore
from celery_distlock.stores.of_app import forget_store
from celery_distlock.testing import hold
from tests.cli.command import celery_command, project
from tests.support.journal import Journal
from tests.support.redis_server import RedisServer
from tests.support.waiting import eventually
from tests.support.workers import LoadApp, Settings, StartWorker

SHOP = "tests.cli.shop"

Locks = Callable[..., Result]


@pytest.fixture
def store(redis_url: str) -> Iterator[LockStore]:
    with closing(open_store(redis_url)) as store:
        yield store


def run_on(url: str | None, *arguments: str, answer: str | None = None, **conf: Any) -> Result:
    """Run ``locks`` in this process, for an app with this store."""
    app = Celery("proj", broker="memory://", set_as_current=False)
    app.conf.update({"distlock_url": url} if url else {}, **conf)
    try:
        result = CliRunner().invoke(cli.locks, list(arguments), obj=SimpleNamespace(app=app), input=answer)
    finally:
        forget_store(app)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def run(redis_url: str) -> Locks:
    """Run ``locks`` in this process, on the store of the test."""

    def run(*arguments: str, answer: str | None = None) -> Result:
        return run_on(redis_url, *arguments, answer=answer)

    return run


def take(store: LockStore, key: str, *, ttl: float = 30.0, limit: int = 1, **record: Any) -> Lease:
    lease = store.acquire(Claim(key, new_owner(), ttl, limit, record))
    assert isinstance(lease, Lease)
    return lease


def expired(store: LockStore, key: str) -> Lease:
    lease = take(store, key, ttl=0.05)
    eventually(lambda: store.holders(key)[0]["remaining"] < 0, what="the lease expires")
    return lease


# -- list ------------------------------------------------------------------------------------------------------------


def test_list_shows_who_holds_what_since_when_and_for_how_long(run: Locks, store: LockStore) -> None:
    with hold(store, "order:7", task="shop.charge", id="t-1", host="web1", pid=41, since=time.time() - 90) as lease:
        result = run("list")
    assert result.exit_code == 0
    heads, row = (re.split(r"\s{2,}", line) for line in result.output.splitlines())
    assert heads == ["KEY", "HOLDER", "HOST/PID", "AGE", "REMAINING", "FENCE"]
    assert row[:3] == ["order:7", "shop.charge[t-1]", "web1/41"]
    assert re.fullmatch(r"1 min 3\d s", row[3])
    assert re.fullmatch(r"(60.0|5\d\.\d) s", row[4])
    assert row[5] == str(lease.fence)


def test_list_names_a_holder_that_is_no_task_by_its_identifier(run: Locks, store: LockStore) -> None:
    with hold(store, "report", identifier="nightly"):
        assert "'nightly'" in run("list").output


def test_list_says_that_a_holder_has_expired(run: Locks, store: LockStore) -> None:
    expired(store, "order:7")
    assert re.search(r"^order:7 .* expired ", run("list").output, re.MULTILINE)


def test_list_is_sorted_by_key(run: Locks, store: LockStore) -> None:
    for key in ("c", "a", "b"):
        take(store, key)
    assert [line.split()[0] for line in run("list").output.splitlines()] == ["KEY", "a", "b", "c"]


def test_list_can_be_limited_to_a_prefix(run: Locks, store: LockStore) -> None:
    take(store, "order:7")
    take(store, "report")
    held = json.loads(run("list", "--json", "--prefix", "order:").output)
    assert [holder["key"] for holder in held] == ["order:7"]


def test_list_as_json_is_what_the_store_knows(run: Locks, store: LockStore) -> None:
    with hold(store, "order:7", task="shop.charge", id="t-1"):
        (printed,) = json.loads(run("list", "--json").output)
        (known,) = store.holders("order:7")
    assert printed.pop("remaining") >= known.pop("remaining")
    assert printed == known


def test_list_of_an_empty_store_is_no_error(run: Locks) -> None:
    assert run("list").exit_code == 0
    assert json.loads(run("list", "--json").output) == []


def test_keys_cannot_command_the_terminal(run: Locks, store: LockStore) -> None:
    with hold(store, "order:\x1b[2J\n7", task="evil\x1b[31m", id="t"):
        for arguments in (["list"], ["show", "order:\x1b[2J\n7"], ["release", "order:\x1b[2J\n7", "--yes"]):
            output = run(*arguments).output
            assert "\x1b" not in output
            assert "order:\\x1b[2J\\n7" in output


def test_no_command_asks_redis_for_all_its_keys_at_once(private_redis: Callable[..., RedisServer]) -> None:
    server = private_redis()
    with closing(open_store(server.url)) as store:
        take(store, "order:7")
    assert run_on(server.url, "list").exit_code == 0
    assert run_on(server.url, "show", "order:7").exit_code == 0
    assert run_on(server.url, "release", "order:7", "--yes").exit_code == 0
    with server.client() as client:
        used = client.info("commandstats")
    assert "cmdstat_scan" in used
    assert "cmdstat_keys" not in used


# -- show ------------------------------------------------------------------------------------------------------------


def test_show_prints_every_field(run: Locks, store: LockStore) -> None:
    record: dict[str, Any] = {
        "task": "shop.charge",
        "id": "t-1",
        "retries": 2,
        "attempt": 3,
        "depth": 1,
        "host": "web1",
        "pid": 41,
    }
    with hold(store, "order:7", **record) as lease:
        result = run("show", "order:7")
    assert result.exit_code == 0
    shown = dict(line.split(maxsplit=1) for line in result.output.splitlines())
    assert shown.keys() == {*record, "key", "owner", "fence", "since", "remaining"}
    expected = {**record, "key": "order:7", "owner": lease.owner, "fence": lease.fence}
    assert {name: shown[name] for name in expected} == {name: str(value) for name, value in expected.items()}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(\d+\.\d s ago\)", shown["since"])


def test_show_prints_every_holder(run: Locks, store: LockStore) -> None:
    owners = [take(store, "seats", limit=2).owner for _ in range(2)]
    output = run("show", "seats").output
    assert re.findall(r"^owner +(\w+)$", output, re.MULTILINE) == owners


def test_show_of_a_free_key_exits_with_1(run: Locks) -> None:
    result = run("show", "order:7")
    assert (result.exit_code, result.output) == (1, "order:7 is free\n")
    result = run("show", "order:7", "--json")
    assert (result.exit_code, json.loads(result.output)) == (1, [])


def test_show_of_an_expired_holder_prints_it_and_exits_with_1(run: Locks, store: LockStore) -> None:
    lease = expired(store, "order:7")
    result = run("show", "order:7")
    assert result.exit_code == 1
    assert lease.owner in result.output
    assert re.search(r"^remaining +expired$", result.output, re.MULTILINE)


# -- release -----------------------------------------------------------------------------------------------------------


def test_release_names_the_holder_and_says_what_will_happen_to_its_task(run: Locks, store: LockStore) -> None:
    with hold(store, "order:7", task="shop.charge", id="t-1", host="web1", pid=41):
        output = run("release", "order:7", answer="n\n").output
    assert "task shop.charge[t-1] on web1 (pid 41)" in output
    assert "LOST" in output
    assert "aborted" in output


def test_release_changes_nothing_unless_it_is_confirmed(run: Locks, store: LockStore) -> None:
    lease = take(store, "order:7")
    for answer in ("n\n", "\n", ""):
        assert run("release", "order:7", answer=answer).exit_code == 1
    assert [holder["owner"] for holder in store.holders("order:7")] == [lease.owner]


@pytest.mark.parametrize(("options", "answer"), [([], "y\n"), (["--yes"], None)])
def test_release_frees_the_key_at_once(run: Locks, store: LockStore, options: list[str], answer: str | None) -> None:
    take(store, "order:7")
    result = run("release", "order:7", *options, answer=answer)
    assert result.exit_code == 0
    assert store.holders("order:7") == []
    take(store, "order:7")


def test_the_holder_learns_of_a_release_by_force_at_its_next_renewal(run: Locks, redis_url: str) -> None:
    # Renewed after a second, long before it would have to doubt by itself.
    lock = Lock("report", url=redis_url, ttl=3.0)
    lock.acquire()
    assert run("release", "report", "--yes").exit_code == 0
    eventually(lambda: not lock.held, timeout=3.0, what="the renewal is answered LOST")
    with pytest.raises(LockLost, match="given away"):
        lock.check()
    with pytest.raises(LockLost):
        lock.release()


def test_release_of_a_free_key_exits_with_1(run: Locks) -> None:
    result = run("release", "order:7", "--yes")
    assert (result.exit_code, result.output) == (1, "order:7 is free\n")


def test_of_several_holders_one_must_be_named(run: Locks, store: LockStore) -> None:
    one, other = (take(store, "seats", limit=2) for _ in range(2))
    result = run("release", "seats", "--yes")
    assert result.exit_code == 2
    assert f"--owner {one.owner}" in result.output
    assert f"--owner {other.owner}" in result.output
    assert run("release", "seats", "--yes", "--owner", other.owner).exit_code == 0
    assert [holder["owner"] for holder in store.holders("seats")] == [one.owner]


def test_release_of_an_owner_who_does_not_hold_the_key_changes_nothing(run: Locks, store: LockStore) -> None:
    lease = take(store, "order:7")
    assert run("release", "order:7", "--yes", "--owner", "0" * 32).exit_code == 1
    assert [holder["owner"] for holder in store.holders("order:7")] == [lease.owner]


def test_a_holder_that_came_while_the_question_was_open_is_left_alone(
    run: Locks, store: LockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = take(store, "order:7")
    next_one = []

    def change_hands(*_: Any, **__: Any) -> bool:
        store.release([first])
        next_one.append(take(store, "order:7").owner)
        return True

    monkeypatch.setattr(click, "confirm", change_hands)
    result = run("release", "order:7")
    assert result.exit_code == 1
    assert "had ended" in result.output
    assert [holder["owner"] for holder in store.holders("order:7")] == next_one


# -- what goes wrong ---------------------------------------------------------------------------------------------------

COMMANDS = pytest.mark.parametrize(
    "arguments", [["list"], ["list", "--json"], ["show", "k"], ["release", "k", "--yes"]], ids=" ".join
)


@COMMANDS
def test_a_store_that_cannot_be_asked_is_named_without_its_password(arguments: list[str]) -> None:
    result = run_on("redis://:sesame@127.0.0.1:1/0", *arguments)
    assert result.exit_code == 2
    assert result.output.startswith("Error: lock store redis://127.0.0.1:1/0 is unavailable: ")
    assert result.output.count("\n") == 1
    assert "sesame" not in result.output


@COMMANDS
def test_an_app_without_a_store_is_told_which_setting_it_lacks(arguments: list[str]) -> None:
    result = run_on(None, *arguments)
    assert result.exit_code == 2
    assert "distlock_url is not set" in result.output


@COMMANDS
def test_locks_in_another_process_memory_are_not_said_to_be_free(arguments: list[str]) -> None:
    result = run_on("memory://", *arguments)
    assert result.exit_code == 2
    assert "memory of each process" in result.output


# -- the real command ------------------------------------------------------------------------------------------------


def test_the_project_declares_the_command() -> None:
    assert project()["entry-points"]["celery.commands"] == {"locks": "celery_distlock.cli:locks"}


def test_celery_lists_shows_and_releases(tmp_path: Path, settings: Settings) -> None:
    def locks(*arguments: str, **options: Any) -> tuple[int, str]:
        done = celery_command(tmp_path, "-A", SHOP, "locks", *arguments, env=settings.env, **options)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout

    with closing(open_store(settings.locks)) as store, hold(store, "order:7", task="shop.charge", id="t-1"):
        code, output = locks("list", "--json")
        assert (code, [holder["id"] for holder in json.loads(output)]) == (0, ["t-1"])
        code, output = locks("show", "order:7")
        assert code == 0
        assert f"pid        {os.getpid()}" in output.splitlines()
        assert locks("release", "order:7", stdin="y\n") == (0, "released order:7\n")
        assert locks("show", "order:7")[0] == 1


def test_a_running_task_whose_lock_is_released_by_force_is_killed_and_fails_with_lock_lost(
    worker: StartWorker, load: LoadApp, journal: Journal, settings: Settings, tmp_path: Path
) -> None:
    worker(SHOP, concurrency=1, may_log=["LockLost"])
    result = load(SHOP).charge.delay(7, 60.0)
    journal.wait_for("start", key="order:7")
    done = celery_command(tmp_path, "-A", SHOP, "locks", "release", "order:7", "--yes", env=settings.env)
    assert done.returncode == 0, done.stderr
    assert f"task {SHOP}.charge[{result.id}]" in done.stderr
    with pytest.raises(LockLost):
        result.get(timeout=20)
    assert journal.entries("end") == []
