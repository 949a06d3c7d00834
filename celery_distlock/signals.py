"""The public signals.

Each is a Celery signal; the sender is the task. They are sent where the thing happens: in the executor, except
``lock_unsure``, ``lock_lost`` and ``lock_parked``, which under a supervising worker come from its main process.
Celery swallows what a receiver raises, so signals observe; they never decide.

All carry ``task_id`` (None for direct calls) and ``key``; further arguments:

=================  ==========================================================================================
``lock_acquired``  ``lock``: the :class:`~celery_distlock.held.HeldLock`
``lock_contended``  ``holder``: who holds the key (None if unknown); ``policy``: what will be done about it
``lock_parked``    ``reason``: why the message waits in the worker's main process
``lock_woken``     the parked message goes back to the pool
``lock_skipped``   ``holder``
``lock_released``  ``owner``, ``fence``
``lock_unsure``    ``owner``, ``fence``: the store has been silent past the lease's deadline
``lock_lost``      ``owner``, ``fence``: the store says that the key was given to somebody else
=================  ==========================================================================================
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from celery.utils.dispatch import Signal

from celery_distlock.errors import LockConfigError
from celery_distlock.options import merge, task_options

if TYPE_CHECKING:
    from celery import Celery

__all__ = [
    "lock_acquired",
    "lock_contended",
    "lock_lost",
    "lock_parked",
    "lock_released",
    "lock_skipped",
    "lock_tasks",
    "lock_unsure",
    "lock_woken",
]


def _signal(name: str, *arguments: str) -> Signal:
    return Signal(name=name, providing_args={"task_id", "key", *arguments})


lock_acquired = _signal("lock_acquired", "lock")
lock_contended = _signal("lock_contended", "holder", "policy")
lock_parked = _signal("lock_parked", "reason")
lock_woken = _signal("lock_woken")
lock_skipped = _signal("lock_skipped", "holder")
lock_released = _signal("lock_released", "owner", "fence")
lock_unsure = _signal("lock_unsure", "owner", "fence")
lock_lost = _signal("lock_lost", "owner", "fence")


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
            app is finalised) an option does not fit the task, or it is a LockedTask already; (when the app is
            finalised) a pattern matches nothing.
    """
    for pattern, options in rules.items():
        where = f"lock_tasks, {pattern!r}"
        strangers = [name for name in options if not name.startswith("lock_")]
        if strangers:
            raise LockConfigError(f"{where}: {strangers[0]!r} is no lock option; they all begin with lock_")
        merge(task_options(options, where=where))

    _Locking(app, rules).begin()


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
        from celery_distlock.task.base import rebase

        pattern = next((pattern for pattern in self._rules if fnmatchcase(task.name, pattern)), None)
        if pattern is not None and task.name not in self._done:
            rebase(self._app, task, self._rules[pattern])
            self._unmatched.discard(pattern)
            self._done.add(task.name)

    def _finish(self) -> None:
        for task in list(self._app._tasks.values()):
            self._put(task)
        if self._unmatched:
            names = ", ".join(map(repr, sorted(self._unmatched)))
            raise LockConfigError(f"lock_tasks: no registered task matches {names}")
