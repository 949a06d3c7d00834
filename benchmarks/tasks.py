"""The tasks that the benchmarks run."""

from __future__ import annotations

import os

from celery import Celery

from celery_distlock import LockedTask

app = Celery("benchmarks.tasks")


def configure() -> None:
    """Read the addresses from the environment; called again by the benchmark once it knows them."""
    app.conf.update(
        broker_url=os.environ.get("BROKER_URL", "memory://"),
        result_backend=os.environ.get("RESULT_BACKEND", "cache+memory://"),
        distlock_url=os.environ.get("DISTLOCK_URL", "memory://"),
        broker_connection_retry_on_startup=True,
        worker_prefetch_multiplier=8,
    )


configure()


@app.task
def bare(number: int) -> None:
    """Do nothing."""


@app.task(base=LockedTask)
def locked(number: int) -> None:
    """Do nothing, under a lock named by all arguments."""


@app.task(base=LockedTask, lock_key="order:{number}")
def locked_keyed(number: int) -> None:
    """Do nothing, under a lock named by a template."""


@app.task(acks_late=True)
def bare_late(number: int) -> None:
    """Do nothing; acknowledged late."""


@app.task(base=LockedTask, acks_late=True)
def locked_late(number: int) -> None:
    """Do nothing, under a lock; acknowledged late, with a completion record."""
