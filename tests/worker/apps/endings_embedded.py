"""Runs workers inside this process, twice, and records which threads of ours they leave behind.

``python -m tests.worker.apps.endings_embedded POOL``
"""

from __future__ import annotations

import sys
import threading

from celery.contrib.testing.worker import start_worker

from tests.support.journal import record
from tests.worker.apps.endings import app, succeed


def ours() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("distlock-"))


def main(pool: str) -> None:
    for _ in range(2):
        with start_worker(app, pool=pool, perform_ping_check=False, shutdown_timeout=20):
            succeed.apply_async(("a",)).get(timeout=20, disable_sync_subtasks=False)
            record("working", threads=ours())
        record("stopped", threads=ours())


if __name__ == "__main__":
    main(sys.argv[1])
