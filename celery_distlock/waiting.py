"""Waiting in place for a key: outside of workers, in eager mode, and briefly for a task's own predecessor."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable

from celery_distlock.errors import StoreUnavailable
from celery_distlock.held import ask
from celery_distlock.lease import Claim, Completed, Contended, Lease
from celery_distlock.line import wait_in_line
from celery_distlock.stores.base import LockStore, Queueing

__all__ = ["poll_for", "wait_for"]

# Polling starts fast, since most holders are about to finish, and never asks more often than ten times a second later.
_FIRST_PAUSE, _LAST_PAUSE = 0.002, 0.1


def wait_for(
    store: LockStore, claim: Claim, timeout: float | None = None, answer: Contended | None = None
) -> Lease | Contended | Completed:
    """Wait for a key until it is granted or ``timeout`` seconds have passed: in the store's line, if it has one.

    Arguments:
        store: whom to ask.
        claim: what to ask for.
        timeout: seconds to wait; 0.0 asks once; None waits for ever.
        answer: the last answer, if one was received just now.

    Returns:
        the lease, or the last refusal.

    Raises:
        StoreUnavailable: the store gave no answer.
    """
    if not isinstance(store, Queueing):
        return poll_for(store, claim, timeout, answer)
    end = None if timeout is None else time.monotonic() + timeout
    if answer is None:
        first = ask(store, claim)
        if not isinstance(first, Contended):
            return first
        answer = first
    left = None if end is None else end - time.monotonic()
    if left is not None and left <= 0:
        return answer
    got = wait_in_line(store, claim, left)
    if got is not None:
        return got
    with contextlib.suppress(StoreUnavailable):
        # Who was in the way at first may be long gone.
        answer = Contended(claim.key, tuple(store.holders(claim.key)))
    return answer


def poll_for(
    store: LockStore,
    claim: Claim,
    timeout: float | None = None,
    answer: Contended | None = None,
    question: Callable[[LockStore, Claim], Lease | Contended | Completed] = ask,
) -> Lease | Contended | Completed:
    """Ask for a key again and again; results, and arguments but for how to ask, as for :func:`wait_for`.

    Nobody who stands in the store's line is overtaken, and everybody who joins it is before us.

    Raises:
        StoreUnavailable: the store gave no answer.
    """
    end = None if timeout is None else time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while True:
        if answer is None:
            got = question(store, claim)
            if not isinstance(got, Contended):
                return got
        else:
            got, answer = answer, None
        left = float("inf") if end is None else end - time.monotonic()
        if left <= 0:
            return got
        time.sleep(min(left, pause * random.uniform(0.5, 1.0)))
        pause = min(_LAST_PAUSE, pause * 1.5)
