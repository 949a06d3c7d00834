"""A task whose lock is taken away."""

from __future__ import annotations

import time
from typing import Any

from celery_distlock import LockedTask
from tests.support.apps import make_app
from tests.support.journal import running

app = make_app(__name__)


@app.task(base=LockedTask, bind=True, lock_key="order:{order_id}", lock_ttl=1.0)
def charge(self: Any, order_id: int, seconds: float) -> None:
    with running(f"order:{order_id}", id=self.request.id):
        time.sleep(seconds)
