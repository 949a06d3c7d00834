"""A worker's process that is held up when it stores that a task is retried."""

from __future__ import annotations

from typing import Any

from celery.signals import after_task_publish

from celery_distlock import LockedTask
from tests.support.apps import make_app
from tests.support.journal import record
from tests.worker.apps.faults_bodies import until_told

app = make_app(__name__)
_store = app.backend.mark_as_retry


def _late(task_id: str, *args: Any, **kwargs: Any) -> Any:
    record("storing", id=task_id)
    until_told("store")
    return _store(task_id, *args, **kwargs)


app.backend.mark_as_retry = _late


@app.task(base=LockedTask, lock_key="{key}", lock_retry_delay=0.1, lock_retry_backoff_max=0.1, lock_timeout=1.0)
def work(key: str) -> str:
    return key


@after_task_publish.connect(weak=False)
def _published(headers: dict[str, Any], **_: Any) -> None:
    if app.current_worker_task is not None:
        record("published", id=headers["id"])
