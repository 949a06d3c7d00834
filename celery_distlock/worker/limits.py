"""Two limits that a running task may have: how long its lock is certain, and how long it may be held.

``lock_on_unsure="abort"``: do not let it run past the time for which its lock is certain.
``lock_max_hold``: do not let it hold its lock for longer than that. Where it cannot be killed its lease is not renewed
any more, so that others get the lock when its ttl has passed.
"""

from __future__ import annotations

import logging
import threading

from celery_distlock.held import SILENT
from celery_distlock.worker.supervised import Supervised

__all__ = ["LimitWatch"]

log = logging.getLogger(__name__)

#: Acts when this part of the ttl is left.
_UNSURE_MARGIN = 0.1
#: Seconds between two looks whether a lock with a longest time has been granted.
_UNTIL_GRANTED = 1.0


class LimitWatch:
    """Aborts the tasks that have reached a limit, just before their deadline passes, or when they have held too long.

    A thread of its own: the keeper's may be waiting for the very store that is silent.
    """

    def __init__(self) -> None:
        self._watched: dict[int, Supervised] = {}
        self._changed = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="distlock-limits", daemon=True)
        self._thread.start()

    def add(self, supervised: Supervised) -> None:
        """Watch this one from now on."""
        self._watched[id(supervised)] = supervised
        self._changed.set()

    def stop(self) -> None:
        """End the thread."""
        self._stopping = True
        self._changed.set()
        # It waits for nothing but this.
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            watched = list(self._watched.values())
            self._changed.wait(min((_pause(one) for one in watched), default=None))
            self._changed.clear()
            for one in watched:
                try:
                    self._look(one)
                except Exception:
                    # This thread must go on for the others; this one's executor sees its deadline pass all the same.
                    log.exception("Task %s[%s] could not be watched", one.request.name, one.request.id)

    def _look(self, one: Supervised) -> None:
        lease = one.lease()
        unsure = (
            lease is not None
            and one.options.on_unsure == "abort"
            and one.child is not None
            and lease.remaining < lease.ttl * _UNSURE_MARGIN
        )
        overdue = lease is not None and one.overdue_in() <= 0
        if one.ended or unsure or overdue:
            self._watched.pop(id(one), None)
        if lease is not None and overdue:
            one.hold_no_longer(lease)
        elif lease is not None and unsure:
            one.abort(lease, SILENT)


def _pause(one: Supervised) -> float:
    unsure = one.options.ttl * _UNSURE_MARGIN / 2 if one.options.on_unsure == "abort" else _UNTIL_GRANTED
    if one.options.max_hold is None:
        return unsure
    if one.granted_at is None:
        return min(unsure, one.options.max_hold / 2, _UNTIL_GRANTED)
    left = max(0.0, one.overdue_in())
    return min(unsure, left) if one.options.on_unsure == "abort" else left
