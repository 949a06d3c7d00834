"""How a parked message moves the worker's prefetch limit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from kombu.common import QoS

from celery_distlock.worker.shelf import Shelf

INITIAL = 8


def shelf_with(qos: Any) -> Shelf:
    """Return a shelf in a worker that began with this limit."""
    consumer: Any = SimpleNamespace(
        qos=qos,
        initial_prefetch_count=INITIAL,
        app=SimpleNamespace(conf=SimpleNamespace(worker_detect_quorum_queues=False)),
    )
    loop: Any = SimpleNamespace(has_hub=False)
    shelf = Shelf(loop)
    shelf.connected(consumer)
    return shelf


@pytest.mark.parametrize("most", [1, INITIAL - 1, INITIAL])
def test_what_finds_no_room_leaves_the_limit_as_it_was(most: int) -> None:
    """Kombu lowers one that is above ``worker_eta_task_limit`` to that when it is told to raise it."""
    qos: Any = QoS(lambda **_: None, INITIAL)
    qos.max_prefetch = most
    request: Any = SimpleNamespace(counted=False)
    shelf = shelf_with(qos)
    assert not shelf.put(request)
    assert qos.value == INITIAL
    shelf.take(request)
    assert qos.value == INITIAL


def test_what_finds_room_raises_the_limit_while_it_lies_there() -> None:
    qos: Any = QoS(lambda **_: None, INITIAL)
    request: Any = SimpleNamespace(counted=False)
    shelf = shelf_with(qos)
    assert shelf.put(request)
    assert qos.value == INITIAL + 1
    shelf.take(request)
    assert qos.value == INITIAL
