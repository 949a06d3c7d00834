"""Tasks that wait for their turn."""

from __future__ import annotations

import time
from typing import Any

from celery_distlock import LockedTask
from celery_distlock.signals import lock_parked, lock_woken
from tests.support.apps import make_app
from tests.support.journal import record, running
from tests.worker.apps.gates import wait_at_gate

app = make_app(__name__)

WAIT: dict[str, Any] = {
    "base": LockedTask,
    "bind": True,
    "lock_key": "{key}",
    "lock_on_contention": "wait",
    "acks_late": True,
    "reject_on_worker_lost": True,
}


@lock_parked.connect(weak=False)
def _parked(sender: Any, task_id: str | None, key: str, reason: str, **_: Any) -> None:
    record("parked", id=task_id, key=key, reason=reason)


@lock_woken.connect(weak=False)
def _woken(sender: Any, task_id: str | None, key: str, **_: Any) -> None:
    record("woken", id=task_id, key=key)


@app.task(**WAIT)
def work(self: Any, key: str, seconds: float = 0.0, number: int = 0) -> int:
    """Hold the key for so long."""
    with running(key, id=self.request.id, owner=self.lock.owner, fence=self.lock.fence, number=number):
        time.sleep(seconds)
        self.lock.check()
    return number


@app.task(**WAIT)
def hold(self: Any, key: str) -> str:
    """Hold the key until somebody opens the gate."""
    with running(key, id=self.request.id, owner=self.lock.owner, fence=self.lock.fence, number=-1):
        wait_at_gate(key)
    return key


@app.task
def busy(gate: str) -> None:
    """Occupy a slot until somebody opens the gate."""
    with running(f"busy-{gate}"):
        wait_at_gate(gate)


@app.task
def unrelated(seconds: float = 0.0) -> None:
    """Have nothing to do with locks."""
    time.sleep(seconds)


@app.task(**WAIT, track_started=True)
def tracked(self: Any, key: str) -> str:
    """Have its state followed."""
    with running(key, id=self.request.id):
        return "ran"


@app.task(**{**WAIT, "lock_on_contention": lambda task, contention: "wait"})
def choosy(self: Any, key: str) -> str:
    """Choose to wait."""
    with running(key, id=self.request.id):
        return "ran"


@app.task(**{**WAIT, "acks_late": False, "reject_on_worker_lost": False, "lock_on_contention": lambda *_: "wait"})
def early(self: Any, key: str) -> str:
    """Choose to wait, without a message to park."""
    with running(key, id=self.request.id):
        return "ran"


class Hooked(LockedTask):
    """Tells of its failure."""

    abstract = True

    def on_failure(self, exc: Exception, task_id: str, *_: Any) -> None:
        record("failed", id=task_id, error=type(exc).__name__)


@app.task(**{**WAIT, "base": Hooked})
def hooked(self: Any, key: str) -> str:
    """Tell of its failure."""
    with running(key, id=self.request.id):
        return "ran"
