"""An application that names tasks to be locked which it does not have."""

from __future__ import annotations

from celery_distlock import lock_tasks
from tests.support.apps import make_app

app = make_app(__name__)
lock_tasks(app, {"no.such.*": {}})


@app.task
def work() -> None:
    """Do nothing."""
