"""Tasks whose locks are held for a shortest, or for a longest time."""

from __future__ import annotations

import time
from typing import Any

from celery_distlock import LockedTask, LockLost
from celery_distlock.signals import lock_acquired, lock_lost
from tests.support.apps import make_app
from tests.support.journal import record, running

app = make_app(__name__)


@lock_acquired.connect(weak=False)
def _acquired(sender: Any, task_id: str | None, key: str, **_: Any) -> None:
    record("acquired", key=key, id=task_id)


@lock_lost.connect(weak=False)
def _lost(sender: Any, task_id: str | None, key: str, **_: Any) -> None:
    record("lost", key=key, id=task_id)


def asked(key: str, *_: Any, **__: Any) -> str:
    """Compute the key and tell that the store is about to be asked: it cannot have granted the lock before."""
    record("asking", key=key)
    return key


@app.task(base=LockedTask, bind=True, lock_key=asked, lock_min_hold=1.0, lock_retry_delay=0.05, max_retries=1)
def quick(self: Any, key: str, outcome: str = "success") -> int:
    with running(key, id=self.request.id):
        if outcome == "fail":
            raise ValueError(outcome)
        if outcome == "retry" and not self.request.retries:
            raise self.retry(countdown=0)
    return int(self.request.retries)


@app.task(base=LockedTask, lock_key="{key}", lock_min_hold=30.0)
def resting(key: str) -> str:
    """Keep the lock for longer than any test waits."""
    return key


@app.task(base=LockedTask, bind=True, lock_key=asked, lock_max_hold=1.0, lock_ttl=1.0)
def stuck(self: Any, key: str, seconds: float = 30.0, check: bool = False) -> None:
    with running(key, id=self.request.id):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.02)
            if check:
                try:
                    self.lock.check()
                except LockLost as error:
                    record("noticed", key=key, reason=error.reason, held=self.lock.held)
                    raise


@app.task(base=LockedTask, lock_key="{key}", lock_retry_delay=0.05)
def plain(key: str) -> str:
    with running(key):
        return key
