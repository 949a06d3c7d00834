"""Keep locked tasks out of the worker's event loop.

Celery calls the error callbacks of a killed task directly, as functions, in the worker's main process. There a locked
one would wait for its lock in the very thread that has to see its holder end. It cannot be published instead: what
it is called with (a request, an exception, a traceback) has no form on the wire. So it runs in a thread of its own.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["here", "is_here", "run_beside"]

log = logging.getLogger(__name__)

_loop: tuple[int, int] | None = None


def here() -> None:
    """Note that the calling thread runs the event loop."""
    global _loop
    _loop = os.getpid(), threading.get_ident()


def gone() -> None:
    """Note that the event loop has ended: a later thread may get the same ident."""
    global _loop
    _loop = None


def is_here() -> bool:
    """Return whether the calling thread runs the event loop (a forked child's main thread has the same ident)."""
    return _loop is not None and _loop == (os.getpid(), threading.get_ident())


def run_beside(name: str, function: Callable[[], Any]) -> None:
    """Run ``function`` in a thread; what it raises is logged, as Celery does with an error callback's exception."""

    def run() -> None:
        try:
            function()
        except Exception:
            log.exception("Task %s, called in the worker's main process, raised", name)

    threading.Thread(target=run, name=f"distlock-{name}", daemon=True).start()
