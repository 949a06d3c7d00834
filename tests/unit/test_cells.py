"""What executor and main process tell each other of a task whose turn has come."""

from __future__ import annotations

import os
from typing import Any

import pytest

from celery_distlock import cells
from celery_distlock.lease import Claim, Lease

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


def test_an_executor_that_comes_when_its_place_was_given_back_uses_the_cell_in_another_name(cell: cells.Cell) -> None:
    name = cells.late(CLAIM.owner)
    assert len(name) == len(CLAIM.owner)
    cell.expect(CLAIM)
    assert cell.take_back()
    cell.rename(name)
    assert not ask(cell)
    assert cell.pid == 0
    assert cell.asking(CLAIM.key, name, CLAIM.ttl, CLAIM.limit)
    view = cell.view()
    assert view is not None
    assert view.lease is not None
    assert (view.state, view.lease.owner) == (cells.ASKING, name)


def test_a_key_that_is_too_long_is_not_expected(cell: cells.Cell) -> None:
    assert not cell.expect(Claim("k" * (cells.KEY_MAX + 1), CLAIM.owner, 30.0))
    assert cell.state == cells.READY


LEASE = Lease(CLAIM.key, CLAIM.owner, 7, CLAIM.ttl, 1234.5, CLAIM.limit)


def gift(
    cell: cells.Cell,
    key: str = CLAIM.key,
    owner: str = CLAIM.owner,
    ttl: float = CLAIM.ttl,
    limit: int = CLAIM.limit,
) -> object:
    return cell.gift(key, owner, ttl, limit)


def test_a_lease_that_was_asked_for_on_the_way_is_there_for_its_owner(cell: cells.Cell) -> None:
    assert gift(cell) is None
    cell.expect(CLAIM)
    cell.give(LEASE)
    assert ask(cell)
    assert gift(cell) == (7, 1234.5)


def test_a_gift_is_not_a_grant(cell: cells.Cell) -> None:
    """Until the executor has taken it the main process goes on as if it had only been asked for."""
    cell.expect(CLAIM)
    cell.give(LEASE)
    view = cell.view()
    assert view is not None
    assert view.lease is not None
    assert (view.state, view.lease.fence) == (cells.ASKING, 0)


@pytest.mark.parametrize("other", [{"key": "l"}, {"owner": "b" * 32}, {"ttl": 31.0}, {"limit": 3}], ids=str)
def test_a_gift_is_nothing_to_who_would_ask_in_another_name_or_on_other_terms(
    cell: cells.Cell, other: dict[str, Any]
) -> None:
    cell.give(LEASE)
    assert gift(cell, **other) is None


@pytest.mark.parametrize("word", [cells._GIFT_FENCE, cells._GIFT_DEADLINE])
def test_half_a_gift_is_none(cell: cells.Cell, word: int) -> None:
    """Another processor may see what was written in another order."""
    cell.give(LEASE)
    cell._arena._ints[cell.base + word] = 0
    assert gift(cell) is None


def test_a_cell_that_is_taken_anew_has_no_gift(cell: cells.Cell) -> None:
    cell.give(LEASE)
    cell.reset(CLAIM.owner)
    assert gift(cell) is None
