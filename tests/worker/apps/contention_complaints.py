"""Tasks as the users of other libraries wrote them when they complained."""

from __future__ import annotations

from typing import Any

from celery_distlock import LockedTask
from celery_distlock.signals import lock_skipped
from tests.support.apps import make_app
from tests.support.journal import record, running
from tests.worker.apps.gates import wait_at_gate

app = make_app(__name__)

ONCE = {
    "base": LockedTask,
    "bind": True,
    "lock_key": "{key}",
    "lock_on_contention": "skip",
    "lock_skip_result": "skipped",
    "lock_retry_delay": 0.05,
    "lock_retry_backoff_max": 0.1,
}


@lock_skipped.connect(weak=False)
def _skipped(sender: Any, task_id: str | None, key: str, holder: Any, **_: Any) -> None:
    record("skipped", key=key, id=task_id, holder=(holder or {}).get("id"))


@app.task(**ONCE)
def hold(self: Any, key: str) -> str:
    with running(key, id=self.request.id):
        wait_at_gate(key)
    return "held"


@app.task(**ONCE, max_retries=5)
def once(self: Any, key: str, own_retries: int = 0) -> str:
    with running(key, id=self.request.id):
        if self.request.retries < own_retries:
            raise self.retry(countdown=0)
        return "done"


@app.task(**ONCE)
def add(self: Any, before: Any, key: str) -> str:
    return f"{before}+{key}"


@app.task(base=LockedTask, bind=True)
def keyed(self: Any, first: Any, second: Any = 2, *, third: Any = None) -> str:
    return str(self.lock.key)


@app.task(base=LockedTask)
def keyed_without_self(first: Any, second: Any = 2) -> str:
    from celery_distlock import current_lock

    lock = current_lock()
    assert lock is not None
    return lock.key


@app.task(base=LockedTask, lock_key="division")
def divide(dividend: int, divisor: int) -> float:
    return dividend / divisor
