"""Who of those that are parked for one key stands in the store's line."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from celery_distlock.worker.row import FEWEST, MOST, Row


@dataclass(eq=False)
class Member:
    owner: str
    number: int | None = None
    aside: bool = False


@pytest.fixture
def row() -> Row[Member]:
    return Row()


def stand(row: Row[Member], count: int) -> None:
    for number in range(count):
        row[str(number)] = Member(str(number), number)


def test_those_behind_come_in_the_order_of_their_numbers_and_those_without_come_last(row: Row[Member]) -> None:
    for number in (3, None, 1, 2):
        row.put_behind(Member(f"owner {number}", number))
    came = [row.first() for _ in range(5)]
    assert [None if one is None else one.number for one in came] == [1, 2, 3, None, None]
    assert [one is None for one in came] == [False] * 4 + [True]


def test_who_is_put_behind_has_left_the_line(row: Row[Member]) -> None:
    member = row["a"] = Member("a", 1)
    row.put_behind(member)
    assert member.aside
    assert list(row) == []
    assert not row.is_over


def test_nobody_new_passes_those_who_stand_behind(row: Row[Member]) -> None:
    assert row.admits(1)
    row.put_behind(Member("a", 1))
    assert not row.admits(2)
    row.first()
    assert row.admits(2)
    stand(row, MOST)
    assert not row.admits(MOST)


def test_who_stood_before_those_in_line_stands_there_again(row: Row[Member]) -> None:
    stand(row, MOST)
    row.put_behind(Member("a", 2 * MOST))
    assert row.admits(MOST - 2)
    assert not row.admits(MOST + 1)


def test_who_has_no_number_takes_its_place_at_once(row: Row[Member]) -> None:
    stand(row, MOST)
    assert row.admits(None)
    row.decline()
    assert not row.admits(None)


def test_places_are_refilled_when_half_of_them_have_gone(row: Row[Member]) -> None:
    stand(row, MOST)
    missing = []
    for number in range(MOST):
        del row[str(number)]
        missing.append(row.missing())
    assert missing == [0] * (MOST // 2 - 1) + list(range(MOST // 2, MOST + 1))


def test_while_a_place_is_declined_nobody_takes_one(row: Row[Member]) -> None:
    row.decline()
    assert row.missing() == 0
    assert not row.admits(0)


def test_who_keeps_declining_has_few_in_line_and_who_takes_has_more_again(row: Row[Member]) -> None:
    for _ in range(10):
        row.decline()
    row.declined = False
    assert row.missing() == FEWEST
    for _ in range(2 * MOST):
        row.took()
    assert row.missing() == MOST
