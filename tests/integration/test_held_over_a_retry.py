"""``lock_hold_on_retry``: for how long a lock is kept, of whatever a retry's delay is made."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from celery.app.trace import build_tracer

from celery_distlock import Lock, LockedTask
from celery_distlock.stores.of_app import forget_store

DELAY = timedelta(seconds=60.0)


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("kept", broker=f"memory://{uuid.uuid4().hex}", backend="cache+memory://", set_as_current=False)
    # Far from UTC, which a moment without a time zone is meant in.
    app.conf.update(distlock_url=f"memory://{uuid.uuid4().hex}", timezone="Asia/Tokyo")
    yield app
    forget_store(app)
    app.close()


@pytest.mark.parametrize(
    "delay",
    [
        lambda: {"countdown": 60},
        lambda: {"eta": datetime.now(timezone.utc) + DELAY},
        lambda: {"eta": (datetime.now(timezone.utc) + DELAY).astimezone(timezone(timedelta(hours=5)))},
        lambda: {"eta": (datetime.now(timezone.utc) + DELAY).replace(tzinfo=None)},
        lambda: {"eta": (datetime.now(timezone.utc) + DELAY).isoformat()},
    ],
    ids=["countdown", "aware", "elsewhere", "naive", "text"],
)
def test_it_is_kept_for_the_delay_and_a_ttl(app: Celery, delay: Any) -> None:
    @app.task(base=LockedTask, bind=True, shared=False, lock_key="k", lock_ttl=30.0, lock_hold_on_retry=True)
    def subject(self: Any) -> None:
        raise self.retry(**delay())

    with app:
        build_tracer(subject.name, subject, app=app)("id", (), {}, {"id": "id", "delivery_info": {}})
    [holder] = Lock("k", app=app).holders()
    assert 85.0 < holder["remaining"] <= 90.0
