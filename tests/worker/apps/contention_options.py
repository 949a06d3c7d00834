"""Tasks that tell under which options they run."""

from __future__ import annotations

from typing import Any

from celery_distlock import LockedTask
from celery_distlock.signals import lock_contended
from tests.support.apps import make_app
from tests.support.journal import record, running
from tests.worker.apps.gates import wait_at_gate

app = make_app(__name__)


@lock_contended.connect(weak=False)
def _contended(sender: Any, task_id: str | None, key: str, holder: Any, policy: str, **_: Any) -> None:
    record("contended", key=key, id=task_id, policy=policy)


def _told(task: Any) -> dict[str, Any]:
    lock = task.lock
    return {"key": lock and lock.key, "ttl": lock and lock.ttl, "retries": task.request.retries}


@app.task(base=LockedTask, bind=True, lock_key="{key}", lock_on_contention="fail", lock_ttl=20.0, max_retries=3)
def tell(self: Any, key: str, own_retries: int = 0) -> dict[str, Any]:
    told = _told(self)
    record("told", id=self.request.id, **told)
    if self.request.retries < own_retries:
        raise self.retry(countdown=0)
    return told


@app.task(base=LockedTask, bind=True, lock_key="{key}")
def hold(self: Any, key: str) -> str:
    with running(key, id=self.request.id):
        wait_at_gate(key)
    return key


@app.task(
    base=LockedTask, bind=True, lock_retry_delay=0.05, lock_key=lambda key, *_, **__: None if key == "none" else key
)
def computed(self: Any, key: str, more: int = 0) -> dict[str, Any]:
    return _told(self)


@app.task(bind=True)
def bare(self: Any) -> str:
    return "bare"
