"""Locks outside of tasks: :class:`Lock` for any code, :func:`locked` for plain functions.

::

    with Lock("report:2026-11", url="redis://localhost/1") as lock:
        ...
        lock.check()                      # raises LockLost if somebody else may hold it now

    @locked("import:{path}", url="redis://localhost/1", max_retries=3, retry_delay=2.0)
    def load(path): ...

A lock is renewed by a thread of this process until it is released, so ``ttl`` bounds how long a *dead* holder is
believed, not how long the work may take.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from celery_distlock.errors import LockConfigError, LockContended, LockLost, LockTimeout, StoreUnavailable
from celery_distlock.held import Frame, HeldLock, SelfKept, disown, frames, give_back, holding
from celery_distlock.keys import KeySpec, compile_key
from celery_distlock.lease import Claim, Holder, Lease, new_owner
from celery_distlock.stores import open_store
from celery_distlock.stores.base import LockStore
from celery_distlock.stores.of_app import store_of
from celery_distlock.waiting import wait_for

__all__ = ["Lock", "locked"]

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")

_stores: dict[tuple[str, str], LockStore] = {}

#: How to tell a function whose call only makes something that runs its body later.
_RUNS_LATER = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)


def _opener(app: Any, url: str | None, store: LockStore | None, prefix: str) -> Callable[[], LockStore]:
    given = [name for name, value in (("app", app), ("url", url), ("store", store)) if value is not None]
    if len(given) != 1:
        raise LockConfigError(
            f"give exactly one of app, url and store, to say where the lock lives; got {given or 'none'}"
        )
    if app is not None:
        # Asked when it is needed: an app is often configured after the modules that use it were imported.
        return lambda: store_of(app)
    if store is None:
        assert url is not None
        # One set of connections per address and process, however many locks there are.
        if (url, prefix) not in _stores:
            _stores[url, prefix] = open_store(url, prefix=prefix)
        store = _stores[url, prefix]
    return lambda: store


def _seconds(option: str, value: Any, least: float, strict: bool = False) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= least and value < float("inf")
    if not good or (strict and value == least):
        raise LockConfigError(f"{option}={value!r}: must be a number of seconds {'>' if strict else '>='} {least}")
    return float(value)


class Lock:
    """A lock on ``key``, for plain Python.

    Not re-entrant, like :class:`threading.Lock`: a thread that acquires it twice waits for itself. One object may be
    shared by threads; each of them gets it in turn.

    Arguments:
        key: what must not happen twice at once; the same text as a task's ``lock_key="…"`` template yields.
        url, app, store: where the lock lives; exactly one of them: a store URL, a Celery app, or a
            :class:`~celery_distlock.stores.base.LockStore`.
        ttl: seconds for which the store believes a holder that fell silent.
        limit: how many may hold the key at once.
        identifier: a name that others see in the ``holder`` of their :class:`LockContended`; default: none.
        timeout: seconds ``with`` waits before it raises :class:`LockTimeout`; None: for ever.
        prefix: the store's name space, with ``url`` only.

    Raises:
        LockConfigError: an argument is wrong.
    """

    def __init__(
        self,
        key: str,
        *,
        url: str | None = None,
        app: Any = None,
        store: LockStore | None = None,
        ttl: float = 30.0,
        limit: int = 1,
        identifier: str | None = None,
        timeout: float | None = None,
        prefix: str = "distlock",
    ) -> None:
        if not isinstance(key, str) or not key:
            raise LockConfigError(f"key={key!r}: must be a non-empty str")
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise LockConfigError(f"limit={limit!r}: must be an int >= 1")
        # A text that is too long is shortened in the same way as a task's key.
        self.key = compile_key("Lock", lambda: key, lambda: None, option="key")((), {}) or key
        self.ttl = _seconds("ttl", ttl, 0.0, strict=True)
        self.limit = limit
        self.identifier = identifier
        self.timeout = None if timeout is None else _seconds("timeout", timeout, 0.0)
        self._open = _opener(app, url, store, prefix)
        self._pid = os.getpid()
        self._mutex = threading.Lock()
        self._held: HeldLock | None = None
        self._kept: SelfKept | None = None
        #: The frames of the thread that acquired, which need not be the one that releases.
        self._stack: list[Frame] = []

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Get the lock.

        Arguments:
            blocking: whether to wait for it.
            timeout: seconds to wait; None waits for ever.

        Returns:
            True once it is held; False if it could not be had in that time. Never anything else.

        Raises:
            StoreUnavailable: the store could not be asked.
            LockConfigError: a timeout was given with ``blocking=False``, or is negative.
        """
        if not blocking and timeout is not None:
            raise LockConfigError(f"timeout={timeout!r}: makes no sense with blocking=False")
        wait = 0.0 if not blocking else None if timeout is None else _seconds("timeout", timeout, 0.0)
        return self._acquire(wait) is None

    def _acquire(self, wait: float | None) -> tuple[float, Holder | None] | None:
        """Return None when held, else how long was waited and for whom."""
        started = time.monotonic()
        self._after_fork()
        # Known before anything is taken: whatever is raised from then on, it can be given back.
        claim = self._claim()
        if not self._mutex.acquire(timeout=-1 if wait is None else wait):
            return time.monotonic() - started, None
        try:
            left = None if wait is None else max(0.0, wait - (time.monotonic() - started))
            answer = wait_for(self._store, claim, left)
            if isinstance(answer, Lease):
                self._kept = SelfKept(self._store, answer, self._on_trouble)
                self._held = HeldLock(answer, self._store, self._kept)
                self._stack = frames()
                self._stack.append(Frame(self, self._held, owns=True))
                return None
        except BaseException as error:
            # Whoever called is told that it was not acquired, so it must not be, however far we got.
            self._forget()
            disown(self._store, claim, error)
            raise
        finally:
            if self._held is None:
                self._mutex.release()
        return time.monotonic() - started, getattr(answer, "holder", None)

    def _acquire_with_retries(self, retries: int, delay: float) -> None:
        refused = self._acquire(0.0)
        for _ in range(retries):
            if refused is None:
                return
            time.sleep(delay)
            refused = self._acquire(0.0)
        if refused is not None:
            raise LockContended(self.key, refused[1])

    def release(self) -> None:
        """Give the lock back.

        A store that does not answer is told in the background; it forgets the lock by itself after ``ttl``.

        Raises:
            LockLost: the lock was not held, or its place had been given to somebody else. Nothing of theirs is touched.
        """
        self._after_fork()
        held, kept = self._held, self._kept
        if held is None or kept is None:
            raise LockLost(self.key, "it is not held by this object")
        lease = replace(held.lease, deadline=kept.deadline)
        self._forget()
        try:
            (ours,) = self._store.release([lease])
        except StoreUnavailable as error:
            log.warning("lock %r: will be released in the background: %s", self.key, error)
            give_back(self._store, lease)
            ours = True
        except BaseException:
            give_back(self._store, lease)
            raise
        finally:
            self._mutex.release()
        if not ours:
            raise LockLost(self.key, "its place had been given away before it was released")

    def locked(self) -> bool:
        """Return whether anybody holds the key now, this object or another, anywhere.

        Raises:
            StoreUnavailable: the store could not be asked.
        """
        return any(holder["remaining"] > 0 for holder in self.holders())

    def holders(self) -> list[Holder]:
        """Return who holds the key, oldest first.

        Raises:
            StoreUnavailable: the store could not be asked.
        """
        return self._store.holders(self.key)

    @property
    def held(self) -> bool:
        """True while this object's hold can be relied upon; costs no round trip."""
        self._after_fork()
        return self._held is not None and self._held.held

    @property
    def _store(self) -> LockStore:
        return self._open()

    @property
    def owner(self) -> str | None:
        """The random token of the present hold; None while not held."""
        self._after_fork()
        return self._held.owner if self._held else None

    @property
    def fence(self) -> int | None:
        """The number of the present grant; None while not held."""
        self._after_fork()
        return self._held.fence if self._held else None

    @property
    def remaining(self) -> float:
        """Seconds for which the hold can be relied upon without another word from the store."""
        self._after_fork()
        return self._held.remaining if self._held else 0.0

    def check(self) -> None:
        """Return if the lock can be relied upon now; see :meth:`HeldLock.check <celery_distlock.held.HeldLock.check>`.

        Raises:
            LockLost: it cannot.
        """
        self._after_fork()
        if self._held is None:
            raise LockLost(self.key, "it is not held by this object")
        self._held.check()

    def __enter__(self) -> Lock:
        refused = self._acquire(self.timeout)
        if refused is not None:
            waited, holder = refused
            raise LockTimeout(self.key, waited, holder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.release()
        except LockLost:
            # The block's own exception says more; the loss itself was logged when it was found out.
            if error is None:
                raise

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.key!r} in {self._store.name} {'held' if self.held else 'not held'}>"

    def _claim(self) -> Claim:
        record: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        if self.identifier is not None:
            record["identifier"] = self.identifier
        return Claim(self.key, new_owner(), self.ttl, self.limit, record)

    def _after_fork(self) -> None:
        # A child inherits the object, not the lock: what the parent holds is the parent's, and so is its mutex.
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._mutex = threading.Lock()
            self._held = self._kept = None
            self._stack = []

    def _forget(self) -> None:
        """Hold nothing any more, whatever the store says."""
        if self._kept is not None:
            self._kept.end()
        if self._held is not None:
            self._held.released = True
            for frame in [frame for frame in self._stack if frame.lock is self._held]:
                # Not by assigning a new list: the thread that acquired may be appending to it.
                self._stack.remove(frame)
        self._held = self._kept = None

    def _on_trouble(self, what: str) -> None:
        log.warning("lock %r: %s", self.key, what, extra={"key": self.key})


