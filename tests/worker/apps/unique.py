"""Unique tasks. A body waits at the gate of its key, unless it is told not to."""

from __future__ import annotations

import os
from typing import Any

from celery_distlock import LockedTask
from celery_distlock.signals import lock_contended, unique_superseded
from tests.support.apps import make_app
from tests.support.journal import record, running
from tests.worker.apps.gates import wait_at_gate

app = make_app(__name__, worker_prefetch_multiplier=1)


@lock_contended.connect(weak=False)
def _contended(sender: Any, task_id: str | None, key: str, **_: Any) -> None:
    record("contended", key=key, id=task_id)


@unique_superseded.connect(weak=False)
def _superseded(sender: Any, task_id: str, key: str, by: str | None, **_: Any) -> None:
    record("superseded", key=key, id=task_id, by=by)


def _work(task: Any, key: str, note: str = "", gate: bool = True) -> str:
    with running(key, id=task.request.id, note=note, retries=task.request.retries):
        if gate:
            wait_at_gate(key)
    return note


class Starting(LockedTask):
    """Tells its process before it is called, and may wait at the gate there."""

    abstract = True

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        record("starting", key=args[0], id=task_id, pid=os.getpid())
        if kwargs.get("gate", True):
            wait_at_gate(args[0])


def _task(name: str, **options: Any) -> Any:
    defaults = {"base": LockedTask, "lock_key": "{key}", "unique_ttl": 60.0, "lock_ttl": 3.0, "lock_retry_delay": 0.1}
    return app.task(bind=True, name=name, **{**defaults, **options})(_work)


queued = _task("queued", unique_while="queued")
running_too = _task("running_too", unique_while="queued_or_running")
late = _task("late", unique_while="queued_or_running", acks_late=True)
unlocked = _task("unlocked", lock_key=lambda *_, **__: None, unique_key="{key}", unique_while="queued_or_running")
replaced = _task("replaced", unique_while="queued", on_duplicate="replace")
rerun = _task("rerun", unique_while="queued_or_running", on_duplicate="rerun")
picky = _task("picky", unique_key=lambda key, *_: str(key["id"]), unique_while="queued")
starting_queued = _task("starting_queued", base=Starting, unique_while="queued")
starting_running = _task("starting_running", base=Starting, unique_while="queued_or_running")
skipped = _task("skipped", unique_while="queued_or_running", lock_on_contention="skip")
failing = _task("failing", unique_while="queued_or_running", lock_on_contention="fail")


@app.task(base=LockedTask, bind=True, lock_key="{key}", unique_while="queued_or_running", lock_ttl=3.0, max_retries=1)
def retried(self: Any, key: str) -> int:
    """Wait at the gate, be retried once after a while, and wait again."""
    _work(self, key)
    if not self.request.retries:
        raise self.retry(countdown=2.0)
    return int(self.request.retries)


@app.task(base=LockedTask, bind=True, lock_key="{key}")
def hold(self: Any, key: str) -> None:
    """Be another task of the same lock."""
    with running(key, id=self.request.id):
        wait_at_gate(key)


waiting = _task(
    "waiting", unique_while="queued_or_running", acks_late=True, lock_on_contention="wait", lock_timeout=1.0
)
waiting_rerun = _task(
    "waiting_rerun", unique_while="queued_or_running", on_duplicate="rerun", acks_late=True, lock_on_contention="wait"
)
