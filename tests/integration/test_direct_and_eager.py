"""Tasks that are called as functions, or run eagerly: no worker, no message, but the same lock."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import MagicMock

import pytest
from celery import Celery, chain

from celery_distlock import (
    Lock,
    LockConfigError,
    LockContended,
    LockedTask,
    LockKeyError,
    LockTimeout,
    StoreUnavailable,
    current_lock,
    locked,
)
from celery_distlock.held import frames
from celery_distlock.signals import lock_acquired, lock_contended, lock_released, lock_skipped
from celery_distlock.stores import LockStore, open_store
from celery_distlock.stores.of_app import forget_store, use_store
from celery_distlock.task.run import TICKET_HEADER
from tests.support.ports import free_port

#: Seconds that a thread may take.
PATIENCE = 20.0


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    """A store of each kind that can serve one process."""
    return f"memory://{uuid.uuid4().hex}" if request.param == "memory" else request.getfixturevalue("redis_url")


def make_app(url: str, **conf: Any) -> Celery:
    app = Celery("eager", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(distlock_url=url, **conf)
    return app


@pytest.fixture
def app(url: str) -> Iterator[Celery]:
    app = make_app(url)
    yield app
    forget_store(app)
    app.close()


@pytest.fixture
def task(app: Celery) -> Callable[..., Any]:
    """Define a task on the key ``{key}`` that returns what its body is told of its lock."""

    def define(body: Callable[[Any, str], Any] | None = None, **options: Any) -> Any:
        def run(self: Any, key: str) -> Any:
            return body(self, key) if body else (self.lock.key, self.lock.held)

        name = f"tasks.{uuid.uuid4().hex}"
        options = {"lock_key": "{key}", **options}
        return app.task(run, base=LockedTask, bind=True, name=name, shared=False, **options)

    return define


@pytest.fixture
def refusals() -> Iterator[queue.Queue[dict[str, Any]]]:
    """Every contention, as it happens."""
    seen: queue.Queue[dict[str, Any]] = queue.Queue()

    def receive(**told: Any) -> None:
        seen.put(told)

    lock_contended.connect(receive, weak=False)
    yield seen
    lock_contended.disconnect(receive)


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.fixture
def somebody(app: Celery, background: ThreadPoolExecutor) -> Callable[[str], Any]:
    """Have another thread hold a key through a block: what this thread held, a task in it would re-enter."""

    @contextlib.contextmanager
    def holds(key: str) -> Iterator[Lock]:
        lock = Lock(key, app=app, identifier="somebody")
        assert background.submit(lock.acquire).result(PATIENCE)
        try:
            yield lock
        finally:
            lock.release()

    return holds


def call(task: Any, key: str, **lock: Any) -> Any:
    assert not lock, "a direct call has no options of its own"
    return task(key)


def eager(task: Any, key: str, **lock: Any) -> Any:
    return task.apply((key,), **({"lock": lock} if lock else {})).get(disable_sync_subtasks=False)


def always_eager(task: Any, key: str, **lock: Any) -> Any:
    task.app.conf.task_always_eager = True
    return task.apply_async((key,), **({"lock": lock} if lock else {})).get(disable_sync_subtasks=False)


WAYS = pytest.mark.parametrize("way", [call, eager, always_eager])


@WAYS
class TestHoweverItIsCalled:
    def test_the_body_runs_under_the_lock_and_leaves_nothing(self, app: Celery, task: Any, way: Any) -> None:
        lock = Lock("k", app=app)
        subject = task(lambda self, key: (self.lock.key, self.lock.held, current_lock() is self.lock, lock.locked()))
        assert way(subject, "k") == ("k", True, True, True)
        assert not lock.locked()
        assert current_lock() is None
        assert subject.lock is None

    def test_a_body_that_raises_releases(self, app: Celery, task: Any, way: Any) -> None:
        with pytest.raises(ZeroDivisionError):
            way(task(lambda self, key: 1 / 0), "k")
        assert not Lock("k", app=app).locked()
        assert current_lock() is None

    def test_fail_raises_and_names_the_holder(self, task: Any, way: Any, somebody: Any) -> None:
        with somebody("k"), pytest.raises(LockContended, match="'somebody'") as caught:
            way(task(lock_on_contention="fail"), "k")
        assert caught.value.key == "k"
        assert current_lock() is None

    def test_skip_returns_its_result_and_leaves_the_holder_alone(self, task: Any, way: Any, somebody: Any) -> None:
        skipped: list[Any] = []

        def receive(**told: Any) -> None:
            skipped.append(told["holder"]["identifier"])

        lock_skipped.connect(receive)
        with somebody("k") as lock:
            assert way(task(lock_on_contention="skip", lock_skip_result="no"), "k") == "no"
            (holder,) = lock.holders()
            assert holder["owner"] == lock.owner
        assert skipped == ["somebody"]

    def test_retry_waits_in_place_until_the_key_is_free(
        self, app: Celery, task: Any, way: Any, refusals: Any, background: ThreadPoolExecutor
    ) -> None:
        lock = Lock("k", app=app)
        lock.acquire()
        result = background.submit(way, task(), "k")
        assert refusals.get(timeout=PATIENCE)["policy"] == "retry"
        assert not result.done()
        lock.release()
        assert result.result(PATIENCE) == ("k", True)
        assert not lock.locked()

    def test_lock_timeout_bounds_that_wait(self, task: Any, way: Any, somebody: Any) -> None:
        with somebody("k"), pytest.raises(LockTimeout, match="'somebody'") as caught:
            way(task(lock_timeout=0.1), "k")
        assert 0.1 <= caught.value.waited < 1.0

    def test_a_callable_decides(self, task: Any, way: Any, somebody: Any) -> None:
        seen = []

        def choose(task: Any, contention: Any) -> str:
            seen.append((task.name, contention.key, contention.attempt, contention.waited))
            return "skip"

        subject = task(lock_on_contention=choose)
        with somebody("k"):
            assert way(subject, "k") is None
        assert seen == [(subject.name, "k", 0, 0.0)]

    def test_nonsense_from_a_callable_is_an_error(self, task: Any, way: Any, somebody: Any) -> None:
        with somebody("k"), pytest.raises(LockConfigError, match="returned None; allowed: retry"):
            way(task(lock_on_contention=lambda task, contention: None), "k")

    def test_a_key_of_none_takes_no_lock(self, app: Celery, task: Any, way: Any) -> None:
        assert way(task(lambda self, key: self.lock, lock_key=lambda key: None), "k") is None

    def test_arguments_that_make_no_key_are_an_error_and_nothing_runs(self, task: Any, way: Any) -> None:
        ran: list[str] = []
        with pytest.raises(LockKeyError, match="order"):
            way(task(lambda self, key: ran.append(key), lock_key="order:{key[id]}"), "k")
        assert ran == []

    def test_signals_are_sent_in_order(self, app: Celery, task: Any, way: Any) -> None:
        told: list[tuple[str, str]] = []

        def receive(signal: Any, key: str, **_: Any) -> None:
            told.append((signal.name, key))

        for signal in (lock_acquired, lock_released):
            signal.connect(receive)
        way(task(lambda self, key: told.append(("body", key))), "k")
        assert told == [("lock_acquired", "k"), ("body", "k"), ("lock_released", "k")]


@WAYS
@pytest.mark.parametrize("other", [call, eager])
class TestOneStackOneLock:
    """Re-entrancy follows the execution stack: who runs inside a holder of the key runs under its lock."""

    def test_a_nested_task_runs_under_the_outer_lock(self, app: Celery, task: Any, way: Any, other: Any) -> None:
        inner = task(lambda self, key: self.lock.owner, lock_on_contention="fail")
        outer = task(
            lambda self, key: (other(inner, key), self.lock.owner, self.lock.held, Lock(key, app=app).locked())
        )
        within, owner, held, still_locked = way(outer, "k")
        assert within == owner
        assert held
        assert still_locked
        assert not Lock("k", app=app).locked()

    def test_a_nested_task_of_another_key_has_another_lock(self, app: Celery, task: Any, way: Any, other: Any) -> None:
        inner = task(lambda self, key: (self.lock.owner, current_lock() is self.lock))
        outer = task(
            lambda self, key: (
                other(inner, "other"), self.lock.owner, Lock("other", app=app).locked(), current_lock() is self.lock
            )
        )  # fmt: skip
        (within, innermost), owner, other_locked, outermost = way(outer, "k")
        assert within != owner
        assert innermost
        assert outermost
        assert not other_locked

    def test_a_nested_task_that_fails_does_not_release_the_outer_lock(
        self, app: Celery, task: Any, way: Any, other: Any
    ) -> None:
        inner = task(lambda self, key: 1 / 0)

        def body(self: Any, key: str) -> bool:
            with pytest.raises(ZeroDivisionError):
                other(inner, key)
            self.lock.check()
            return Lock(key, app=app).locked()

        assert way(task(body), "k") is True
        assert not Lock("k", app=app).locked()

    def test_three_levels_with_a_key_that_comes_back(self, app: Celery, task: Any, way: Any, other: Any) -> None:
        innermost = task(lambda self, key: self.lock.owner, lock_on_contention="fail")
        middle = task(lambda self, key: (other(innermost, "k"), self.lock.owner))
        outer = task(lambda self, key: (*other(middle, "m"), self.lock.owner, self.lock.held))
        third, second, first, held = way(outer, "k")
        assert third == first != second
        assert held

    def test_a_locked_function_is_part_of_it(self, app: Celery, task: Any, way: Any, other: Any) -> None:
        @locked("{key}", app=app, max_retries=0)
        def function(key: str) -> Any:
            lock = current_lock()
            return lock and lock.owner

        outer = task(
            lambda self, key: (function(key), other(task(lambda self, key: function(key)), key), self.lock.owner)
        )
        assert len(set(way(outer, "k"))) == 1


class TestOtherStacks:
    def test_another_thread_is_somebody_else(self, app: Celery, task: Any, background: ThreadPoolExecutor) -> None:
        inner = task(lock_on_contention="fail")
        outer = task(lambda self, key: background.submit(inner, key).exception(PATIENCE))
        assert isinstance(outer("k"), LockContended)

    def test_threads_call_a_task_in_turn(self, app: Celery, task: Any, background: ThreadPoolExecutor) -> None:
        inside, overlaps = [0], []

        def body(self: Any, key: str) -> None:
            inside[0] += 1
            threading.Event().wait(0.005)
            overlaps.append(inside[0] > 1)
            inside[0] -= 1

        subject = task(body)
        # Celery makes a task when it is first used, and shows it to other threads before it is done.
        assert subject.name
        for result in [background.submit(subject, "k") for _ in range(12)]:
            result.result(PATIENCE)
        assert overlaps == [False] * 12

    def test_a_lock_around_a_call_is_on_the_same_stack(self, app: Celery, task: Any) -> None:
        # Lock itself is not re-entrant, but a task inside of one is.
        with Lock("k", app=app) as lock:
            assert task(lambda self, key: self.lock.owner, lock_on_contention="fail")("k") == lock.owner
            assert lock.held


class TestEagerCanvas:
    def test_links_and_errbacks_of_the_same_key_run_under_the_lock(self, app: Celery, task: Any) -> None:
        app.conf.task_always_eager = True
        seen: list[Any] = []
        linked = task(lambda self, key: seen.append(self.lock.owner), lock_on_contention="fail")
        subject = task(lambda self, key: seen.append(self.lock.owner))
        subject.apply(("k",), link=linked.si("k"))
        assert len(seen) == 2
        assert seen[0] == seen[1]
        failing = task(lambda self, key: seen.append(self.lock.owner) or 1 / 0)
        failing.apply(("k",), link_error=linked.si("k"))
        assert len(seen) == 4
        assert seen[2] == seen[3] != seen[0]
        assert not Lock("k", app=app).locked()

    def test_an_errback_of_the_new_style_runs_under_the_lock(self, app: Celery, task: Any) -> None:
        app.conf.task_always_eager = True
        seen: list[Any] = []

        @app.task(base=LockedTask, lock_key="k", lock_on_contention="fail", shared=False)
        def errback(request: Any, error: Exception, traceback: Any) -> None:
            lock = current_lock()
            seen.append(lock and lock.owner)

        failing = task(lambda self, key: seen.append(self.lock.owner) or 1 / 0)
        failing.apply(("k",), link_error=errback.s())
        assert len(seen) == 2
        assert seen[0] == seen[1]

    def test_links_of_a_chain_have_the_lock_in_turn(self, app: Celery, task: Any) -> None:
        app.conf.task_always_eager = True
        seen: list[Any] = []
        subject = task(lambda self, key: seen.append(self.lock.owner), lock_on_contention="fail")
        chain(subject.si("k"), subject.si("k"), subject.si("k")).apply_async()
        assert len(set(seen)) == 3

    def test_the_tasks_own_eager_retry_runs_under_its_lock(self, app: Celery, task: Any) -> None:
        seen: list[Any] = []

        def body(self: Any, key: str) -> int:
            seen.append(self.lock.owner)
            if self.request.retries < 2:
                raise self.retry(countdown=0)
            return self.request.retries

        subject = task(body, lock_on_contention="fail")
        assert subject.apply(("k",)).get() == 2
        assert len(seen) == 3
        assert not Lock("k", app=app).locked()
        assert frames() == []

    def test_options_of_one_call_count(self, task: Any, somebody: Any) -> None:
        subject = task(lambda self, key: self.lock.ttl)
        assert eager(subject, "k", ttl=7) == always_eager(subject, "k", ttl=7) == 7.0
        assert eager(subject, "k") == 30.0
        with somebody("k"):
            assert eager(subject, "k", on_contention="skip", skip_result=3) == 3


@WAYS
class TestTheStoreCannotBeAsked:
    @pytest.fixture
    def url(self) -> str:
        """An address where nobody listens."""
        return f"redis://127.0.0.1:{free_port()}/0"

    @pytest.mark.parametrize("policy", ["retry", "fail"])
    def test_it_is_an_error_and_nothing_runs(self, task: Any, way: Any, policy: str, refusals: Any) -> None:
        ran: list[str] = []
        with pytest.raises(StoreUnavailable):
            way(task(lambda self, key: ran.append(key), lock_on_store_error=policy), "k")
        assert ran == []
        assert refusals.empty()

    def test_it_runs_unlocked_when_asked_to_and_says_so(
        self, task: Any, way: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING, "celery_distlock"):
            subject = task(lambda self, key: [self.lock, current_lock()], lock_on_store_error="run")
            assert way(subject, "k") == [None, None]
        assert "runs without its lock 'k'" in caplog.text


def test_a_ticket_means_nothing_to_a_store_without_a_line(app: Celery, url: str, task: Callable[..., Any]) -> None:
    """One that was published by a worker whose locks lived elsewhere, perhaps."""
    store = open_store(url)
    # What it can do beside being a store, nobody may see.
    plain = MagicMock(spec=LockStore, wraps=store, name="plain", prefix=store.prefix)
    use_store(app, plain)
    result = task(acks_late=True, lock_on_contention="wait").apply(("a",), headers={TICKET_HEADER: 7})
    assert result.get() == ("a", True)


class TestOneKeyEverywhere:
    """Eager, direct, and outside of tasks: what is the same call has the same key."""

    def test_a_held_lock_of_the_templates_key_refuses_them_all(self, app: Celery, somebody: Any) -> None:
        @app.task(base=LockedTask, lock_key="order:{order[id]}:{shop}", lock_on_contention="fail", shared=False)
        def charge(order: dict[str, Any], shop: str = "main") -> str:
            return "charged"

        @locked("order:{order[id]}:{shop}", app=app, max_retries=0)
        def function(order: dict[str, Any], shop: str = "main") -> str:
            return "charged"

        calls = (
            lambda: charge({"id": 7}),
            lambda: charge({"id": 7}, "main"),
            lambda: charge(shop="main", order={"id": 7, "more": 1}),
            lambda: charge.apply(({"id": 7},)).get(),
            lambda: charge.apply(kwargs={"order": {"id": 7}}).get(),
            lambda: function({"id": 7}),
        )
        with somebody("order:7:main"):
            for each in calls:
                with pytest.raises(LockContended):
                    each()
            assert charge({"id": 8}) == "charged"
        assert [each() for each in calls] == ["charged"] * len(calls)

    def test_arguments_are_what_they_are_after_the_wire(self, app: Celery) -> None:
        @app.task(base=LockedTask, bind=True, shared=False)
        def tell(self: Any, items: Any, by: Any = None) -> str:
            return str(self.lock.key)

        keys = {
            tell((1, 2), {1: "a"}),
            tell([1, 2], {"1": "a"}),
            tell.apply(((1, 2),), {"by": {1: "a"}}).get(),
            tell.apply(([1, 2], {"1": "a"})).get(),
        }
        assert len(keys) == 1
        assert tell([1, 2]) not in keys


class TestDefinition:
    def test_an_unknown_option_is_an_error_where_the_task_is_defined(self, task: Any) -> None:
        with pytest.raises(LockConfigError, match="lock_ttll"):
            _ = task(lock_ttll=3).name

    def test_a_wrong_value_is_an_error_where_the_task_is_defined(self, task: Any) -> None:
        with pytest.raises(LockConfigError, match=r"lock_ttl=-1"):
            _ = task(lock_ttl=-1).name

    def test_a_parameter_that_does_not_exist_is_an_error_where_the_task_is_defined(self, task: Any) -> None:
        for spec in ("order:{order}", ("order",)):
            with pytest.raises(LockConfigError, match="order"):
                _ = task(lock_key=spec).name

    def test_waiting_without_late_acknowledgement_is_an_error(self, task: Any) -> None:
        with pytest.raises(LockConfigError, match="acks_late"):
            _ = task(lock_on_contention="wait").name
