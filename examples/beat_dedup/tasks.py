"""A report that takes three times as long as the interval at which beat asks for it. Without and with a lock.

And a short job, of which two beats publish each tick twice, or once.
"""

from __future__ import annotations

import time
from typing import Any

import redis
from celery import Celery

from celery_distlock import LockedTask
from celery_distlock.signals import lock_skipped
from examples.support.address import REDIS_URL

INTERVAL = 0.3

app = Celery("beat_dedup", broker=REDIS_URL, backend=REDIS_URL)
app.conf.task_default_queue = "beat_dedup"
app.conf.beat_schedule = {
    "unlocked": {"task": "examples.beat_dedup.tasks.report_unlocked", "schedule": INTERVAL},
    "locked": {"task": "examples.beat_dedup.tasks.report_locked", "schedule": INTERVAL},
    "each": {"task": "examples.beat_dedup.tasks.each_tick", "schedule": INTERVAL},
    "unique": {"task": "examples.beat_dedup.tasks.unique_tick", "schedule": INTERVAL},
}

counters = redis.Redis.from_url(REDIS_URL, decode_responses=True)


def make_report(kind: str) -> str:
    """Make the report, and count how many are being made at once."""
    at_once = counters.incr(f"{kind}:running")
    counters.rpush(f"{kind}:at_once", at_once)
    time.sleep(3 * INTERVAL)
    counters.decr(f"{kind}:running")
    counters.incr(f"{kind}:made")
    return "made"


@app.task
def report_unlocked() -> str:
    """Make the report, whoever else does."""
    return make_report("unlocked")


# "skip": the result is a success that says so; a run that was not needed is no error, and nobody's pager rings.
@app.task(base=LockedTask, lock_on_contention="skip", lock_skip_result="skipped")
def report_locked() -> str:
    """Make the report, unless it is being made."""
    return make_report("locked")


@app.task
def each_tick() -> None:
    """Count how often beats ask for it."""
    counters.incr("each:ticks")


@app.task(base=LockedTask, beat_unique_tick=True)
def unique_tick() -> None:
    """Count the ticks, however many beats there are."""
    counters.incr("unique:ticks")


@lock_skipped.connect
def count_skipped(holder: dict[str, Any], **_: Any) -> None:
    """Count what was skipped; ``holder`` says which task is making the report."""
    counters.rpush("locked:skipped_for", holder["id"])
