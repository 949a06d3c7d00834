"""The base class: options, keys, and the guard around ``__call__``.

The guard is put around whatever ``__call__`` a subclass ends up with, when the class is made. So a subclass, or a
mix-in, that overrides ``__call__`` without ``super()`` still runs under its lock; ``before_start`` and the ``on_…``
hooks are not used by this library at all and may be overridden freely.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from celery import Task
from celery.signals import beat_init

from celery_distlock.errors import LockConfigError
from celery_distlock.held import HeldLock, frames
from celery_distlock.keys import KeyFunction, KeySpec, compile_key
from celery_distlock.options import (
    LockOptions,
    call_options,
    check_unique,
    check_wait,
    conf_options,
    merge,
    task_options,
)
from celery_distlock.stores.base import LockStore
from celery_distlock.stores.of_app import store_of
from celery_distlock.task.attempt import run_traced
from celery_distlock.task.direct import run_direct
from celery_distlock.task.publish import publish
from celery_distlock.task.run import OPTIONS_HEADER

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["LockedTask"]

log = logging.getLogger(__name__)

#: A completion record outlives the visibility timeout of its message this many times, and the default one at least: a
#: short timeout does not make redelivery quick, for kombu looks every 100 s and takes ten messages then.
_VISIBILITY_MARGIN = 2.0
_DEFAULT_VISIBILITY = 3600.0


class LockedTask(Task):  # type: ignore[misc]  # Celery has no type hints
    """A task that runs only while it holds a lock named by its own arguments.

    ::

        @app.task(base=LockedTask, lock_key="order:{order_id}", acks_late=True)
        def charge(order_id): ...

    The options (``lock_key``, ``lock_ttl``, ``lock_limit``, ``lock_on_contention`` …) are described, with their
    defaults, by :class:`~celery_distlock.options.LockOptions`. App-wide defaults are ``app.conf.distlock_…``, one
    call's are ``apply_async(lock={"ttl": 60})``.

    Raises:
        LockConfigError: (when the task is defined) an option is wrong.
    """

    abstract = True
    Request = "celery_distlock.worker:SupervisedRequest"

    # The app's defaults, overridden by the class's own options; set when the task is bound.
    _lock_options: LockOptions = LockOptions()
    _lock_key: KeyFunction
    _lock_unique: bool = False
    _lock_unique_key: KeyFunction
    _lock_completion_ttl: float = _DEFAULT_VISIBILITY * _VISIBILITY_MARGIN
    _lock_track_started: bool = False
    _lock_said: frozenset[str] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _guard(cls)
        attributes = _attributes(cls)
        name = attributes.get("name") or cls.__qualname__
        options = merge(task_options(attributes, where=f"task {name}"))
        if "run" in attributes:
            # Checked here, where it is written; compiled again when the task is bound and has its final name.
            _compile(cls, name, options.key)
            _compile(cls, name, options.unique_key, "unique_key")

    @classmethod
    def bind(cls, app: Celery) -> Any:
        """Bind the task to an app: check its options together with the app's, and have the worker supervise it."""
        bound = super().bind(app)
        where = f"task {cls.name}"
        # Read again: task_annotations may have added some.
        written = task_options(_attributes(cls), where=where)
        cls._lock_options = merge(conf_options(app.conf), written)
        check_wait(cls._lock_options, bool(cls.acks_late), where)
        check_unique(cls._lock_options, where, written)
        cls._lock_key = staticmethod(_compile(cls, cls.name, cls._lock_options.key))
        cls._lock_unique = cls._lock_options.unique
        cls._lock_unique_key = staticmethod(_unique_key_of(cls, cls._lock_options))
        transport = app.conf.broker_transport_options or {}
        visibility = float(transport.get("visibility_timeout") or _DEFAULT_VISIBILITY)
        cls._lock_completion_ttl = max(visibility, _DEFAULT_VISIBILITY) * _VISIBILITY_MARGIN
        if cls.track_started:
            # The tracer would store STARTED before the lock is asked for: over the result of a run that has ended,
            # if the broker delivers its message again, and for tasks that are refused.
            cls._lock_track_started, cls.track_started = True, False
        if cls._lock_options.beat_unique_tick or cls._lock_unique:
            beat_init.connect(_beat_starts, weak=False, dispatch_uid="celery_distlock.beat")
        # Imported here: a publisher needs nothing of the worker's.
        from celery_distlock.worker.steps import supervise

        supervise(app)
        return bound

    @property
    def lock(self) -> HeldLock | None:
        """The lock this task runs under; None where it runs without one.

        That is: ``lock_key`` gave None for these arguments, or the store could not be asked and
        ``lock_on_store_error="run"``.
        """
        # Not only the topmost: ``super().__call__()`` of a class with a ``__call__`` of its own pushes another one.
        requests = self.request_stack.stack
        for frame in reversed(frames()):
            if frame.subject is self or any(frame.subject is request for request in requests):
                return frame.lock
        return None

    def apply_async(  # the other arguments are Celery's
        self,
        args: Any = None,
        kwargs: Any = None,
        *more: Any,
        lock: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Publish the task.

        Arguments:
            lock: lock options for this call only, without their prefix: ``{"ttl": 60, "on_contention": "skip"}``.
                They travel in a header and survive retries.

        Returns:
            the result; of a unique task it has the attribute ``duplicate``: whether it is another, earlier call's.

        Raises:
            LockConfigError: one of the options is wrong, or the task is unique and its store cannot tell.
            DuplicateTask: the task is unique, and ``on_duplicate="raise"``.
            StoreUnavailable: the task is unique, the store gave no answer, and ``lock_on_store_error="fail"``.
        """
        if lock is not None:
            options["headers"] = self._lock_header(options.get("headers"), lock)
        if self._lock_unique or OPTIONS_HEADER in (options.get("headers") or ()):
            return publish(self, super().apply_async, args, kwargs, more, options)
        return super().apply_async(args, kwargs, *more, **options)

    def apply(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Run the task here and now, under its lock.

        Arguments:
            lock: as for :meth:`apply_async`.
        """
        lock = options.pop("lock", None)
        if lock is not None:
            options["headers"] = self._lock_header(options.get("headers"), lock)
        return super().apply(args, kwargs, *more, **options)

    def _lock_header(self, headers: Mapping[str, Any] | None, lock: Mapping[str, Any]) -> dict[str, Any]:
        where = f"task {self.name}"
        given = call_options(lock, where=where)
        options = merge(self._lock_options.__dict__, given)
        if options.unique or not self._lock_unique:
            # A unique task may be called as one that is not.
            check_unique(options, where, given)
        if "key" in given:
            _compile(type(self), self.name, options.key)
        if "unique_key" in given:
            _compile(type(self), self.name, options.unique_key, "unique_key")
        return {**(headers or {}), OPTIONS_HEADER: given}

    @property
    def _lock_store(self) -> LockStore:
        return store_of(self._get_app())

    def _lock_options_of(self, headers: Mapping[str, Any] | None) -> LockOptions:
        """Return the options of one message, for the worker's main process, which must not die of a wrong one."""
        try:
            return self._lock_checked_options_of(headers)
        except LockConfigError:
            # The executor refuses to run it, and says why in the task's own result.
            return self._lock_options

    def _lock_checked_options_of(self, headers: Mapping[str, Any] | None) -> LockOptions:
        given = headers.get(OPTIONS_HEADER) if headers else None
        if not given:
            return self._lock_options
        return merge(self._lock_options.__dict__, call_options(given, where=f"task {self.name}"))

    def _lock_key_of(self, headers: Mapping[str, Any] | None, args: Any, kwargs: Any) -> str | None:
        given = headers.get(OPTIONS_HEADER) if headers else None
        if given and "key" in given:
            return _compile(type(self), self.name, self._lock_checked_options_of(headers).key)(args, kwargs)
        return type(self)._lock_key(args, kwargs)

    def _lock_unique_key_of(self, options: LockOptions, args: Any, kwargs: Any) -> str | None:
        if options is self._lock_options:
            return type(self)._lock_unique_key(args, kwargs)
        return _unique_key_of(type(self), options)(args, kwargs)

    def _lock_warn_once(self, sentence: str) -> None:
        cls = type(self)
        if sentence not in cls._lock_said:
            cls._lock_said = cls._lock_said | {sentence}
            log.warning("Task %s: %s", self.name, sentence)


def _beat_starts(sender: Any, **_: Any) -> None:
    # Imported now: what a beat needs is of no use to others.
    from celery_distlock.beat import attend

    attend(sender)


def _attributes(cls: type[LockedTask]) -> dict[str, Any]:
    """Return what a class and the bases it adds to :class:`LockedTask`, mix-ins included, define."""
    added = [base for base in reversed(cls.__mro__) if base not in LockedTask.__mro__]
    return {name: value for base in added for name, value in vars(base).items()}


def _unique_key_of(cls: type[LockedTask], options: LockOptions) -> KeyFunction:
    if options.unique_key is None:
        return _compile(cls, cls.name, options.key)
    return _compile(cls, cls.name, options.unique_key, "unique_key")


def _compile(cls: type[LockedTask], name: str, spec: KeySpec, option: str = "lock_key") -> KeyFunction:
    # A class that defines ``run(self, …)`` itself has it as a method; ``@app.task(bind=True)`` as a function of self;
    # ``@app.task`` as a static one.
    run = inspect.getattr_static(cls, "run")
    if isinstance(run, staticmethod):
        return compile_key(name, spec, run.__func__, option=option)
    return compile_key(name, spec, run, bound=True, option=option)


def _guard(cls: type[LockedTask]) -> None:
    call = cls.__call__
    if getattr(call, "_distlock_guard", False):
        return
    # Celery's own __call__ is looked up late: the worker replaces it.
    plain = call is Task.__call__ or call is vars(LockedTask).get("__call__")

    @functools.wraps(call)
    def guarded(self: LockedTask, *args: Any, **kwargs: Any) -> Any:
        request = self.request_stack.top
        traced = request is not None and not request.called_directly
        if traced and not getattr(request, "distlock_entered", False):
            body: Callable[..., Any] = self.run if plain else functools.partial(call, self)
            return run_traced(self, request, body, args, kwargs)
        if traced and getattr(request, "distlock_unlocked", False):
            # An overridden __call__ that calls super(): the store has been asked, and could not answer.
            return Task.__call__(self, *args, **kwargs) if plain else call(self, *args, **kwargs)
        body = functools.partial(Task.__call__ if plain else call, self)
        return run_direct(self, body, args, kwargs)

    guarded._distlock_guard = True  # type: ignore[attr-defined]
    cls.__call__ = guarded
