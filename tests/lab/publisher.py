"""A process that publishes tasks for the lab's workers.

``python -m tests.lab.publisher KEYS HOLD PER_SECOND TWICE SEED``

It does not let more than a few dozen messages pile up, and publishes a few of them twice, under one id, as a broker may
deliver them. It ends when it is killed.
"""

from __future__ import annotations

import random
import sys
import time
import uuid
from typing import Any

from kombu.exceptions import OperationalError

from tests.lab import app as lab_app
from tests.lab import history

__all__ = ["publish_for_ever"]

_MANY = 24


def publish_for_ever(keys: list[str], hold: float, per_second: float, twice: float, rng: random.Random) -> None:
    """Publish tasks of every policy, for ever."""
    tasks: list[Any] = [lab_app.waiting, lab_app.waiting, lab_app.retrying, lab_app.skipping, lab_app.stubborn]
    while True:
        try:
            if _queued() < _MANY:
                if rng.random() < 0.25:
                    task, key = lab_app.sharing, "permits"
                else:
                    task, key = rng.choice(tasks), rng.choice(keys)
                message = {"args": (key, rng.uniform(0.5, 1.5) * hold), "task_id": str(uuid.uuid4())}
                for _ in range(2 if rng.random() < twice else 1):
                    task.apply_async(**message, retry=False, ignore_result=True)
        except (OperationalError, OSError) as error:
            history.note("not published", error=str(error)[:200])
        time.sleep(rng.uniform(0.5, 1.5) / per_second)


def _queued() -> int:
    with lab_app.app.connection_for_write() as connection:
        return int(connection.default_channel.client.llen("celery"))


if __name__ == "__main__":
    hold, per_second, twice = map(float, sys.argv[2:5])
    publish_for_ever(sys.argv[1].split(","), hold, per_second, twice, random.Random(sys.argv[5]))
