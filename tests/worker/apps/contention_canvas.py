"""Tasks for canvases: one that is skipped when its key is held, and bare ones around it."""

from __future__ import annotations

from typing import Any

from celery_distlock import LockedTask
from tests.support.apps import make_app
from tests.support.journal import record, running
from tests.worker.apps.gates import wait_at_gate

app = make_app(__name__)


@app.task(base=LockedTask, bind=True, lock_key="{key}", lock_on_contention="skip", lock_skip_result="skipped")
def skipping(self: Any, key: str) -> str:
    record("ran", task="skipping", key=key)
    return key


@app.task(base=LockedTask, bind=True, lock_key="{key}", lock_on_contention="skip", lock_skip_result="skipped")
def skipping_link(self: Any, before: Any, key: str) -> str:
    record("ran", task="skipping_link", key=key)
    return key


@app.task(
    base=LockedTask,
    bind=True,
    lock_key="{key}",
    lock_on_contention="skip",
    lock_skip_result="skipped",
    lock_skip_chain="continue",
)
def passing(self: Any, key: str) -> str:
    record("ran", task="passing", key=key)
    return key


@app.task(base=LockedTask, bind=True, lock_key="{key}")
def hold(self: Any, key: str) -> str:
    with running(key, id=self.request.id):
        wait_at_gate(key)
    return key


@app.task
def first(key: str) -> str:
    record("ran", task="first", key=key)
    return key


@app.task
def link(before: Any, key: str) -> Any:
    record("ran", task="link", key=key)
    return before
