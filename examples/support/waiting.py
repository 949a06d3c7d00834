"""Wait for something that another process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["wait_until"]

T = TypeVar("T")


def wait_until(predicate: Callable[[], T], what: str, timeout: float = 30.0, *, every: float = 0.005) -> T:
    """Call ``predicate`` until it returns something true, and return that.

    Arguments:
        predicate: what to ask.
        what: names in the error what did not happen.
        timeout: seconds.
        every: seconds between two calls.

    Raises:
        TimeoutError: it was still false after ``timeout``.
    """
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{what}: did not happen within {timeout:g} s")
        time.sleep(every)
    return value
