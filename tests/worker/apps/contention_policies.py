"""Tasks of every policy, all of them on the key that is their first argument."""

from __future__ import annotations

import time
from typing import Any

from celery_distlock import Contention, LockedTask
from celery_distlock.signals import lock_acquired, lock_contended, lock_skipped
from tests.support.apps import make_app
from tests.support.journal import record, running
from tests.worker.apps.gates import wait_at_gate

app = make_app(__name__, task_remote_tracebacks=False)

#: Lock retries in quick succession.
QUICK = {"lock_retry_delay": 0.05, "lock_retry_backoff_max": 0.1}


@lock_acquired.connect(weak=False)
def _acquired(sender: Any, task_id: str | None, key: str, **_: Any) -> None:
    record("acquired", key=key, id=task_id, task=sender.name)


@lock_contended.connect(weak=False)
def _contended(sender: Any, task_id: str | None, key: str, holder: Any, policy: str, **_: Any) -> None:
    record("contended", key=key, id=task_id, holder=(holder or {}).get("id"), policy=policy)


@lock_skipped.connect(weak=False)
def _skipped(sender: Any, task_id: str | None, key: str, holder: Any, **_: Any) -> None:
    record("skipped", key=key, id=task_id, holder=(holder or {}).get("id"))


def _work(task: Any, key: str, seconds: float = 0.0) -> str:
    request, lock = task.request, task.lock
    with running(key, id=request.id, owner=lock.owner, fence=lock.fence, ttl=lock.ttl, retries=request.retries):
        time.sleep(seconds)
        lock.check()
    return key


@app.task(base=LockedTask, bind=True, lock_key="{key}")
def hold(self: Any, key: str) -> str:
    with running(key, id=self.request.id):
        wait_at_gate(key)
    return key


@app.task(base=LockedTask, bind=True, lock_key="{key}", max_retries=0, **QUICK)
def retrying(self: Any, key: str, seconds: float = 0.0) -> str:
    return _work(self, key, seconds)


@app.task(base=LockedTask, bind=True, lock_key="{key}", lock_ttl=1.0, **QUICK)
def outliving(self: Any, key: str, seconds: float = 0.0) -> str:
    return _work(self, key, seconds)


@app.task(base=LockedTask, bind=True, lock_key="{key}", lock_on_contention="skip", lock_skip_result="skipped")
def skipping(self: Any, key: str) -> str:
    return _work(self, key)


@app.task(base=LockedTask, bind=True, lock_key="{key}", lock_on_contention="fail")
def failing(self: Any, key: str) -> str:
    return _work(self, key)


def _choose(task: Any, contention: Contention) -> Any:
    record("choosing", key=contention.key, attempt=contention.attempt, waited=contention.waited, name=task.name)
    return "retry" if contention.attempt < 2 else "fail"


@app.task(base=LockedTask, bind=True, lock_key="{key}", lock_on_contention=_choose, **QUICK)
def choosing(self: Any, key: str) -> str:
    return _work(self, key)


@app.task(base=LockedTask, bind=True, lock_key="{key}", lock_on_contention=lambda task, contention: "sulk")
def sulking(self: Any, key: str) -> str:
    return _work(self, key)


@app.task(base=LockedTask, bind=True, lock_key="{key}", lock_timeout=0.5, **QUICK)
def impatient(self: Any, key: str) -> str:
    return _work(self, key)


@app.task(
    base=LockedTask,
    bind=True,
    lock_key="{key}",
    lock_retry_delay=0.1,
    lock_retry_backoff_max=0.4,
    lock_retry_jitter=False,
)
def backing_off(self: Any, key: str) -> str:
    return _work(self, key)


_CARRIED = (
    *("id", "root_id", "parent_id", "group", "group_index", "chord", "chain", "callbacks", "errbacks", "expires"),
    *("timelimit", "shadow", "retries", "reply_to", "correlation_id", "origin", "ignore_result"),
    *("stamped_headers", "stamps", "headers", "args", "kwargs"),
)


@app.task(base=LockedTask, bind=True, lock_key="{key}", max_retries=0, **QUICK)
def telling(self: Any, key: str, **more: Any) -> dict[str, Any]:
    """Return what the task knows of its own message."""
    told = {name: getattr(self.request, name) for name in _CARRIED}
    told["priority"] = self.request.delivery_info.get("priority")
    told["routing_key"] = self.request.delivery_info.get("routing_key")
    record("told", key=key, **told)
    return told


class OwnCall(LockedTask):
    """A base class as people write them, for logging or sessions."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


class OwnCallWithSuper(LockedTask):
    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


@app.task(base=OwnCall, bind=True, lock_key="{key}", max_retries=0, **QUICK)
def own_call(self: Any, key: str) -> str:
    return _work(self, key)


@app.task(base=OwnCallWithSuper, bind=True, lock_key="{key}", max_retries=0, **QUICK)
def own_call_with_super(self: Any, key: str) -> str:
    return _work(self, key)


@app.task(base=LockedTask, bind=True, lock_key="{key}", max_retries=1, **QUICK)
def retrying_itself(self: Any, key: str) -> str:
    headers = {name: value for name, value in (self.request.headers or {}).items() if name.startswith("distlock")}
    record("run", key=key, id=self.request.id, retries=self.request.retries, headers=headers, ttl=self.lock.ttl)
    if not self.request.retries:
        raise self.retry(countdown=0)
    return key


@app.task(base=LockedTask, bind=True, lock_key="{key}")
def breaking(self: Any, key: str) -> None:
    with running(key, id=self.request.id):
        raise ValueError(key)


@app.task
def after(result: Any, key: str = "") -> Any:
    record("after", key=key, result=result)
    return result


@app.task
def on_error_old(task_id: str) -> None:
    record("errback", style="old", id=task_id)


@app.task
def on_error_new(request: Any, error: Exception, traceback: Any) -> None:
    record("errback", style="new", id=request.id, error=type(error).__name__, text=str(error))


# -- a store that cannot be asked ----------------------------------------------------------------------------------

#: Whoever is contended fails, so that nothing but the store's silence can lead to a retry.
STRICT = {"base": LockedTask, "bind": True, "lock_key": "{key}", "lock_on_contention": "fail", **QUICK}


@app.task(**STRICT)
def store_retry(self: Any, key: str) -> str:
    return _work(self, key)


@app.task(**STRICT, lock_on_store_error="fail")
def store_fail(self: Any, key: str) -> str:
    return _work(self, key)


@app.task(**STRICT, lock_on_store_error="run")
def store_run(self: Any, key: str) -> str | None:
    record("unlocked" if self.lock is None else "locked", key=key, id=self.request.id)
    return self.lock and key


@app.task(base=LockedTask, bind=True, lock_key="{key}", lock_timeout=0.3, **QUICK)
def store_impatient(self: Any, key: str) -> str:
    return _work(self, key)
