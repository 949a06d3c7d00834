"""An entry that is due every second; whoever publishes it says so."""

from __future__ import annotations

from typing import Any

from celery.schedules import schedule
from celery.signals import after_task_publish

from celery_distlock import LockedTask
from tests.support.apps import make_app
from tests.support.journal import record

# Celery counts a plain interval from the last run, which is a little late each time: by that it loses a run in some
# minutes, on a busy machine.
EVERY_SECOND = schedule(1.0, relative=True)

app = make_app(
    __name__,
    distlock_beat_scheduler="celery.beat:Scheduler",
    distlock_beat_ttl=2.0,
    beat_schedule={
        "led": {"task": f"{__name__}.led", "schedule": EVERY_SECOND},
        "unique": {"task": f"{__name__}.unique", "schedule": EVERY_SECOND},
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
