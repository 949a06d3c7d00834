"""Where bodies wait until the test lets them go on: a list in the broker, or where results are kept."""

from __future__ import annotations

import os

import redis

__all__ = ["wait_at_gate"]

#: Seconds. No test holds a gate shut for so long; a body that is left at one ends some time.
_PATIENCE = 90.0


def wait_at_gate(name: str) -> None:
    """Wait until somebody opens the gate."""
    broker, results = os.environ["BROKER_URL"], os.environ["RESULT_BACKEND"]
    url = broker if broker.startswith("redis") else results
    # By default, redis-py since 8.0 takes a server that is silent for five seconds for lost, also while it waits.
    with redis.Redis.from_url(url, socket_timeout=None) as client:
        assert client.blpop([f"gate:{name}"], timeout=_PATIENCE), f"nobody opened the gate of {name}"
