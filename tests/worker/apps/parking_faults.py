"""Tasks that wait for their turn while something breaks."""

from __future__ import annotations

import time
from typing import Any

from celery.signals import task_received
from celery.worker.control import inspect_command

from celery_distlock import LockedTask
from celery_distlock.signals import lock_parked, lock_woken
from celery_distlock.worker.warden import Warden
from tests.support.apps import make_app
from tests.support.journal import record, running
from tests.worker.apps.faults_bodies import in_run, until_told

app = make_app(
    __name__,
    # A message that nobody refreshes is delivered again after two seconds, looked for every second.
    broker_transport_options={"visibility_timeout": 2, "unacked_restore_interval": 1, "unacked_restore_throttle": 1},
    worker_prefetch_multiplier=1,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    distlock_ttl=2.0,
)

WAIT: dict[str, Any] = {
    "base": LockedTask,
    "bind": True,
    "lock_key": "{key}",
    "lock_on_contention": "wait",
    "lock_retry_delay": 0.2,
    "acks_late": True,
    "reject_on_worker_lost": True,
}


@lock_parked.connect(weak=False)
def _parked(sender: Any, task_id: str | None, key: str, reason: str, **_: Any) -> None:
    record("parked", id=task_id, key=key, reason=reason)


@lock_woken.connect(weak=False)
def _woken(sender: Any, task_id: str | None, key: str, **_: Any) -> None:
    record("woken", id=task_id, key=key)


@app.task(**WAIT)
def work(self: Any, key: str, seconds: float = 0.0) -> str:
    """Hold the key for so long."""
    with in_run(self, key):
        time.sleep(seconds)
        self.lock.check()
    return key


@app.task(**WAIT)
def hold(self: Any, key: str) -> str:
    """Hold the key until the test says ``go``."""
    with in_run(self, key):
        until_told(key)
    return key


@app.task
def busy(gate: str) -> str:
    """Occupy a slot until the test says ``go``."""
    with running(gate):
        until_told(gate)
    return gate


@app.task
def unrelated(seconds: float = 0.0) -> None:
    """Have nothing to do with locks."""
    time.sleep(seconds)


@app.task
def jam(gate: str) -> str:
    """Be what the consumer's thread was occupied with."""
    return gate


@task_received.connect(weak=False)
def _occupy_the_consumer(request: Any = None, **_: Any) -> None:
    """Keep the consumer's thread busy until the test says ``go``."""
    if request.name == jam.name:
        gate = request.args[0]
        record("jammed", key=gate)
        until_told(gate)


@inspect_command()
def places(state: Any, **_: Any) -> dict[str, int]:
    """Tell what the worker's main process keeps for locked tasks."""
    warden = Warden.current
    assert warden is not None
    parking = warden.parking
    return {
        "cells": warden.arena.in_use,
        "parked": len(parking._parked),
        "called": len(parking._called),
        "climbers": len(parking._climbers),
    }
