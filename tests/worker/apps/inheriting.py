"""Tasks that retry themselves and keep their lock meanwhile, or do not."""

from __future__ import annotations

import time
from typing import Any

from celery_distlock import LockedTask
from tests.support.apps import make_app
from tests.support.journal import record, running
from tests.worker.apps.gates import wait_at_gate

app = make_app(__name__)

ONE_KEY: dict[str, Any] = {"base": LockedTask, "bind": True, "lock_key": "{key}", "lock_on_contention": "skip"}


@app.task(**ONE_KEY, lock_hold_on_retry=True, lock_ttl=1.0, acks_late=True)
def keeping(self: Any, key: str, retries: int, countdown: float) -> str:
    """Try so often, and keep the lock."""
    with running(key, id=self.request.id, owner=self.lock.owner, fence=self.lock.fence):
        pass
    if self.request.retries < retries:
        raise self.retry(countdown=countdown)
    return "done"


@app.task(**ONE_KEY, lock_hold_on_retry=True, lock_ttl=2.0, acks_late=True)
def gated(self: Any, key: str) -> str:
    """Try three times, and wait at the gate the second time."""
    retries = self.request.retries
    with running(key, id=self.request.id, retries=retries, owner=self.lock.owner):
        if retries == 1:
            wait_at_gate(key)
    if retries < 2:
        # A worker that is stopped would swallow what comes to a queue that it consumes.
        raise self.retry(countdown=5.0 * retries, queue="later" if retries else "celery")
    return "done"


@app.task(**ONE_KEY, lock_ttl=1.0)
def releasing(self: Any, key: str, retries: int, countdown: float) -> str:
    """Try so often, and release the lock in between."""
    if self.request.retries < retries:
        raise self.retry(countdown=countdown)
    return "done"


@app.task(**ONE_KEY)
def other(self: Any, key: str) -> str:
    """Want the same lock."""
    record("other", key=key, t0=time.monotonic())
    return "ran"
