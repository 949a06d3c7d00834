"""What the main process makes of an executor of which its pool will say nothing more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from celery_distlock import cells
from celery_distlock.lease import Lease
from celery_distlock.options import LockOptions
from celery_distlock.stores.memory import MemoryStore
from celery_distlock.worker.supervised import Supervised

OWNER = "a" * 32


class Lost:
    """A request that was in the pool when the connection to the broker was lost."""

    def __init__(self) -> None:
        self.arena = cells.Arena(1)
        self.ended: list[Supervised] = []
        warden: Any = SimpleNamespace(arena=self.arena, forgotten=lambda supervised: False, end=self.ended.append)
        request = SimpleNamespace(task=SimpleNamespace(_lock_store=MemoryStore("test-supervised")))
        cell = self.arena.take(OWNER)
        assert cell is not None
        self.cell = cell
        self.supervised = Supervised(warden, request, OWNER, cell, "label", LockOptions())

    def is_ended_after_two_looks(self) -> bool:
        """Between two looks the pool would have had time to tell."""
        self.supervised.on_look()
        assert self.ended == []
        self.supervised.on_look()
        return self.ended == [self.supervised]


@pytest.fixture
def lost() -> Lost:
    return Lost()


def test_one_that_was_refused_is_over(lost: Lost) -> None:
    lost.cell.asking("k", OWNER, 30.0, 1)
    lost.cell.refused()
    assert lost.is_ended_after_two_looks()


def test_one_that_has_released_is_over(lost: Lost) -> None:
    lost.cell.asking("k", OWNER, 30.0, 1)
    lost.cell.granted(Lease("k", OWNER, 7, 30.0, 1234.5))
    lost.cell.releasing(complete=False)
    lost.cell.done()
    assert lost.is_ended_after_two_looks()


def test_one_that_has_not_begun_may_still_begin(lost: Lost) -> None:
    assert not lost.is_ended_after_two_looks()


def test_one_that_asks_or_runs_goes_on(lost: Lost) -> None:
    lost.cell.asking("k", OWNER, 30.0, 1)
    assert not lost.is_ended_after_two_looks()
    lost.cell.granted(Lease("k", OWNER, 7, 30.0, 1234.5))
    assert not lost.is_ended_after_two_looks()
