"""Fixtures to test locked tasks without a server.

They are not loaded by themselves; write this in the top-level ``conftest.py``, with a fixture that returns your app
(without one, the fixture ``celery_app`` of Celery's own pytest plugin is used)::

    pytest_plugins = ["celery_distlock.testing.plugin"]

    @pytest.fixture
    def distlock_app():
        return my_project.app

Then a test can be the one who is in the way::

    def test_a_second_charge_is_skipped(distlock_memory, held_lock):
        with held_lock("order:7"):
            assert charge.apply(args=(7,)).get() is None
        assert distlock_memory.holders() == []

The locks live in this process: run the tasks eagerly, directly, or in a worker thread, not in other processes.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest

from celery_distlock.lease import Lease
from celery_distlock.stores.memory import MemoryStore
from celery_distlock.stores.of_app import forget_store, use_store
from celery_distlock.testing.held import hold

__all__ = ["distlock_app", "distlock_memory", "held_lock"]


@pytest.fixture
def distlock_app(request: pytest.FixtureRequest) -> Any:
    """Return the app whose tasks are tested; override it in your ``conftest.py``."""
    try:
        return request.getfixturevalue("celery_app")
    except pytest.FixtureLookupError:
        pytest.fail("define a fixture distlock_app that returns your Celery app", pytrace=False)


@pytest.fixture
def distlock_memory(distlock_app: Any) -> Iterator[MemoryStore]:
    """Give the app an empty store of locks in memory for the time of one test, and return the store."""
    store = MemoryStore(str(uuid.uuid4()))
    # Not by way of the configuration: with a namespace, Celery before 5.7 lets the namespaced setting win over it.
    use_store(distlock_app, store)
    yield store
    forget_store(distlock_app)
    store.drop()


@pytest.fixture
def held_lock(distlock_memory: MemoryStore) -> Callable[..., AbstractContextManager[Lease]]:
    """Return a context manager that occupies a key, so that the task under test is contended.

    ``held_lock("order:7")``, or ``held_lock(charge, args=(7,))`` for the key of that call; further keywords as for
    :func:`~celery_distlock.testing.hold`.
    """

    def held_lock(
        key: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AbstractContextManager[Lease]:
        if not isinstance(key, str):
            task, key = key, key._lock_key_of(None, args, kwargs or {})
            if key is None:
                raise ValueError(f"task {task.name} takes no lock for these arguments")
        return hold(distlock_memory, key, **options)

    return held_lock
