"""A thread that does later what could not be done at once, or what nobody else does.

It starts when there is something to do, and ends when there is nothing left.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

__all__ = ["Caretaker"]

logger = logging.getLogger(__name__)

#: Seconds until the next try after an error that nobody expected.
_PAUSE = 1.0


class Caretaker:
    """Calls a function when something is due.

    Arguments:
        work: does what is due, and returns the monotonic time at which to call it again; None if nothing is left.
    """

    def __init__(self, work: Callable[[], float | None]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Have the work looked at now."""
        with self._lock:
            self._wake.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="distlock-caretaker", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                due = self._work()
            except Exception:
                logger.exception("unexpected error; the thread goes on")
                due = time.monotonic() + _PAUSE
            with self._lock:
                if due is None and not self._wake.is_set():
                    self._thread = None
                    return
            if due is not None:
                self._wake.wait(min(max(0.0, due - time.monotonic()), threading.TIMEOUT_MAX))
