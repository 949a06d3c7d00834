"""The public signals.

Each is a Celery signal; the sender is the task. They are sent where the thing happens: in the executor, except
``lock_unsure``, ``lock_lost`` and ``lock_parked``, which under a supervising worker come from its main process.
Celery swallows what a receiver raises, so signals observe; they never decide.

All carry ``task_id`` (None for direct calls) and ``key``; further arguments:

=================  ==========================================================================================
``lock_acquired``  ``lock``: the :class:`~celery_distlock.held.HeldLock`
``lock_contended``  ``holder``: who holds the key (None if unknown); ``policy``: what will be done about it
``lock_parked``    ``reason``: why the message waits in the worker's main process
``lock_woken``     the parked message goes back to the pool
``lock_skipped``   ``holder``
``lock_released``  ``owner``, ``fence``
``lock_unsure``    ``owner``, ``fence``: the store has been silent past the lease's deadline
``lock_lost``      ``owner``, ``fence``: the store says that the key was given to somebody else
=================  ==========================================================================================

And of unique tasks, where ``key`` is the unique key:

=====================  ======================================================================================
``unique_duplicate``   a call was not published; ``task_id`` is the other task's; ``policy``: ``on_duplicate``
``unique_superseded``  a task does not run, since a newer one took its place; ``by``: an id that is queued now, or None
=====================  ======================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celery.utils.dispatch import Signal

if TYPE_CHECKING:
    from celery import Celery

__all__ = [
    "lock_acquired",
    "lock_contended",
    "lock_lost",
    "lock_parked",
    "lock_released",
    "lock_skipped",
    "lock_tasks",
    "lock_unsure",
    "lock_woken",
    "unique_duplicate",
    "unique_superseded",
]


def _signal(name: str, *arguments: str) -> Signal:
    return Signal(name=name, providing_args={"task_id", "key", *arguments})


lock_acquired = _signal("lock_acquired", "lock")
lock_contended = _signal("lock_contended", "holder", "policy")
lock_parked = _signal("lock_parked", "reason")
lock_woken = _signal("lock_woken")
lock_skipped = _signal("lock_skipped", "holder")
lock_released = _signal("lock_released", "owner", "fence")
lock_unsure = _signal("lock_unsure", "owner", "fence")
lock_lost = _signal("lock_lost", "owner", "fence")
unique_duplicate = _signal("unique_duplicate", "policy")
unique_superseded = _signal("unique_superseded", "by")


def lock_tasks(app: Celery, rules: Mapping[str, Mapping[str, Any]]) -> None:
    """Put locks around tasks that cannot be given a base class; see :func:`celery_distlock.lock_tasks`."""
    # Tasks send these signals: imported late.
    from celery_distlock.task.rebase import lock_tasks

    lock_tasks(app, rules)
