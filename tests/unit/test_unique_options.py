"""The options of unique tasks: where they are written, and what is refused."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest
from celery import Celery

from celery_distlock import LockConfigError, LockedTask, lock_tasks
from celery_distlock.options import LockOptions, call_options, conf_options, merge, task_options
from celery_distlock.stores.base import LockStore
from celery_distlock.stores.of_app import forget_store, use_store

WHERE = "task proj.tasks.sync"


@pytest.fixture
def app() -> Any:
    with Celery("proj", set_as_current=False, broker="memory://") as app:
        app.conf.distlock_url = "memory://unique-options"
        yield app
        forget_store(app)


def sync(order: int, note: str = "") -> None:
    """Do nothing."""


def define(app: Celery, name: str = "sync", **options: Any) -> Any:
    task = app.task(base=LockedTask, shared=False, name=name, **options)(sync)
    return task._get_current_object()


def refusal(app: Celery, **options: Any) -> str:
    with pytest.raises(LockConfigError) as caught:
        define(app, **options)
    return str(caught.value)


def test_they_are_written_without_lock_in_a_task_and_behind_distlock_in_an_app() -> None:
    assert task_options({"unique_for": 5, "on_duplicate": "raise"}, where=WHERE) == {
        "unique_for": 5.0,
        "on_duplicate": "raise",
    }
    assert conf_options({"distlock_unique_while": "queued", "distlock_on_duplicate": "replace"}) == {
        "unique_while": "queued",
        "on_duplicate": "replace",
    }
    assert call_options({"unique_while": None, "unique_ttl": 9}, where=WHERE) == {"unique_while": None, "unique_ttl": 9}


def test_a_task_is_unique_while_or_for_a_time() -> None:
    assert not LockOptions().unique
    assert merge({"unique_while": "queued"}).unique
    assert merge({"unique_for": 1.0}).unique


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("unique_while", "running", "None or 'queued' or 'queued_or_running'"),
        ("unique_for", 0, "a finite number of seconds above 0"),
        ("unique_ttl", None, "a finite number of seconds above 0"),
        ("on_duplicate", "drop", "'return' or 'raise' or 'replace' or 'rerun'"),
        ("unique_key", 7, "a template"),
    ],
)
def test_a_wrong_value_is_refused_where_the_task_is_defined(app: Celery, option: str, value: Any, allowed: str) -> None:
    message = refusal(app, **{option: value})
    assert f"{option}={value!r} is refused" in message
    assert allowed in message


def test_a_misspelt_option_is_refused(app: Celery) -> None:
    assert "there is no option unique_wile; did you mean 'unique_while'?" in refusal(app, unique_wile="queued")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"on_duplicate": "replace"}, "it needs unique_while="),
        ({"on_duplicate": "rerun", "unique_for": 5}, "contradict each other: within that time nothing else"),
        ({"on_duplicate": "replace", "unique_while": "queued", "unique_for": 5}, "contradict each other"),
        ({"on_duplicate": "rerun", "unique_while": "queued", "lock_on_contention": "skip"}, "has to wait for its lock"),
        ({"on_duplicate": "rerun", "unique_while": "queued", "lock_limit": 2}, "would not wait for the one that runs"),
        ({"unique_key": "k"}, "would not be used; it needs unique_while or unique_for"),
        ({"unique_key": ("nobody",), "unique_for": 5}, "names 'nobody', which is no parameter"),
    ],
)
def test_what_makes_no_sense_together_is_refused(app: Celery, options: dict[str, Any], reason: str) -> None:
    assert reason in refusal(app, **options)


def test_an_apps_default_may_be_what_was_missing(app: Celery) -> None:
    app.conf.distlock_unique_while = "queued"
    assert define(app, unique_key="sync:{order}", on_duplicate="replace")._lock_unique


def test_an_apps_default_is_for_those_that_are_unique(app: Celery) -> None:
    app.conf.distlock_on_duplicate = "replace"
    app.conf.distlock_unique_key = "sync:{order}"
    assert not define(app)._lock_unique
    assert define(app, "another", unique_while="queued")._lock_unique
    assert "contradict each other" in refusal(app, name="third", unique_for=5.0)


def test_a_call_is_checked_as_a_task_is(app: Celery) -> None:
    task = define(app)
    with pytest.raises(LockConfigError, match="it needs unique_while="):
        task.apply_async((1,), lock={"on_duplicate": "replace"})


def test_lock_tasks_takes_them(app: Celery) -> None:
    plain = app.task(name="vendor.sync", shared=False)(sync)
    lock_tasks(app, {"vendor.*": {"unique_while": "queued", "on_duplicate": "raise"}})
    assert plain._lock_unique
    with pytest.raises(LockConfigError, match="'uniqe_while' is no lock option"):
        lock_tasks(app, {"vendor.*": {"uniqe_while": "queued"}})


def test_the_key_is_the_locks_unless_there_is_one(app: Celery) -> None:
    own = define(app, lock_key="order:{order}", unique_key="sync:{order}", unique_while="queued")
    assert own._lock_unique_key_of(own._lock_options, (7,), {}) == "sync:7"
    shared = define(app, "other", lock_key="order:{order}", unique_while="queued")
    assert shared._lock_unique_key_of(shared._lock_options, (7,), {}) == "order:7"


def test_a_store_that_keeps_no_tokens_is_named_at_the_first_publish(app: Celery) -> None:
    store = MagicMock(spec=LockStore)
    store.name = "plain://"
    use_store(app, store)
    with pytest.raises(LockConfigError, match="need a store that keeps tokens, which plain:// does not"):
        define(app, unique_while="queued").delay(1)
