"""The application of the lab's workers: one task for each policy, all of them on the key that is their argument."""

from __future__ import annotations

import time
from typing import Any

from celery_distlock import LockedTask
from celery_distlock.signals import lock_lost, lock_unsure
from tests.lab import history, setting
from tests.lab.belief import believing
from tests.lab.effects import Lists
from tests.support.apps import make_app

app = make_app(__name__, task_remote_tracebacks=False, worker_cancel_long_running_tasks_on_connection_loss=False)
setting.begin()

LATE: dict[str, Any] = {"acks_late": True, "reject_on_worker_lost": True}
WAIT: dict[str, Any] = {"lock_on_contention": "wait", **LATE}
QUICK: dict[str, Any] = {"lock_retry_delay": 0.1, "lock_retry_backoff_max": 0.5}


@lock_lost.connect(weak=False)
def _lost(sender: Any, task_id: str | None, key: str, owner: str, **_: Any) -> None:
    if history.recording():
        history.note("lost", key=key, owner=owner, id=task_id)


@lock_unsure.connect(weak=False)
def _unsure(sender: Any, task_id: str | None, key: str, owner: str, **_: Any) -> None:
    if history.recording():
        history.note("unsure", key=key, owner=owner, id=task_id)


def _work(task: Any, key: str, seconds: float, limit: int = 1) -> None:
    lock = task.lock
    with believing(
        lock, key, lock.owner, lock.fence, limit, role=setting.role(), task=task.name, id=task.request.id
    ) as it:
        if limit > 1:
            it.hold(seconds)
            return
        lists = Lists(key, lock.fence)
        it.hold(seconds)
        lists.write("plain")
        lists.write("fenced")
        lock.check()
        lists.write("checked")


@app.task(base=LockedTask, bind=True, lock_key="{key}", **WAIT)
def waiting(self: Any, key: str, seconds: float) -> None:
    """Stand in line."""
    _work(self, key, seconds)


@app.task(base=LockedTask, bind=True, lock_key="{key}", **QUICK)
def retrying(self: Any, key: str, seconds: float) -> None:
    """Come back later."""
    _work(self, key, seconds)


@app.task(base=LockedTask, bind=True, lock_key="{key}", lock_on_contention="skip")
def skipping(self: Any, key: str, seconds: float) -> None:
    """Do without."""
    _work(self, key, seconds)


@app.task(base=LockedTask, bind=True, lock_key="{key}", lock_limit=2, **WAIT)
def sharing(self: Any, key: str, seconds: float) -> None:
    """Be one of two."""
    _work(self, key, seconds, limit=2)


@app.task(base=LockedTask, bind=True, lock_key="{key}", **QUICK)
def stubborn(self: Any, key: str, seconds: float) -> None:
    """Do not stop when told to."""
    end = time.monotonic() + seconds
    lock = self.lock
    with believing(lock, key, lock.owner, lock.fence, role=setting.role(), task=self.name, id=self.request.id) as it:
        while (left := end - time.monotonic()) > 0:
            try:
                it.hold(left)
            except SystemExit:
                history.note("did not stop", key=key, owner=lock.owner)
