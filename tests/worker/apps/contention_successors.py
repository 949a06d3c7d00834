"""Tasks that publish another one of the same key from their own body, and would fail rather than wait for it."""

from __future__ import annotations

import time
from typing import Any

from celery import group

from celery_distlock import Contention, LockedTask, current_lock
from celery_distlock.signals import lock_contended
from tests.support.apps import make_app
from tests.support.journal import record, running
from tests.worker.apps.gates import wait_at_gate

app = make_app(__name__)

FAILS = {"base": LockedTask, "bind": True, "lock_key": "{key}", "lock_on_contention": "fail", "max_retries": None}


class Again(Exception):
    """What autoretry_for retries."""


@lock_contended.connect(weak=False)
def _contended(sender: Any, task_id: str | None, key: str, holder: Any, policy: str, **_: Any) -> None:
    record("contended", key=key, id=task_id, holder=(holder or {}).get("id"), policy=policy)


@app.task(**FAILS)
def retry_itself(self: Any, key: str, rounds: int) -> int:
    with running(key, id=self.request.id):
        if self.request.retries < rounds:
            raise self.retry(countdown=0)
        return self.request.retries


@app.task(**FAILS, autoretry_for=(Again,), default_retry_delay=0, retry_kwargs={"max_retries": None, "countdown": 0})
def retry_by_itself(self: Any, key: str, rounds: int) -> int:
    with running(key, id=self.request.id):
        if self.request.retries < rounds:
            raise Again
        return self.request.retries


@app.task(**FAILS)
def replace_itself(self: Any, key: str, rounds: int) -> int:
    with running(key, id=self.request.id):
        if rounds:
            raise self.replace(replace_itself.s(key, rounds - 1))
        return rounds


@app.task(**FAILS)
def replace_by_chain(self: Any, key: str) -> None:
    with running(key, id=self.request.id):
        raise self.replace(link.s(0, key) | link.s(key) | link.s(key))


@app.task(**FAILS)
def link(self: Any, count: int, key: str) -> int:
    with running(key, id=self.request.id):
        return count + 1


@app.task(**FAILS)
def gated(self: Any, key: str, gate: str | None = None) -> str:
    with running(key, id=self.request.id):
        wait_at_gate(gate or key)
    return key


@app.task(**FAILS)
def body(self: Any, results: list[str], key: str) -> list[str]:
    with running(key, id=self.request.id):
        return results


@app.task(**FAILS)
def publish_and_go(self: Any, key: str) -> str:
    """Publish a child and end at once."""
    with running(key, id=self.request.id):
        return link.delay(0, key).id


@app.task(**FAILS)
def publish_and_stay(self: Any, key: str, child: str = "link", **options: Any) -> str:
    """Publish a child and stay until the gate opens."""
    with running(key, id=self.request.id):
        began = time.monotonic()
        result = app.tasks[f"{__name__}.{child}"].apply_async((0, key), **options)
        # The child may have begun by now.
        record("published", key=key, child=result.id, began=began)
        wait_at_gate(key)
        return result.id


def _asked(count: int, key: str) -> str:
    """Compute the key and tell that the store is about to be asked."""
    record("asking", key=key)
    return key


def _retry_once(task: Any, contention: Contention) -> str:
    return "retry" if contention.attempt == 0 else "fail"


@app.task(
    base=LockedTask,
    bind=True,
    lock_key=_asked,
    lock_on_contention=_retry_once,
    lock_retry_delay=0.01,
    lock_retry_jitter=False,
)
def retries_once(self: Any, count: int, key: str) -> int:
    return count


@app.task(**FAILS)
def break_down(self: Any, key: str) -> None:
    with running(key, id=self.request.id):
        raise ValueError(key)


@app.task(base=LockedTask, bind=True, lock_key="shared-errback", lock_on_contention="fail")
def errback_old(self: Any, task_id: str) -> None:
    record("errback", style="old", id=task_id, owner=self.lock.owner)


@app.task(base=LockedTask, lock_key="shared-errback", lock_on_contention="fail")
def errback_new(request: Any, error: Exception, traceback: Any) -> None:
    # Not bound: Celery takes a bound errback for one of the old style.
    lock = current_lock()
    record("errback", style="new", id=request.id, owner=lock and lock.owner)


@app.task(base=LockedTask, bind=True, lock_key="shared-errback", lock_on_contention="fail")
def break_down_with_errbacks(self: Any) -> None:
    record("broken", owner=self.lock.owner)
    raise ValueError("on purpose")


# -- re-entrancy -------------------------------------------------------------------------------------------------


@app.task(base=LockedTask, bind=True, lock_key="{key}", lock_on_contention="fail", lock_ttl=5.0)
def nest(self: Any, key: str, how: str) -> dict[str, Any]:
    """Call another task of the same key in this very process, and tell under which lock each ran."""
    outer = self.lock
    inner = {
        "call": lambda: inside(key),
        "apply": lambda: inside.apply((key,)).result,
        "itself": lambda: nest(key, "call") if how == "itself" else None,
        "other": lambda: inside(key + "-other"),
    }[how]()
    return {"outer": [outer.key, outer.owner, outer.held], "inner": inner}


@app.task(base=LockedTask, bind=True, lock_key="{key}", lock_on_contention="fail")
def inside(self: Any, key: str) -> list[Any]:
    record("inside", key=key, owner=self.lock.owner)
    return [self.lock.key, self.lock.owner, self.lock.held]


@app.task(**FAILS)
def publish_group(self: Any, key: str) -> list[str]:
    """Publish two children of one key; one of them finds the other, which is no predecessor of it."""
    with running(key, id=self.request.id):
        return [child.id for child in group(slow_link.s(0, key), slow_link.s(0, key)).apply_async().children]


@app.task(**FAILS)
def slow_link(self: Any, count: int, key: str) -> int:
    with running(key, id=self.request.id):
        wait_at_gate(key)
        return count
