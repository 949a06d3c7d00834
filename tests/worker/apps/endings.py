"""Tasks that end in every way a task can end."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from celery import Task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.signals import task_success
from celery.worker.request import Request

from celery_distlock import LockedTask
from celery_distlock.signals import lock_acquired, lock_lost, lock_released, lock_unsure
from tests.support.apps import make_app
from tests.support.journal import VARIABLE, Journal, record, running

app = make_app(__name__, worker_cancel_long_running_tasks_on_connection_loss=False)


def until_told(key: str) -> None:
    """Wait until the test writes ``go`` for this key."""
    Journal(Path(os.environ[VARIABLE])).wait_for("go", timeout=60, key=key)


def in_run(task: Any, key: str) -> Any:
    return running(key, id=task.request.id, owner=task.lock.owner, fence=task.lock.fence)


# -- bodies that end by themselves --------------------------------------------------------------------------------


@app.task(base=LockedTask, bind=True, lock_key="{key}")
def succeed(self: Any, key: str) -> str:
    with in_run(self, key):
        return key


@app.task(base=LockedTask, bind=True, lock_key="{key}", throws=(ValueError,))
def fail(self: Any, key: str) -> None:
    with in_run(self, key):
        raise ValueError(key)


@app.task(base=LockedTask, bind=True, lock_key="{key}", acks_late=True)
def succeed_late(self: Any, key: str) -> str:
    with in_run(self, key):
        return key


@app.task(base=LockedTask, bind=True, lock_key="{key}", acks_late=True, throws=(ValueError,))
def fail_late(self: Any, key: str) -> None:
    with in_run(self, key):
        raise ValueError(key)


@app.task(base=LockedTask, bind=True, lock_key="{key}")
def return_what_cannot_be_stored(self: Any, key: str) -> object:
    with in_run(self, key):
        return object()


@app.task(base=LockedTask, bind=True, lock_key="{key}", max_retries=3, lock_on_contention="fail")
def retry_once(self: Any, key: str) -> int:
    with in_run(self, key):
        if self.request.retries == 0:
            raise self.retry(countdown=0)
        return int(self.request.retries)


@app.task(
    base=LockedTask,
    bind=True,
    lock_key="{key}",
    autoretry_for=(OSError,),
    retry_backoff=False,
    default_retry_delay=0,
    lock_on_contention="fail",
)
def autoretry_once(self: Any, key: str) -> int:
    with in_run(self, key):
        if self.request.retries == 0:
            raise OSError(key)
        return int(self.request.retries)


@app.task(base=LockedTask, bind=True, lock_key="{key}")
def ignore(self: Any, key: str) -> None:
    with in_run(self, key):
        raise Ignore


@app.task(base=LockedTask, bind=True, lock_key="{key}")
def reject(self: Any, key: str) -> None:
    with in_run(self, key):
        raise Reject(key, requeue=False)


@app.task(base=LockedTask, bind=True, lock_key="{key}")
def exit_process(self: Any, key: str) -> None:
    with in_run(self, key):
        sys.exit(3)


@app.task(base=LockedTask, bind=True, lock_key="{key}", soft_time_limit=1.5, throws=(SoftTimeLimitExceeded,))
def exceed_soft_limit(self: Any, key: str) -> None:
    with in_run(self, key):
        until_told(key)


@app.task(base=LockedTask, bind=True, lock_key="{key}")
def call_another(self: Any, key: str) -> str:
    """Call another locked task as a function, on another key and on this one."""
    with in_run(self, key):
        other = succeed(f"{key}-inner")
        same = succeed(key)
        assert self.lock.held
        return f"{other} {same}"


# -- bodies that are ended ----------------------------------------------------------------------------------------


@app.task(base=LockedTask, bind=True, lock_key="{key}")
def hold(self: Any, key: str) -> str:
    """Hold the key until the test says ``go``."""
    with in_run(self, key):
        until_told(key)
    return key


@app.task(base=LockedTask, bind=True, lock_key="{key}")
def hold_and_check(self: Any, key: str) -> str:
    """As :func:`hold`, and stop as soon as the lock cannot be relied upon."""
    gone = Journal(Path(os.environ[VARIABLE]))
    with in_run(self, key):
        while not gone.entries("go", key=key):
            self.lock.check()
            time.sleep(0.02)
    return key


_all_together = threading.Event()


@app.task(base=LockedTask, bind=True, lock_key="{key}")
def hold_with_others(self: Any, key: str) -> None:
    """Hold the key until :func:`let_go` runs in this process: hundreds of threads that read a file are too many."""
    with in_run(self, key):
        _all_together.wait(60)


@app.task
def let_go() -> None:
    _all_together.set()


def asked(key: str) -> str:
    """Compute the key and tell that the store is about to be asked."""
    record("asking", key=key)
    return key


@app.task(base=LockedTask, bind=True, lock_key=asked)
def hold_once_asked(self: Any, key: str) -> str:
    with in_run(self, key):
        until_told(key)
    return key


@app.task(base=LockedTask, bind=True, lock_key="{key}")
def linger_after_success(self: Any, key: str) -> str:
    """Succeed; but what stands between the stored result and the release takes its time."""
    with in_run(self, key):
        return key


def _linger(sender: Task, result: str, **_: Any) -> None:
    if sender.name == linger_after_success.name:
        record("stored", key=result)
        until_told(result)


task_success.connect(_linger, weak=False)


@app.task(base=LockedTask, bind=True, lock_key="{key}", lock_on_lost="warn")
def hold_although_lost(self: Any, key: str) -> str:
    with in_run(self, key):
        until_told(f"{key}, although lost")
    return key


@app.task(base=LockedTask, bind=True, lock_key="{key}", lock_on_unsure="abort")
def hold_while_sure(self: Any, key: str) -> str:
    with in_run(self, key):
        until_told(key)
    return key


@app.task(base=LockedTask, bind=True, lock_key="{key}", acks_late=True)
def hold_late(self: Any, key: str) -> str:
    with in_run(self, key):
        until_told(key)
    return key


@app.task(base=LockedTask, bind=True, lock_key="{key}", lock_limit=2)
def hold_one_of_two(self: Any, key: str) -> str:
    with in_run(self, key):
        until_told(key)
    return key


@app.task(base=LockedTask, bind=True, lock_key="{key}")
def vanish(self: Any, key: str) -> None:
    """End the process as the kernel's out-of-memory killer does: no handler, no clean-up, status 137."""
    with in_run(self, key):
        until_told(key)
        os._exit(137)


