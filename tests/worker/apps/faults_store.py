"""Tasks that tell what they see of their lock while its store misbehaves."""

from __future__ import annotations

import time
from typing import Any

from celery import Task

from celery_distlock import LockedTask
from celery_distlock.signals import lock_acquired, lock_lost, lock_released, lock_unsure
from tests.support.apps import make_app
from tests.support.journal import record
from tests.worker.apps.faults_bodies import in_run, told, until_told

app = make_app(__name__, worker_prefetch_multiplier=1)


@app.task(base=LockedTask, bind=True, lock_key="{key}", lock_ttl=1.0, lock_retry_delay=0.2, lock_retry_backoff_max=0.5)
def work(self: Any, key: str) -> str:
    """Hold the key until the test says ``go``, and record when the lock begins and ceases to be held."""
    with in_run(self, key):
        held = None
        while not told("go", key):
            if self.lock.held is not held:
                held = self.lock.held
                record("held" if held else "not held", key=key, id=self.request.id)
            # There is no event to wait for: the lock is what is watched.
            time.sleep(0.02)
    return key


@app.task(base=LockedTask, bind=True, lock_key="{key}", lock_ttl=2.0, lock_retry_delay=0.1, lock_retry_backoff_max=0.2)
def brief(self: Any, key: str) -> str:
    with in_run(self, key):
        return key


@app.task(base=LockedTask, bind=True, lock_key="{key}", lock_ttl=2.0, lock_retry_delay=0.1, lock_retry_backoff_max=0.2)
def hold(self: Any, key: str) -> str:
    with in_run(self, key):
        until_told(key)
    return key


@app.task(base=LockedTask, lock_key="{key}")
def plain(key: str) -> None:
    pass


@app.task(base=LockedTask, lock_key="{key}", acks_late=True)
def plain_late(key: str) -> None:
    pass


def _note(name: str) -> Any:
    def note(sender: Task, **told: Any) -> None:
        # Without the two tasks that run by the thousand.
        if not sender.name.rpartition(".")[2].startswith("plain"):
            record(name, key=told["key"], id=told["task_id"])

    return note


_receivers = [
    (lock_acquired, _note("acquired")),
    (lock_released, _note("released")),
    (lock_unsure, _note("unsure")),
    (lock_lost, _note("lost")),
]
for _signal, _receiver in _receivers:
    _signal.connect(_receiver, weak=False)