def locked(
    key: KeySpec = None,
    *,
    url: str | None = None,
    app: Any = None,
    store: LockStore | None = None,
    ttl: float = 30.0,
    limit: int = 1,
    timeout: float | None = None,
    max_retries: int | None = None,
    retry_delay: float = 2.0,
    identifier: str | None = None,
    prefix: str = "distlock",
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Run a plain function only while it holds a lock named by its arguments.

    Arguments:
        key: as a task's ``lock_key``: None (the function's name and all arguments), names of parameters, a template
            such as ``"import:{path}"``, or a callable of the arguments. A callable's None means no lock.
        url, app, store, ttl, limit, identifier, prefix: as for :class:`Lock`.
        timeout: seconds to wait for the lock; None waits for ever.
        max_retries: instead of waiting, ask once and then at most this many times more, ``retry_delay`` seconds
            apart.
        retry_delay: seconds between two of those.

    A call on a key that the calling code holds already, through this decorator, a task or a :class:`Lock`, runs under
    that lock. If the lock is found lost when it is released, :class:`LockLost` is raised in place of the result.

    Raises:
        LockConfigError: (when decorating) an argument is wrong.
        LockTimeout: (when called) ``timeout`` passed.
        LockContended: (when called) ``max_retries`` were used up; the message names the holder.
        StoreUnavailable: (when called) the store could not be asked.
        LockKeyError: (when called) no key can be made of the arguments.
    """
    if max_retries is not None:
        if isinstance(max_retries, bool) or not isinstance(max_retries, int) or max_retries < 0:
            raise LockConfigError(f"max_retries={max_retries!r}: must be an int >= 0, or None to wait")
        if timeout is not None:
            raise LockConfigError(f"timeout={timeout!r} and max_retries={max_retries!r}: give one of them")
    delay = _seconds("retry_delay", retry_delay, 0.0)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name = f"{function.__module__}.{function.__qualname__}"
        if any(check(function) for check in _RUNS_LATER):
            raise LockConfigError(f"{name}: its body runs after the call has returned, so nothing would be locked")
        make_key = compile_key(name, key, function, option="key")
        # Made at definition so that a wrong argument is an error there; nothing is connected, and no app is asked.
        options: dict[str, Any] = {"url": url, "app": app, "store": store, "ttl": ttl, "limit": limit}
        Lock("probe", **options, identifier=identifier, prefix=prefix, timeout=timeout)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            text = make_key(args, kwargs)
            if text is None:
                return function(*args, **kwargs)
            lock = Lock(text, **options, identifier=identifier, prefix=prefix, timeout=timeout)
            if frames() and holding(lock.key, lock._store) is not None:
                return function(*args, **kwargs)
            with contextlib.ExitStack() as stack:
                if max_retries is None:
                    stack.enter_context(lock)
                else:
                    lock._acquire_with_retries(max_retries, delay)
                    stack.push(lock)
                return function(*args, **kwargs)

        return call

    return decorate
