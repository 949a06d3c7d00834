"""Have the pool notice a dead child at once.

The pool looks at a child when its sentinel becomes readable, which is a moment before the kernel lets it be reaped;
then the next look is up to five seconds away (likely celery #9588). The lock is free by then, but the task's result,
its slot in the pool and, with late acknowledgement, its message wait for that look. So the pool is asked to look
again, soon and less and less often, until the child is gone from it.
"""

from __future__ import annotations

from typing import Any

from celery_distlock.worker.loop import ConsumerThread

__all__ = ["reap"]

_FIRST_LOOK, _LAST_LOOK = 0.005, 1.0


def reap(worker: Any, loop: ConsumerThread) -> None:
    """Have the worker's prefork pool look for dead children; from any thread."""
    loop.call(lambda: _look(worker, loop, _FIRST_LOOK))


def _look(worker: Any, loop: ConsumerThread, pause: float) -> None:
    pool = getattr(worker.pool, "_pool", None)
    if pool is None or not hasattr(pool, "maintain_pool"):
        return
    pool.maintain_pool()
    if pause <= _LAST_LOOK and any(process.exitcode is None and _is_zombie(process.pid) for process in pool._pool):
        loop.call_after(pause, lambda: _look(worker, loop, pause * 2))


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return False
