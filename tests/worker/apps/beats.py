"""An entry that is due every second; whoever publishes it says so."""

from __future__ import annotations

from typing import Any

from celery.signals import after_task_publish

from celery_distlock import LockedTask
from tests.support.apps import make_app
from tests.support.journal import record

app = make_app(
    __name__,
    distlock_beat_scheduler="celery.beat:Scheduler",
    distlock_beat_ttl=2.0,
    beat_schedule={
        "led": {"task": f"{__name__}.led", "schedule": 1.0},
        "unique": {"task": f"{__name__}.unique", "schedule": 1.0},
    },
)


@app.task(base=LockedTask)
def led() -> None:
    """Do nothing."""


@app.task(base=LockedTask, beat_unique_tick=True)
def unique() -> None:
    """Do nothing."""


@after_task_publish.connect(weak=False)
def _published(sender: str, headers: dict[str, Any], **_: Any) -> None:
    record("published", name=sender.rpartition(".")[2], id=headers["id"])
