"""Tasks whose messages are delivered again, and those that end in every way a late acknowledgement can follow."""

from __future__ import annotations

import time
from typing import Any

from celery.exceptions import Ignore, Reject
from celery.worker.request import Request

from celery_distlock import LockedTask
from tests.support.apps import make_app
from tests.support.journal import record, running
from tests.worker.apps.faults_bodies import in_run, told, until_told

#: A message that nobody refreshes is delivered again after two seconds, looked for every second.
VISIBILITY = {"visibility_timeout": 2, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}

app = make_app(
    __name__,
    broker_transport_options=VISIBILITY,
    worker_prefetch_multiplier=1,
    worker_cancel_long_running_tasks_on_connection_loss=False,
)


@app.task(base=LockedTask, bind=True, lock_key="{key}", acks_late=True)
def hold(self: Any, key: str) -> str:
    """Hold the key until the test says ``go``."""
    with in_run(self, key):
        until_told(key)
    return key


@app.task(base=LockedTask, bind=True, lock_key="{key}", acks_late=True, lock_ttl=1.0)
def hold_briefly(self: Any, key: str) -> str:
    """As :func:`hold`, with a ttl that a test can wait for."""
    with in_run(self, key):
        until_told(key)
    return key


@app.task(base=LockedTask, bind=True, lock_key="{key}")
def hold_early(self: Any, key: str) -> str:
    """As :func:`hold`, acknowledged before it runs."""
    with in_run(self, key):
        until_told(key)
    return key


@app.task(base=LockedTask, bind=True, lock_key="{key}", acks_late=True, lock_limit=2)
def hold_one_of_two(self: Any, key: str) -> str:
    with in_run(self, key):
        until_told(key)
    return key


class OwnRequest(Request):
    """A request class of the user's, which knows nothing of locks."""


class OwnRequestTask(LockedTask):
    abstract = True
    Request = OwnRequest


@app.task(base=OwnRequestTask, bind=True, lock_key="{key}", acks_late=True)
def hold_with_own_request(self: Any, key: str) -> str:
    with in_run(self, key):
        until_told(key)
    return key


# The subject of these is real time: a body longer than the visibility timeout.


@app.task(base=LockedTask, bind=True, lock_key="{key}", acks_late=True, lock_retry_delay=0.2)
def last(self: Any, key: str, seconds: float) -> str:
    with in_run(self, key):
        time.sleep(seconds)
    return key


@app.task(bind=True, acks_late=True)
def bare(self: Any, key: str, seconds: float) -> str:
    """As :func:`last`, without a lock."""
    with running(key, id=self.request.id):
        time.sleep(seconds)
    return key


@app.task(bind=True, acks_late=True)
def hold_bare(self: Any, key: str) -> str:
    """As :func:`hold`, without a lock."""
    with running(key, id=self.request.id):
        until_told(key)
    return key


@app.task
def unrelated(key: str) -> str:
    record("unrelated", key=key)
    return key


# -- endings after which the message is acknowledged ----------------------------------------------------------------


@app.task(base=LockedTask, bind=True, lock_key="{key}", acks_late=True, throws=(ValueError,))
def fail(self: Any, key: str) -> None:
    with in_run(self, key):
        until_told(key)
        raise ValueError(key)


@app.task(base=LockedTask, bind=True, lock_key="{key}", acks_late=True, max_retries=3)
def retry_once(self: Any, key: str) -> str:
    with in_run(self, key):
        until_told(key)
        if self.request.retries == 0:
            raise self.retry(countdown=0)
    return key


@app.task(base=LockedTask, bind=True, lock_key="{key}", acks_late=True)
def ignore(self: Any, key: str) -> None:
    with in_run(self, key):
        until_told(key)
        raise Ignore


# -- endings that do not settle the message ------------------------------------------------------------------------


@app.task(base=LockedTask, bind=True, lock_key="{key}", acks_late=True)
def put_back(self: Any, key: str) -> str:
    """Put the message back until the test says ``enough``."""
    with in_run(self, key):
        until_told(key)
        if not told("enough", key):
            raise Reject(key, requeue=True)
    return key


@app.task(base=LockedTask, bind=True, lock_key="{key}", acks_late=True)
def drop(self: Any, key: str) -> None:
    """Reject the message for good; where dead letters are kept, it becomes one."""
    with in_run(self, key):
        until_told(key)
        raise Reject(key, requeue=False)


@app.task(
    base=LockedTask,
    bind=True,
    lock_key="{key}",
    acks_late=True,
    acks_on_failure_or_timeout=False,
    throws=(ValueError,),
)
def fail_unacknowledged(self: Any, key: str) -> str:
    with in_run(self, key):
        until_told(key)
        if not told("enough", key):
            raise ValueError(key)
    return key
