"""A locked task in every place of a canvas, and bare ones around it."""

from __future__ import annotations

from typing import Any

from celery_distlock import LockedTask
from tests.support.apps import make_app
from tests.support.journal import record

app = make_app(__name__)


def _locked(self: Any, key: str) -> str:
    """Run under the lock of ``key``."""
    record("ran", task="locked", key=key)
    return "ran"


def _task(name: str, **options: Any) -> Any:
    defaults = {"lock_key": "{key}", "lock_retry_delay": 0.1, "lock_retry_backoff_max": 0.3}
    return app.task(base=LockedTask, bind=True, name=name, acks_late=True, **defaults, **options)(_locked)


locked = _task("locked", lock_skip_result="skipped")
# What calls a task as a function has no options for its call.
locked_retry = _task("locked_retry")
locked_wait = _task("locked_wait", lock_on_contention="wait")
locked_skip = _task("locked_skip", lock_on_contention="skip", lock_skip_result="skipped")
locked_fail = _task("locked_fail", lock_on_contention="fail")


@app.task
def before(key: str) -> str:
    """Run before it."""
    return "before"


@app.task
def behind(result: Any, key: str) -> Any:
    """Run behind it, with its result."""
    record("ran", task="behind", key=key)
    return result


@app.task
def beside(key: str) -> str:
    """Run beside it."""
    record("ran", task="beside", key=key)
    return "beside"


@app.task
def inner(results: list[Any], key: str) -> list[Any]:
    """Be the body of a chord in a chord."""
    return results


@app.task
def collect(results: list[Any], key: str) -> list[Any]:
    """Be the body of a chord."""
    record("ran", task="behind", key=key)
    return results


@app.task
def failing(key: str) -> None:
    """Fail, so that an errback is called."""
    raise RuntimeError("on purpose")


@app.task(bind=True)
def replaced(self: Any, key: str, lock: dict[str, Any]) -> Any:
    """Be replaced by the locked task."""
    return self.replace(locked.si(key).set(lock=lock))


@app.task(bind=True)
def replaced_bare(self: Any, key: str) -> Any:
    """Be replaced by a task without a lock."""
    return self.replace(beside.si(key))
