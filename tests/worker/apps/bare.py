"""Tasks without a lock, for the tests of the harness itself."""

from __future__ import annotations

import time
from typing import Any

from tests.support.apps import make_app
from tests.support.journal import record, running

app = make_app(__name__)


@app.task
def add(a: int, b: int) -> int:
    return a + b


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
def work(self: Any, key: str, seconds: float = 0.0) -> str:
    with running(key, id=self.request.id):
        time.sleep(seconds)
    return key


@app.task
def fail() -> None:
    record("failing")
    raise RuntimeError("on purpose")
