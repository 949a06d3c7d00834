"""How the warden gets into the worker: two bootsteps, added by the first locked task that is bound to the app."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from celery import bootsteps, signals

from celery_distlock.errors import LockConfigError, StoreUnavailable
from celery_distlock.line import hear_in
from celery_distlock.stores.of_app import close_stores, store_of
from celery_distlock.task import event_loop
from celery_distlock.task.message import tokens_of
from celery_distlock.task.rebase import unmatched_patterns
from celery_distlock.worker import commands as _commands  # noqa: F401  # registers them
from celery_distlock.worker.warden import Warden

__all__ = ["supervise"]

log = logging.getLogger(__name__)


class WardenStep(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no type hints
    """Makes the warden, and with it the shared cells, before the pool forks; ends it after the pool has drained."""

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self.warden = Warden(worker)
        with contextlib.suppress(LockConfigError):
            # Its client is imported here once, and not by each child for its first task. What is wrong, start() tells.
            store_of(worker.app)

    def include(self, worker: Any) -> bool:
        """Have the warden stopped last: the order among unrelated steps is not defined, and the pool is one."""
        stopped = worker.blueprint.on_stopped

        def on_stopped() -> None:
            self.warden.stop()
            if stopped:
                stopped()

        worker.blueprint.on_stopped = on_stopped
        return bool(super().include(worker))

    def start(self, worker: Any) -> None:
        """Report at start-up, rather than at 3 a.m., a store that is missing or can forget locks.

        Raises:
            LockConfigError: no store is configured, it cannot do what a task wants, or a pattern of ``lock_tasks``
                matches nothing.
        """
        unmatched = unmatched_patterns(worker.app)
        if unmatched:
            raise LockConfigError(f"lock_tasks: no registered task matches {', '.join(map(repr, unmatched))}")
        store = store_of(worker.app)
        for task in worker.app.tasks.values():
            if getattr(task, "_lock_unique", False):
                tokens_of(task)
        check = getattr(store, "check", lambda: ())
        try:
            for warning in check():
                log.warning("%s", warning, extra={"store": store.name})
        except StoreUnavailable as error:
            log.warning("%s; until it answers, locked tasks follow lock_on_store_error", error)
        if getattr(worker.pool, "uses_semaphore", False):
            # Prefork: what is called in this thread from now on would hold up every task.
            event_loop.here()

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        """Called at every connection to the broker."""
        self.warden.loop.register(hub)
        if getattr(worker.pool, "uses_semaphore", False):
            # Prefork: no task runs in this thread, so it hears at once.
            hear_in(self.warden.loop)


class ConnectionStep(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no type hints
    """Tells the warden of every connection to the broker, and of its loss."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        """Tell it."""
        if Warden.current is not None:
            Warden.current.connected(consumer)

    def stop(self, consumer: Any) -> None:
        """Tell it that the connection is lost. A worker that is shutting down keeps its own to the end."""
        if Warden.current is None:
            return
        if consumer.blueprint.state == bootsteps.RUN:
            Warden.current.disconnected()
        else:
            Warden.current.closing()


# A pool process ends without what Python does at the end, and a session would last until its time is over.
signals.worker_process_shutdown.connect(
    lambda **_: close_stores(), weak=False, dispatch_uid="celery_distlock.close_stores"
)


def supervise(app: Any) -> None:
    """Have the app's workers supervise locked tasks; adding it twice adds it once."""
    app.steps["worker"].add(WardenStep)
    app.steps["consumer"].add(ConnectionStep)
