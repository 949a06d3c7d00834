"""Unique tasks that are published by name."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from celery_distlock.task.base import LockedTask

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["unique_send_task"]


def unique_send_task(app: Celery) -> None:
    """Have ``app.send_task`` ask for duplicates, too.

    Celery's own ``send_task`` does not look at the task: nothing is unique at publish, and the lock decides when the
    task runs. After this call it publishes through the task's own ``apply_async``, if the task is a
    :class:`~celery_distlock.LockedTask` that this process has registered; other names are published as before.

    Arguments:
        app: the app; calling it twice changes it once.
    """
    send_task = app.send_task
    if getattr(send_task, "_distlock_unique", False):
        return

    signature = inspect.signature(send_task)

    @functools.wraps(send_task)
    def send_unique_task(name: str, *arguments: Any, **options: Any) -> Any:
        # task_type: it comes from apply_async.
        task = None if options.get("task_type") else app._tasks.get(name)
        if isinstance(task, LockedTask) and task._lock_unique:
            given = signature.bind(name, *arguments, **options).arguments
            given.pop("name")
            more = given.pop("options", {})
            return task.apply_async(**given, **more)
        return send_task(name, *arguments, **options)

    send_unique_task._distlock_unique = True  # type: ignore[attr-defined]
    app.send_task = send_unique_task
