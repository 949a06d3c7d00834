"""Wait for something that another process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["eventually"]

T = TypeVar("T")


def eventually(predicate: Callable[[], T], timeout: float = 10.0, what: str = "", *, every: float = 0.005) -> T:
    """Call ``predicate`` until it returns something true, and return that.

    Arguments:
        predicate: what to ask; an exception that it raises ends the wait.
        timeout: seconds.
        what: names in the failure what did not happen.
        every: seconds between two calls.

    Raises:
        AssertionError: it was still false after ``timeout``.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what or predicate!r} did not happen within {timeout} s")
        time.sleep(every)
