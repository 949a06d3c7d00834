"""Selling a ticket: read the stock, think, write it back. Twice: as it is often written, and under a lock."""

from __future__ import annotations

import time

import redis
from celery import Celery

from celery_distlock import LockedTask
from examples.support.address import REDIS_URL

app = Celery("flash_sale", broker=REDIS_URL, backend=REDIS_URL)
app.conf.task_default_queue = "flash_sale"

shop = redis.Redis.from_url(REDIS_URL, decode_responses=True)


def sell(event: str, buyer: str) -> str:
    """Sell a ticket, in the way that is wrong when two buyers come at once."""
    left = int(shop.get(f"{event}:left") or 0)
    if left == 0:
        return "sold out"
    time.sleep(0.1)  # the payment; meanwhile others have read the same number
    shop.set(f"{event}:left", left - 1)
    shop.rpush(f"{event}:sold", buyer)
    return "sold"


@app.task
def buy_unlocked(event: str, buyer: str) -> str:
    """Sell a ticket to whoever asks."""
    return sell(event, buyer)


# One event, one lock: sales of other events go on meanwhile. Who finds it taken is run again a moment later.
@app.task(base=LockedTask, lock_key="sale:{event}", lock_retry_delay=0.1, lock_retry_backoff_max=0.4)
def buy_locked(event: str, buyer: str) -> str:
    """Sell a ticket, one at a time."""
    return sell(event, buyer)
