"""What the bodies of the fault tests have in common."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tests.support.journal import VARIABLE, Journal, running

__all__ = ["in_run", "told", "until_told"]


def in_run(task: Any, key: str) -> AbstractContextManager[str]:
    """Record the run of a locked task's body."""
    lock = task.lock
    held = {} if lock is None else {"owner": lock.owner, "fence": lock.fence}
    return running(key, id=task.request.id, retries=task.request.retries, **held)


def told(word: str, key: str) -> bool:
    """Return whether the test has recorded this word for this key."""
    return bool(Journal(Path(os.environ[VARIABLE])).entries(word, key=key))


def until_told(key: str) -> None:
    """Wait until the test records ``go`` for this key."""
    Journal(Path(os.environ[VARIABLE])).wait_for("go", timeout=90, key=key)
