"""An entry that is due every second, kept by a scheduler that is somebody else's: in a database, or in Redis."""

from __future__ import annotations

import os
from typing import Any

from celery.signals import after_task_publish

from celery_distlock import LockedTask
from tests.support.apps import make_app
from tests.support.journal import record

SCHEDULER = os.environ["LED_SCHEDULER"]
DATABASE = os.environ["LED_DATABASE"]

if SCHEDULER.startswith("django"):
    import django
    from django.conf import settings

    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": DATABASE}},
        INSTALLED_APPS=["django.contrib.contenttypes", "django_celery_beat"],
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        USE_TZ=True,
    )
    django.setup()

app = make_app(
    __name__,
    distlock_beat_scheduler=SCHEDULER,
    distlock_beat_ttl=2.0,
    redbeat_redis_url=DATABASE,
    beat_schedule={"led": {"task": f"{__name__}.led", "schedule": 1.0}},
)


@app.task(base=LockedTask)
def led() -> None:
    """Do nothing."""


@after_task_publish.connect(weak=False)
def _published(sender: str, headers: dict[str, Any], **_: Any) -> None:
    record("published", name=sender.rpartition(".")[2], id=headers["id"])


if __name__ == "__main__":
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
