"""Whatever a task class overrides, and however it got its base, its body runs under its lock."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, Task
from celery.app.trace import reset_worker_optimizations, setup_worker_optimizations
from celery.worker.request import Request

from celery_distlock import Lock, LockConfigError, LockContended, LockedTask, current_lock, lock_tasks
from celery_distlock.held import frames
from celery_distlock.stores.of_app import forget_store
from celery_distlock.task.rebase import unmatched_patterns
from celery_distlock.worker import SupervisedRequest


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("guard", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.distlock_url = f"memory://{uuid.uuid4().hex}"
    yield app
    forget_store(app)
    app.close()


@pytest.fixture(params=["plain", "as in a worker"])
def _calls(request: pytest.FixtureRequest, app: Celery) -> Iterator[None]:
    """A worker replaces Task.__call__, for classes that call it through super()."""
    if request.param == "plain":
        yield
        return
    setup_worker_optimizations(app)
    yield
    reset_worker_optimizations(app)


class Bare(LockedTask):
    abstract = True


class OwnCall(LockedTask):
    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


class OwnCallWithSuper(LockedTask):
    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


class Child(OwnCall):
    abstract = True


class ChildWithCall(OwnCallWithSuper):
    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


class CallMixin:
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)  # type: ignore[attr-defined]


class MixedIn(CallMixin, LockedTask):
    abstract = True


class MixedInLater(LockedTask, CallMixin):
    abstract = True


class MixedIntoAChild(CallMixin, ChildWithCall):
    abstract = True


class OtherBase(Task):  # type: ignore[misc]
    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


class TwoBases(OtherBase, LockedTask):
    abstract = True


class Hooks(LockedTask):
    """Overrides every hook there is, without super."""

    abstract = True

    def before_start(self, *args: Any) -> None: ...

    def on_success(self, *args: Any) -> None: ...

    def on_failure(self, *args: Any) -> None: ...

    def on_retry(self, *args: Any) -> None: ...

    def on_replace(self, *args: Any) -> None: ...

    def after_return(self, *args: Any) -> None: ...


CLASSES = [
    Bare,
    OwnCall,
    OwnCallWithSuper,
    Child,
    ChildWithCall,
    MixedIn,
    MixedInLater,
    MixedIntoAChild,
    TwoBases,
    Hooks,
]


@pytest.mark.usefixtures("_calls")
@pytest.mark.parametrize("base", CLASSES)
class TestOverridden:
    def define(self, app: Celery, base: Any) -> Any:
        @app.task(base=base, bind=True, lock_key="{key}", lock_on_contention="fail", shared=False)
        def task(self: Any, key: str, fails: bool = False) -> Any:
            lock = self.lock
            assert lock is current_lock()
            assert Lock(key, app=app).locked()
            if fails:
                raise ZeroDivisionError
            return lock.key, lock.held, self.request.called_directly

        return task

    @pytest.mark.parametrize("eager", [False, True])
    def test_the_body_runs_under_the_lock(self, app: Celery, base: Any, eager: bool) -> None:
        task = self.define(app, base)
        key, held, _ = task.apply(("k",)).get() if eager else task("k")
        assert (key, held) == ("k", True)
        assert not Lock("k", app=app).locked()
        assert frames() == []

    @pytest.mark.parametrize("eager", [False, True])
    def test_a_held_key_keeps_it_from_running(self, app: Celery, base: Any, eager: bool) -> None:
        task = self.define(app, base)
        other = Lock("k", app=app)
        with other:
            # Held by somebody else, as far as this thread's stack knows.
            stack = frames()[:]
            frames().clear()
            with pytest.raises(LockContended):
                _ = task.apply(("k",)).get() if eager else task("k")
            frames()[:] = stack

    @pytest.mark.parametrize("eager", [False, True])
    def test_a_failing_body_releases(self, app: Celery, base: Any, eager: bool) -> None:
        task = self.define(app, base)
        with pytest.raises(ZeroDivisionError):
            _ = task.apply(("k", True)).get() if eager else task("k", True)
        assert not Lock("k", app=app).locked()
        assert frames() == []


class TestHooks:
    def test_an_error_before_the_start_takes_no_lock(self, app: Celery) -> None:
        class Refusing(LockedTask):
            abstract = True

            def before_start(self, *args: Any) -> None:
                raise ZeroDivisionError

        @app.task(base=Refusing, lock_key="k", shared=False)
        def task() -> None: ...

        with pytest.raises(ZeroDivisionError):
            task.apply().get()
        assert not Lock("k", app=app).locked()

    @pytest.mark.parametrize("hook", ["on_success", "after_return"])
    def test_a_hook_that_raises_does_not_keep_the_lock(self, app: Celery, hook: str) -> None:
        def fail(self: Any, *args: Any) -> None:
            raise ZeroDivisionError

        failing = type("Failing", (LockedTask,), {"abstract": True, hook: fail})

        @app.task(base=failing, lock_key="k", shared=False)
        def task() -> None: ...

        with pytest.raises(ZeroDivisionError):
            task.apply().get()
        assert not Lock("k", app=app).locked()
        assert frames() == []

    def test_hooks_run_while_the_lock_is_held(self, app: Celery) -> None:
        seen: list[bool] = []

        class Looking(LockedTask):
            abstract = True

            def on_success(self, *args: Any) -> None:
                seen.append(Lock("k", app=app).locked())

            after_return = on_success

        @app.task(base=Looking, lock_key="k", shared=False)
        def task() -> None: ...

        task.apply()
        assert seen == [True, True]
        assert not Lock("k", app=app).locked()

    def test_a_users_own_methods_may_begin_with_lock(self, app: Celery) -> None:
        class Naming(LockedTask):
            abstract = True

            def lock_and_load(self) -> str:
                return "loaded"

        @app.task(base=Naming, bind=True, shared=False)
        def task(self: Any) -> str:
            return str(self.lock_and_load())

        assert task() == "loaded"


class TestRequestClass:
    def test_locked_tasks_have_the_supervised_one(self, app: Celery) -> None:
        @app.task(base=LockedTask, shared=False)
        def task() -> None: ...

        assert issubclass(_request_class(task), SupervisedRequest)

    def test_a_users_own_stays(self, app: Celery) -> None:
        class Own(Request):  # type: ignore[misc]
            pass

        class Owning(LockedTask):
            abstract = True
            Request = Own

        @app.task(base=Owning, lock_key="k", bind=True, shared=False)
        def task(self: Any) -> bool:
            return bool(self.lock.held)

        assert _request_class(task) is Own
        assert task.apply().get() is True


def _request_class(task: Any) -> Any:
    from celery.utils.imports import symbol_by_name

    return symbol_by_name(task.Request)


class TestLockTasks:
    """Tasks that cannot be given a base class."""

    def define(self, app: Celery, name: str = "pkg.tasks.work", **options: Any) -> Any:
        @app.task(name=name, bind=True, shared=False, **options)
        def work(self: Any, key: str = "k", more: int = 0) -> Any:
            lock = current_lock()
            return lock and lock.key

        return work

    @pytest.mark.parametrize("finalized", [False, True])
    def test_matching_tasks_run_under_a_lock_and_others_do_not(self, app: Celery, finalized: bool) -> None:
        work, other = self.define(app), self.define(app, "pkg.other.work")
        if finalized:
            app.finalize()
        lock_tasks(app, {"pkg.tasks.*": {"lock_key": "{key}"}})
        app.finalize()
        assert work("a") == work.apply(("a",)).get() == app.tasks["pkg.tasks.work"]("a") == "a"
        assert other("a") is None
        assert isinstance(work._get_current_object() if hasattr(work, "_get_current_object") else work, LockedTask)

    def test_tasks_that_are_defined_later_are_matched(self, app: Celery) -> None:
        lock_tasks(app, {"pkg.tasks.*": {"lock_key": "{key}"}})
        assert self.define(app)("a") == "a"

    def test_tasks_that_are_defined_after_the_app_was_finalised_are_matched(self, app: Celery) -> None:
        class Own(Task):  # type: ignore[misc]
            name = "pkg.tasks.own"

            def run(self, key: str) -> Any:
                lock = current_lock()
                return lock and lock.key

        self.define(app)
        lock_tasks(app, {"pkg.tasks.*": {"lock_key": "{key}"}})
        app.finalize()
        assert self.define(app, "pkg.tasks.late")("a") == "a"
        assert app.register_task(Own())("a") == "a"

    @pytest.mark.parametrize("before", [True, False])
    def test_a_call_before_the_app_is_finalised_is_locked(self, app: Celery, before: bool) -> None:
        work = self.define(app) if before else None
        lock_tasks(app, {"pkg.tasks.*": {"lock_key": "{key}"}})
        work = work or self.define(app)
        assert work("a") == "a"
        assert work.apply(("a",)).get() == "a"
        app.finalize()
        assert work("a") == "a"

    def test_nothing_of_the_configuration_is_read_early(self) -> None:
        app = Celery("late", set_as_current=False)
        work = self.define(app)
        lock_tasks(app, {"pkg.tasks.*": {"lock_key": "{key}"}})
        app.conf.distlock_url = f"memory://{uuid.uuid4().hex}"
        app.conf.distlock_ttl = 7
        assert work.apply(("a",)).get() == "a"
        assert work._lock_options.ttl == 7.0
        app.close()

    def test_the_first_pattern_counts(self, app: Celery) -> None:
        work, special = self.define(app), self.define(app, "pkg.tasks.special")
        lock_tasks(app, {"pkg.tasks.special": {"lock_key": "special"}, "pkg.*": {"lock_key": "{key}"}})
        assert special("a") == "special"
        assert work("a") == "a"

    def test_it_may_be_called_more_than_once(self, app: Celery) -> None:
        work, other = self.define(app), self.define(app, "other")
        lock_tasks(app, {"pkg.*": {"lock_key": "one"}})
        lock_tasks(app, {"other": {"lock_key": "two"}})
        assert (work(), other()) == ("one", "two")

    def test_no_key_means_name_and_arguments(self, app: Celery) -> None:
        work = self.define(app)
        lock_tasks(app, {"pkg.*": {}})
        assert work("a").startswith("pkg.tasks.work:")
        assert work("a") == work(key="a") == work("a", 0) != work("b")

    def test_its_options_are_a_locked_tasks(self, app: Celery) -> None:
        work = self.define(app)
        lock_tasks(app, {"pkg.*": {"lock_key": "{key}", "lock_on_contention": "skip", "lock_skip_result": "no"}})
        with Lock("k", app=app):
            stack = frames()[:]
            frames().clear()
            assert work("k") == work.apply(("k",)).get() == "no"
            assert work.apply(("k",), lock={"skip_result": 3}).get() == 3
            frames()[:] = stack

    def test_a_task_of_its_own_class_keeps_what_that_overrides(self, app: Celery) -> None:
        class Own(Task):  # type: ignore[misc]
            name = "pkg.tasks.own"

            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                return ["called", self.run(*args, **kwargs)]

            def run(self, key: str) -> Any:
                lock = current_lock()
                return lock and lock.key

        own = app.register_task(Own())
        lock_tasks(app, {"pkg.tasks.own": {"lock_key": "{key}"}})
        app.finalize()
        assert own("a") == own.apply(("a",)).get() == ["called", "a"]

    def test_its_request_class_is_the_supervised_one_unless_it_has_its_own(self, app: Celery) -> None:
        class Own(Request):  # type: ignore[misc]
            pass

        work, other = self.define(app), self.define(app, "pkg.tasks.other", Request=Own)
        lock_tasks(app, {"pkg.*": {}})
        app.finalize()
        assert issubclass(_request_class(work), SupervisedRequest)
        assert _request_class(other) is Own

    def test_a_tracer_that_was_built_before_is_not_used(self, app: Celery) -> None:
        work = self.define(app)
        app.finalize()
        assert work.apply(("a",)).get() is None
        lock_tasks(app, {"pkg.*": {"lock_key": "{key}"}})
        assert work.apply(("a",)).get() == "a"
        assert work.__trace__ is None

    def test_workers_supervise_it(self, app: Celery) -> None:
        self.define(app)
        assert not any(step.__module__.startswith("celery_distlock") for step in app.steps["worker"])
        lock_tasks(app, {"pkg.*": {}})
        assert any(step.__module__.startswith("celery_distlock") for step in app.steps["worker"])

    @pytest.mark.parametrize(
        ("rules", "message"),
        [
            ({"pkg.*": {"ttl": 3}}, "'ttl' is no lock option"),
            ({"pkg.*": {"lock_ttl": -1}}, "lock_ttl=-1"),
            ({"pkg.*": {"lock_ttll": 1}}, "lock_ttll"),
        ],
    )
    def test_a_wrong_option_is_an_error_at_once(self, app: Celery, rules: Any, message: str) -> None:
        with pytest.raises(LockConfigError, match=message):
            lock_tasks(app, rules)

    @pytest.mark.parametrize(
        ("rules", "message"),
        [
            ({"pkg.*": {"lock_key": "{nothing}"}}, "nothing"),
            ({"pkg.*": {"lock_on_contention": "wait"}}, "acks_late"),
        ],
    )
    def test_a_rule_that_does_not_fit_is_an_error_when_the_app_is_finalised(
        self, app: Celery, rules: Any, message: str
    ) -> None:
        self.define(app)
        lock_tasks(app, rules)
        with pytest.raises(LockConfigError, match=message):
            app.finalize()

    def test_a_pattern_without_a_task_is_no_error_for_a_publisher_that_knows_only_some(self, app: Celery) -> None:
        self.define(app)
        lock_tasks(app, {"pgk.*": {}, "pkg.*": {}})
        app.finalize()
        assert unmatched_patterns(app) == ["pgk.*"]

    def test_celerys_own_tasks_are_not_meant_by_a_star(self, app: Celery) -> None:
        lock_tasks(app, {"c*": {}, "celery.backend_cleanup": {}})
        app.finalize()
        locked = {name for name, task in app.tasks.items() if isinstance(task, LockedTask)}
        assert {name for name in locked if name.startswith("celery.")} == {"celery.backend_cleanup"}
        assert unmatched_patterns(app) == ["c*"]

    def test_a_locked_task_already_has_its_options(self, app: Celery) -> None:
        @app.task(base=LockedTask, name="pkg.locked", shared=False)
        def work() -> None: ...

        lock_tasks(app, {"pkg.*": {}})
        with pytest.raises(LockConfigError, match=r"pkg\.locked: is a LockedTask already"):
            app.finalize()
