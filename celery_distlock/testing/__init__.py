"""Tools to test a store, and to test tasks that lock. They need pytest.

For the author of a store:

* :class:`StoreContract` – inherit it: every behaviour of a store as a test;
* :class:`QueueingContract` – inherit this instead if the store queues;
* :class:`UniquenessContract` – and this beside it, if the store keeps messages from being published twice;
* :class:`PassingOnContract` – and this, if it can pass a lease on;
* :func:`fuzz_counter` – many threads or processes, one counter, the exact sum or an error.

For the author of locked tasks:

* :func:`hold` – occupy a key, to see what a task does when it is contended;
* ``pytest_plugins = ["celery_distlock.testing.plugin"]`` – fixtures that need no server; see there.
"""

from __future__ import annotations

import pytest

# Before they are imported: their assertions shall show their values.
pytest.register_assert_rewrite(
    *(f"celery_distlock.testing.{name}" for name in ("contract", "passing_on", "queueing", "uniqueness"))
)

from celery_distlock.testing.contract import StoreContract  # noqa: E402
from celery_distlock.testing.fuzz import FuzzReport, fuzz_counter  # noqa: E402
from celery_distlock.testing.held import hold  # noqa: E402
from celery_distlock.testing.passing_on import PassingOnContract  # noqa: E402
from celery_distlock.testing.queueing import QueueingContract  # noqa: E402
from celery_distlock.testing.uniqueness import UniquenessContract  # noqa: E402

__all__ = [
    "FuzzReport",
    "PassingOnContract",
    "QueueingContract",
    "StoreContract",
    "UniquenessContract",
    "fuzz_counter",
    "hold",
]
