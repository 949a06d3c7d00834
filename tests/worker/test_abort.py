"""An abort kills the child that runs the lost request, and never one that has gone on to another."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import psutil
import pytest

from celery_distlock.cells import DONE, GRANTED, READY, RELEASING, Arena, Cell, View
from celery_distlock.lease import Lease, new_owner
from celery_distlock.worker.abort import kill_if_running
from celery_distlock.worker.children import Child
from tests.support.waiting import eventually

_fork = multiprocessing.get_context("fork")


def _obey(pipe: Connection, arena: Arena) -> None:
    """Be a pool child: do with cells what the test says, and answer."""
    while True:
        index, what, *args = pipe.recv()
        getattr(Cell(arena, index), what)(*args)
        pipe.send("done")


class _PoolChild:
    def __init__(self, arena: Arena) -> None:
        self.pipe, theirs = _fork.Pipe()
        self.process = _fork.Process(target=_obey, args=(theirs, arena), daemon=True)
        self.process.start()
        assert self.process.pid is not None
        self.child = Child(self.process.pid, os.pidfd_open(self.process.pid))

    def do(self, cell: Cell, what: str, *args: Any) -> None:
        self.pipe.send((cell.index, what, *args))
        assert self.pipe.poll(10)
        assert self.pipe.recv() == "done"

    def run(self, cell: Cell, owner: str) -> None:
        """Hold a lock for the request of this cell."""
        self.do(cell, "asking", "key", owner, 30.0, 1)
        self.do(cell, "granted", Lease("key", owner, 1, 30.0, time.monotonic() + 30.0))
        assert cell.state == GRANTED

    @property
    def status(self) -> str:
        return str(psutil.Process(self.child.pid).status())


@pytest.fixture
def arena() -> Arena:
    return Arena(4)


@pytest.fixture
def pool_child(arena: Arena) -> Iterator[_PoolChild]:
    made = _PoolChild(arena)
    yield made
    with contextlib.suppress(OSError):
        made.child.send(signal.SIGKILL)
    made.process.join(10)
    made.child.close()


def _take(arena: Arena) -> tuple[Cell, str]:
    owner = new_owner()
    cell = arena.take(owner)
    assert cell is not None
    return cell, owner


def test_the_child_that_runs_the_request_is_killed(arena: Arena, pool_child: _PoolChild) -> None:
    cell, owner = _take(arena)
    pool_child.run(cell, owner)
    assert kill_if_running(pool_child.child, cell, owner)
    pool_child.process.join(10)
    assert pool_child.process.exitcode == -signal.SIGKILL


def _has_stored_its_result(child: _PoolChild, cell: Cell) -> None:
    child.do(cell, "releasing", False)
    assert cell.state == RELEASING


def _has_released(child: _PoolChild, cell: Cell) -> None:
    child.do(cell, "releasing", False)
    child.do(cell, "done")
    assert cell.state == DONE


def _was_refused(child: _PoolChild, cell: Cell) -> None:
    child.do(cell, "refused")


def _runs_another_request_in_the_same_cell(child: _PoolChild, cell: Cell) -> None:
    child.do(cell, "releasing", False)
    child.do(cell, "done")
    owner = new_owner()
    cell.reset(owner)
    child.run(cell, owner)


@pytest.mark.parametrize(
    "meanwhile", [_has_stored_its_result, _has_released, _was_refused, _runs_another_request_in_the_same_cell]
)
def test_a_child_that_has_gone_on_is_not_killed_and_runs_on(
    meanwhile: Callable[[_PoolChild, Cell], None], arena: Arena, pool_child: _PoolChild
) -> None:
    (cell, owner), (other, other_owner) = _take(arena), _take(arena)
    pool_child.run(cell, owner)
    meanwhile(pool_child, cell)
    assert not kill_if_running(pool_child.child, cell, owner)
    # It was stopped for the look, and must not stay so.
    eventually(lambda: pool_child.status in (psutil.STATUS_SLEEPING, psutil.STATUS_RUNNING), 5, "the child's going on")
    pool_child.run(other, other_owner)


def test_a_child_that_is_dead_is_left_alone(arena: Arena, pool_child: _PoolChild) -> None:
    cell, owner = _take(arena)
    pool_child.run(cell, owner)
    pool_child.child.send(signal.SIGKILL)
    pool_child.process.join(10)
    pool_child.child.close()
    assert not kill_if_running(pool_child.child, cell, owner)


class _Slowly(Cell):
    """A cell that takes its time to be looked at, in which the child would go on if it could."""

    def view(self) -> View | None:
        seen = super().view()
        self.hint()
        return seen

    hint: Callable[[], Any]


def test_a_child_cannot_go_on_between_the_look_and_the_signal(arena: Arena, pool_child: _PoolChild) -> None:
    (cell, owner), (other, other_owner) = _take(arena), _take(arena)
    pool_child.run(cell, owner)
    slowly = _Slowly(arena, cell.index)

    def go_on() -> None:
        pool_child.pipe.send((cell.index, "releasing", False))
        pool_child.pipe.send((other.index, "asking", "other", other_owner, 30.0, 1))
        # Long enough for a child that runs; one that is stopped never answers.
        pool_child.pipe.poll(0.2)

    slowly.hint = go_on
    assert kill_if_running(pool_child.child, slowly, owner)
    pool_child.process.join(10)
    assert cell.state == GRANTED
    assert other.state == READY, "killed in the middle of another request"
