"""How the warden gets into the worker: two bootsteps, added by the first locked task that is bound to the app."""

from __future__ import annotations

from typing import Any

from celery import bootsteps

from celery_distlock.stores.of_app import store_of
from celery_distlock.worker.warden import Warden

__all__ = ["supervise"]


class WardenStep(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no type hints
    """Makes the warden, and with it the shared cells, before the pool forks; ends it after the pool has drained."""

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self.warden = Warden(worker)

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
        """Report at start-up, rather than at 3 a.m., a store that is missing or can forget locks."""
        check = getattr(store_of(worker.app), "check", None)
        if check is not None:
            check()


class ConnectionStep(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no type hints
    """Tells the warden of every new connection to the broker."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        """Tell it."""
        if Warden.current is not None:
            Warden.current.connected(consumer)


def supervise(app: Any) -> None:
    """Have the app's workers supervise locked tasks; adding it twice adds it once."""
    app.steps["worker"].add(WardenStep)
    app.steps["consumer"].add(ConnectionStep)
