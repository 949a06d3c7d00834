"""The tasks of the smoke tests; the plugin copies this file into the workers."""

import time
from typing import Any

from celery import shared_task
from celery.utils.log import get_task_logger

from celery_distlock import LockedTask

log = get_task_logger(__name__)


@shared_task(base=LockedTask, bind=True, acks_late=True, lock_key=("order",), lock_ttl=2.0)
def charge(self: Any, order: str) -> dict[str, Any]:
    """Return the name of the node that ran this, and the fence of the lock it held."""
    log.warning("charging %s", order)
    return {"node": self.request.hostname, "fence": self.lock.fence}


@shared_task(base=LockedTask, bind=True, acks_late=True, lock_key=("order",), lock_ttl=2.0)
def charge_slowly(self: Any, order: str) -> dict[str, Any]:
    """As :func:`charge`, but hang on the first delivery."""
    log.warning("charging %s", order)
    if not self.request.delivery_info.get("redelivered"):
        time.sleep(60)
    return {"node": self.request.hostname, "fence": self.lock.fence}
