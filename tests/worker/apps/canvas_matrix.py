"""A locked task in every place of a canvas, and bare ones around it."""

from __future__ import annotations

from typing import Any

from celery_distlock import LockedTask
from tests.support.apps import make_app
from tests.support.journal import record

app = make_app(__name__)


@app.task(
    base=LockedTask,
    bind=True,
    lock_key="{key}",
    acks_late=True,
    lock_skip_result="skipped",
    lock_retry_delay=0.1,
    lock_retry_backoff_max=0.3,
)
def locked(self: Any, key: str) -> str:
    """Run under the lock of ``key``."""
    record("ran", task="locked", key=key)
    return "ran"


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
