"""Exceptions raised by a signal between a grant and its owner: what nobody came to own is given back at once.

SIGTERM's handler in a pool child, a soft time limit, a killed greenlet and Ctrl-C all raise between any two lines.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from celery_distlock import Lock, LockedTask
from celery_distlock.held import HeldLock, SelfKept, current_lock
from celery_distlock.keepalive import Keeper
from celery_distlock.stores.of_app import forget_store
from tests.support.waiting import eventually


class Interrupted(BaseException):
    pass


#: Where the signal strikes: what is replaced by it, and whether the real thing is done first.
MOMENTS = [
    (SelfKept, "__init__", False),
    (SelfKept, "__init__", True),
    (HeldLock, "__init__", False),
    (Keeper, "keep", False),
    (Keeper, "keep", True),
    (HeldLock, "__init__", True),
]


@pytest.fixture(params=["memory", "redis"])
def app(request: pytest.FixtureRequest) -> Iterator[Celery]:
    memory = request.param == "memory"
    url = f"memory://{uuid.uuid4().hex}" if memory else request.getfixturevalue("redis_url")
    app = Celery("interrupted", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(distlock_url=url)
    yield app
    forget_store(app)
    app.close()


@pytest.fixture
def task(app: Celery) -> Any:
    @app.task(base=LockedTask, lock_key="k", shared=False)
    def subject() -> None:
        raise AssertionError("it was interrupted before its body")

    return subject


def acquire(app: Celery, task: Any) -> None:
    Lock("k", app=app).acquire()


def direct(app: Celery, task: Any) -> None:
    task()


def eager(app: Celery, task: Any) -> None:
    task.apply()


@contextlib.contextmanager
def a_signal(cls: type, name: str, afterwards: bool) -> Iterator[None]:
    real = getattr(cls, name)

    def strike(*args: Any, **options: Any) -> None:
        if afterwards:
            real(*args, **options)
        raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, name, strike)
        with contextlib.suppress(Interrupted):
            yield
            raise AssertionError("it was not interrupted")


@pytest.mark.parametrize("way", [acquire, direct, eager])
@pytest.mark.parametrize(("cls", "name", "afterwards"), MOMENTS)
def test_what_nobody_came_to_own_is_given_back(
    app: Celery, task: Any, way: Callable[[Celery, Any], None], cls: type, name: str, afterwards: bool
) -> None:
    with a_signal(cls, name, afterwards):
        way(app, task)
    assert current_lock() is None
    lock = Lock("k", app=app)
    eventually(lambda: not lock.locked(), 5, "the release of what was granted")


@pytest.mark.parametrize(("cls", "name"), [(Lock, "_claim"), (HeldLock, "__init__")])
def test_a_lock_whose_acquisition_was_interrupted_can_be_acquired_again(app: Celery, cls: type, name: str) -> None:
    lock = Lock("k", app=app)
    with a_signal(cls, name, True):
        lock.acquire()
    assert not lock.held
    assert lock.acquire(timeout=5.0)
    lock.release()
