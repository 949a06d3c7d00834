"""How many tasks the pool could begin at once."""

from __future__ import annotations

from typing import Any

from celery.worker import state

__all__ = ["free_slots"]


def free_slots(worker: Any) -> int:
    """Return how many requests would find an executor waiting for them, were they handed to the pool now.

    From any thread, so it may have changed by the time it is used.
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
    return max(0, free)


def _is_ending() -> bool:
    return any(told is not None and told is not False for told in (state.should_stop, state.should_terminate))
