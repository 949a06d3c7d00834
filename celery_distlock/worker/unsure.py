"""``lock_on_unsure="abort"``: do not let a task run past the time for which its lock is certain."""

from __future__ import annotations

import logging
import threading

from celery_distlock.held import SILENT
from celery_distlock.worker.supervised import Supervised

__all__ = ["UnsureWatch"]

log = logging.getLogger(__name__)

#: Acts when this part of the ttl is left.
_UNSURE_MARGIN = 0.1


class UnsureWatch:
    """Aborts, before their deadline passes, the tasks that asked for it (``lock_on_unsure="abort"``).

    A thread of its own: the keeper's may be waiting for the very store that is silent.
    """

    def __init__(self) -> None:
        self._watched: dict[int, Supervised] = {}
        self._changed = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="distlock-unsure", daemon=True)
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
            pause = min((one.ttl() * _UNSURE_MARGIN / 2 for one in watched), default=None)
            self._changed.wait(pause)
            self._changed.clear()
            for one in watched:
                try:
                    self._look(one)
                except Exception:
                    # This thread must go on for the others; this one's executor sees its deadline pass all the same.
                    log.exception("Task %s[%s] could not be watched", one.request.name, one.request.id)

    def _look(self, one: Supervised) -> None:
        lease = one.lease()
        late = lease is not None and lease.remaining < lease.ttl * _UNSURE_MARGIN
        if one.ended or late:
            self._watched.pop(id(one), None)
        if lease is not None and late:
            one.abort(lease, SILENT)
