"""How figures are made of what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.frame import Measured, Result
from benchmarks.rounds import Rounds, Spread, percentile, turns
from benchmarks.tables import figure, number, ratio


@pytest.fixture
def rounds() -> Rounds:
    """Two kinds on a machine that becomes ten times slower in the second round, and better in the third."""
    made = Rounds()
    for bare, locked in ((1.0, 1.2), (10.0, 11.0), (4.0, 6.0)):
        made.add("bare", ms=bare)
        made.add("locked", ms=locked)
    return made


def test_a_ratio_is_that_of_neighbours_whatever_else_the_machine_does(rounds: Rounds) -> None:
    assert rounds.ratio("locked", "ms", "bare") == pytest.approx((1.2, 1.1, 1.5, 3))


def test_a_spread_is_the_median_with_the_smallest_and_the_largest(rounds: Rounds) -> None:
    assert rounds.spread("bare", "ms") == Spread(4.0, 1.0, 10.0, 3)


def test_kinds_of_different_rounds_have_no_ratio(rounds: Rounds) -> None:
    rounds.add("locked", ms=1.0)
    with pytest.raises(ValueError, match=r"longer|shorter"):
        rounds.ratio("locked", "ms", "bare")


def test_what_was_not_measured_has_no_values(rounds: Rounds) -> None:
    assert rounds.of("locked", "bytes") == []
    assert "celery_once" not in rounds


def test_every_kind_has_one_turn_in_every_round_and_none_always_comes_first() -> None:
    order = list(turns(["a", "b", "c"], 3))
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 51.0, 100.0, 100.0]


def test_a_result_is_the_same_when_it_is_read_again(rounds: Rounds, tmp_path: Path) -> None:
    measured = Measured(rounds, {"bare": [1.0, 2.0]}, {"kazoo": "why"}, ["a complaint"])
    result = Result(
        "one", "2026-11-20T16:00:00+00:00", 1.5, True, {"rounds": 3}, {"machine": "m"}, [0.1, 0.2], measured
    )
    again = Result.from_json(json.loads(result.save(tmp_path).read_text()))
    assert again.to_json() == result.to_json()
    assert again.rounds.ratio("locked", "ms", "bare") == rounds.ratio("locked", "ms", "bare")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.0, "0"),
        (0.0123456, "0.0123"),
        (1.0, "1.00"),
        (12.345, "12.3"),
        (999.6, "1,000"),
        (12345.6, "12,346"),
        (-2.5, "-2.50"),
    ],
)
def test_a_number_has_three_significant_digits_or_all_before_its_point(value: float, told: str) -> None:
    assert number(value) == told


def test_figures_show_their_range() -> None:
    spread = Spread(1.5, 1.0, 20.0, 7)
    assert figure(spread, "ms") == "1.50 ms (1.00 … 20.0)"
    assert figure(spread, "") == "1.50 (1.00 … 20.0)"
    assert ratio(spread) == "× 1.50 (1.00 … 20.00)"
