"""What executor and main process tell each other of a task whose turn has come."""

from __future__ import annotations

import os

import pytest

from celery_distlock import cells
from celery_distlock.lease import Claim

CLAIM = Claim("k", "a" * 32, 30.0, 2)


@pytest.fixture
def cell() -> cells.Cell:
    """A cell of a request that is about to be handed to the pool."""
    arena = cells.Arena(2)
    taken = arena.take(CLAIM.owner)
    assert taken is not None
    return taken


def ask(cell: cells.Cell) -> bool:
    """Do what the executor does first."""
    return cell.asking(CLAIM.key, CLAIM.owner, CLAIM.ttl, CLAIM.limit)


def test_what_an_executor_is_expected_to_ask_for_is_known_before_it_begins(cell: cells.Cell) -> None:
    assert cell.expect(CLAIM)
    view = cell.view()
    assert view is not None
    assert view.lease is not None
    assert (view.state, view.lease.key, view.lease.owner, view.lease.ttl) == (cells.ASKING, "k", CLAIM.owner, 30.0)
    assert cell.pid == 0, "nobody has begun"
    assert ask(cell)
    assert cell.pid == os.getpid()


def test_what_nobody_has_begun_with_can_be_taken_back(cell: cells.Cell) -> None:
    cell.expect(CLAIM)
    assert cell.take_back()
    assert not ask(cell), "its place has been given back"
    assert not cell.belongs_to(CLAIM.owner)


def test_what_an_executor_has_begun_with_stays_its_own(cell: cells.Cell) -> None:
    cell.expect(CLAIM)
    assert ask(cell)
    assert not cell.take_back()
    assert cell.belongs_to(CLAIM.owner)
    view = cell.view()
    assert view is not None
    assert view.state == cells.ASKING


def test_an_executor_that_begins_while_it_is_taken_back_uses_nothing_of_it(
    cell: cells.Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell.expect(CLAIM)
    pid = os.getpid()

    def taken_back_meanwhile() -> int:
        cell.disown()
        return pid

    # Between its first look and its own pid.
    monkeypatch.setattr(os, "getpid", taken_back_meanwhile)
    assert not ask(cell)
    assert not cell.belongs_to(CLAIM.owner), "the next request may be given this cell"


def test_a_key_that_is_too_long_is_not_expected(cell: cells.Cell) -> None:
    assert not cell.expect(Claim("k" * (cells.KEY_MAX + 1), CLAIM.owner, 30.0))
    assert cell.state == cells.READY
