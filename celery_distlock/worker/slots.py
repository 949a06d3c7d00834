"""How many tasks the pool could begin at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.worker import state

__all__ = ["free_slots"]


def free_slots(worker: Any, ending: Callable[[], int]) -> int:
    """Return how many requests would find an executor waiting for them, were they handed to the pool now.

    From any thread, so it may have changed by the time it is used.

    Arguments:
        worker: the worker.
        ending: tells how many of the pool's requests are over but for the news of it.
    """
    if _is_ending():
        # A cold shutdown ends the pool before anything else.
        return 0
    # What the worker has received and not ended, running or in line; parked and scheduled requests are not in it.
    free = int(worker.pool.num_processes) - len(state.reserved_requests)
    semaphore = worker.semaphore
    if semaphore is not None and getattr(worker.pool, "uses_semaphore", False):
        # A child that was told to end, but has not, still has its slot.
        free = min(free, semaphore.value)
    if free < 1:
        # Who released the lock comes before them: an offer can be heard of sooner than its predecessor's end.
        free += ending()
    return max(0, free)


def _is_ending() -> bool:
    return any(told is not None and told is not False for told in (state.should_stop, state.should_terminate))
