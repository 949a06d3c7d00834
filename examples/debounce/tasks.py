"""An index that is to be brought up to date after a document was saved. For each save, and once for all of them."""

from __future__ import annotations

from typing import Any

import redis
from celery import Celery

from celery_distlock import LockedTask
from celery_distlock.signals import unique_superseded
from examples.support.address import REDIS_URL

QUIET = 2.0

app = Celery("debounce", broker=REDIS_URL, backend=REDIS_URL)
app.conf.task_default_queue = "debounce"

work = redis.Redis.from_url(REDIS_URL, decode_responses=True)


@app.task
def index_each(document: str, revision: int) -> None:
    """Index a revision, for every save."""
    work.rpush(f"each:{document}", revision)


# The newest call takes the place of the one that is still waiting for its countdown.
@app.task(base=LockedTask, lock_key="index:{document}", unique_while="queued", on_duplicate="replace", acks_late=True)
def index_latest(document: str, revision: int) -> None:
    """Index a revision, once the document has been quiet for a while."""
    work.rpush(f"latest:{document}", revision)


@unique_superseded.connect
def count_superseded(**_: Any) -> None:
    """Count what did not run."""
    work.incr("superseded")


def save(document: str, revision: int) -> None:
    """Save the document, and have it indexed in both ways."""
    index_each.apply_async((document, revision), countdown=QUIET)
    index_latest.apply_async((document, revision), countdown=QUIET)
