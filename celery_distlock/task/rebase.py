"""Locks for tasks that cannot be given a base class."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from celery_distlock.errors import LockConfigError
from celery_distlock.options import SPELLED, merge, task_options
from celery_distlock.task.base import LockedTask

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["lock_tasks", "unmatched_patterns"]


def lock_tasks(app: Celery, rules: Mapping[str, Mapping[str, Any]]) -> None:
    """Put locks around tasks that cannot be given a base class: other people's, or a whole package's.

    ::

        lock_tasks(app, {"billing.tasks.*": {"lock_key": ("account_id",)}, "vendor.sync": {}})

    Every task of the app whose name matches a pattern becomes a :class:`~celery_distlock.LockedTask` with these
    options, before it can be called, whether it was defined already or will be later. The first pattern that matches
    counts.

    Arguments:
        app: the app; if it is finalised already, its tasks are changed at once.
        rules: shell-style patterns of task names, and the options as they would be given to ``@app.task``.

    Raises:
        LockConfigError: (at once) an option has a value it cannot have; (when the task is made, at the latest when the
            app is finalised) an option does not fit the task, or it is a LockedTask already; (when a worker starts) a
            pattern matches none of its tasks.
    """
    for pattern, options in rules.items():
        where = f"lock_tasks, {pattern!r}"
        strangers = [name for name in options if name not in SPELLED.values() and not name.startswith("lock_")]
        if strangers:
            allowed = ", ".join(SPELLED.values())
            raise LockConfigError(f"{where}: {strangers[0]!r} is no lock option; allowed: {allowed}")
        merge(task_options(options, where=where))

    locking = _Locking(app, rules)
    _lockings.setdefault(app, []).append(locking)
    locking.begin()
    # Also where no pattern has matched so far: the worker has to say so.
    from celery_distlock.worker.steps import supervise

    supervise(app)


class _Locking:
    """Puts the locks of one ``lock_tasks`` around the tasks of an app, those that exist and those that will.

    A task can be called before its app is finalised, and defined after it was: it is changed as soon as it exists.
    """

    def __init__(self, app: Celery, rules: Mapping[str, Mapping[str, Any]]) -> None:
        self._app = app
        self._rules = rules
        self._unmatched = set(rules)
        self._done: set[str] = set()

    def begin(self) -> None:
        app = self._app
        for name in ("_task_from_fun", "register_task"):
            setattr(app, name, self._wrapped(getattr(app, name)))
        if app.finalized:
            self._finish()
            return
        for promise in list(app._pending):
            # Not evaluated now: that would read a configuration that is perhaps not there yet.
            promise.__then__(lambda promise=promise: self._put(promise._get_current_object()))
        finalize = app.finalize

        def finalize_and_finish(auto: bool = False) -> None:
            due = not app.finalized
            finalize(auto=auto)
            if due:
                self._finish()

        # Not app.on_after_finalize: Celery swallows what a signal's receiver raises, and the tasks would run unlocked.
        app.finalize = finalize_and_finish

    def _wrapped(self, define: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(define)
        def define_and_put(*args: Any, **options: Any) -> Any:
            task = define(*args, **options)
            self._put(task)
            return task

        return define_and_put

    def _put(self, task: Any) -> None:
        pattern = next((pattern for pattern in self._rules if _matches(task.name, pattern)), None)
        if pattern is not None and task.name not in self._done:
            rebase(self._app, task, self._rules[pattern])
            self._unmatched.discard(pattern)
            self._done.add(task.name)

    def _finish(self) -> None:
        for task in list(self._app._tasks.values()):
            self._put(task)

    def unmatched(self) -> list[str]:
        return sorted(self._unmatched)


def _matches(name: str, pattern: str) -> bool:
    # Celery's own tasks are parts of its canvas; "*" does not mean them.
    if name.startswith("celery.") and not pattern.startswith("celery."):
        return False
    return fnmatchcase(name, pattern)


def unmatched_patterns(app: Celery) -> list[str]:
    """Return the patterns given to :func:`lock_tasks` that match none of the app's tasks.

    A worker refuses to start with one; a publisher may have imported a part of the tasks only.
    """
    return sorted(pattern for locking in _lockings.get(app, ()) for pattern in locking.unmatched())


def rebase(app: Celery, task: Any, options: Mapping[str, Any]) -> None:
    """Turn a registered task into a :class:`LockedTask` with these options, in place.

    Its class stays in front: what it overrides stays overridden, its own ``Request`` class, if it has one, stays its
    own.

    Raises:
        LockConfigError: an option is wrong, or the task is a LockedTask already.
    """
    cls = type(task)
    if issubclass(cls, LockedTask):
        raise LockConfigError(f"task {task.name}: is a LockedTask already; give the options where it is defined")
    task.__class__ = type(cls.__name__, (cls, LockedTask), {"__module__": cls.__module__, **options})
    task.__class__.bind(app)
    # A tracer built before would call the body without the lock.
    task.__trace__ = None


_lockings: weakref.WeakKeyDictionary[Any, list[_Locking]] = weakref.WeakKeyDictionary()