@app.task(base=LockedTask, bind=True, lock_key="{key}")
def ignore_sigterm(self: Any, key: str) -> str:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with in_run(self, key):
        until_told(key)
    return key


@app.task(base=LockedTask, bind=True, lock_key="{key}")
def last(self: Any, key: str, seconds: float) -> str:
    with in_run(self, key):
        # The subject is a body that takes longer than its ttl.
        time.sleep(seconds)
    return key


@app.task(base=LockedTask, bind=True, lock_key="{key}")
def keep_the_gil(self: Any, key: str, seconds: float) -> str:
    """Let no other thread of this process run."""
    with in_run(self, key):
        ctypes.PyDLL(None).usleep(int(seconds * 1e6))
    return key


class OwnRequest(Request):
    """A request class of the user's, which knows nothing of locks."""


class OwnRequestTask(LockedTask):
    abstract = True
    Request = OwnRequest  # type: ignore[assignment]  # a class or its name, says Celery


@app.task(base=OwnRequestTask, bind=True, lock_key="{key}")
def last_with_own_request(self: Any, key: str, seconds: float) -> str:
    with in_run(self, key):
        time.sleep(seconds)
        self.lock.check()
        record("own", supervised="distlock" in self.request.properties)
    return str(self.Request.__name__)


@app.task
def unlocked(key: str) -> str:
    with running(key):
        until_told(key)
    return key


# -- what the signals say -----------------------------------------------------------------------------------------


def _note(name: str) -> Any:
    def note(sender: Task, key: str, task_id: str | None = None, **told: Any) -> None:
        # An acquired lock is told of as a whole, otherwise by its numbers.
        lock = told.get("lock")
        numbers = (lock.owner, lock.fence) if lock is not None else (told["owner"], told["fence"])
        record(name, task=sender.name, task_id=task_id, key=key, owner=numbers[0], fence=numbers[1])

    return note


for _name, _signal in (
    ("acquired", lock_acquired),
    ("released", lock_released),
    ("unsure", lock_unsure),
    ("lost", lock_lost),
):
    _signal.connect(_note(_name), weak=False)
