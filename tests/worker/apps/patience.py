"""How long a worker waits before it helps itself, where a test has to tell that from what it expects.

What is expected comes at once, and what the worker does by itself comes after a second or two: a process that is held
up for as long looks like the one for the other. So a worker can be told to wait for so long that a plain deadline tells
them apart. It is told by its environment, which the test's own process does not share.
"""

from __future__ import annotations

import json
import os
from typing import Any

from celery_distlock.stores.base import Queueing
from celery_distlock.task import attempt, run, unique
from celery_distlock.worker import ahead, parking

__all__ = ["LONG", "NOBODY_IS_PASSED_OVER", "SOON", "be_as_patient_as_told", "patience"]

_VARIABLE = "TEST_PATIENCE"

_WHERE: dict[str, list[tuple[Any, str]]] = {
    # For an idle pool process to come for its lease.
    "ahead": [(ahead, "_PATIENCE")],
    # For the consumer to hear that a turn has come.
    "calling": [(parking, "_CALLING_PATIENCE")],
    # For a waiter to be heard of; it is polled three times as often.
    "claim": [(Queueing, "claim_ttl")],
    # For a predecessor to release its lock.
    "predecessor": [(module, "PREDECESSOR_PATIENCE") for module in (run, attempt, unique)],
}

#: Seconds for which nobody waits here.
LONG = 600.0
#: Seconds within which happens at once, on a machine that may be held up, what would else take as long as that.
SOON = 4.0


def patience(**seconds: float) -> dict[str, str]:
    """Return the environment of a worker that waits for so long: ``ahead``, ``calling``, ``claim``, ``predecessor``."""
    assert seconds.keys() <= _WHERE.keys(), seconds
    return {_VARIABLE: json.dumps(seconds)}


#: For tests of the order: a process that is held up when its turn comes keeps it.
NOBODY_IS_PASSED_OVER = patience(ahead=LONG, calling=LONG)


def be_as_patient_as_told() -> None:
    """Wait, in this process and its children, for as long as the environment says."""
    for name, seconds in json.loads(os.environ.get(_VARIABLE, "{}")).items():
        for where, attribute in _WHERE[name]:
            # It must be there, by this name.
            getattr(where, attribute)
            setattr(where, attribute, seconds)
