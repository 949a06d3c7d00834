"""The pictures show the values that they are given, where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import plots
from benchmarks.rounds import Spread

SLOW, FAST = Spread(20.0, 10.0, 40.0, 7), Spread(2.0, 1.0, 3.0, 7)


def drawn(axes: Axes) -> list[list[float]]:
    """Return where the lines and marks of a picture are, from left to right."""
    return [np.asarray(line.get_xdata(), dtype=float).tolist() for line in axes.get_lines()]


def test_dots_stand_within_their_range() -> None:
    figure = plots.dots(["ours", "theirs"], {"ms": [FAST, SLOW]}, "ms", ours=[True, False])
    assert drawn(figure.axes[0]) == [[1.0, 3.0], [2.0], [10.0, 40.0], [20.0]]


def test_what_was_not_measured_has_a_row_and_no_dot() -> None:
    figure = plots.dots(["ours", "theirs"], {"ms": [FAST, None]}, "ms", ours=[True, False], log=True)
    assert drawn(figure.axes[0]) == [[1.0, 3.0], [2.0]]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["ours", "theirs"]


def test_moments_stand_within_their_range_and_what_did_not_happen_at_its_end() -> None:
    rows: dict[str, dict[str, Spread | float]] = {"killed": {"ours": FAST, "theirs": 12.0}}
    lines = drawn(plots.moments(rows, "seconds", ours=["ours"]).axes[0])
    assert lines[:3] == [[1.0, 3.0], [2.0], [12.0]]


def test_bars_begin_at_nothing_and_tell_their_number() -> None:
    axes = plots.bars({"bytes": {"ours": SLOW, "theirs": FAST}}, ours=["ours"]).axes[0]
    assert axes.get_xlim()[0] == 0.0
    assert [text.get_text() for text in axes.texts] == ["20.0", "2.00"]
    assert drawn(axes) == [[10.0, 40.0], [1.0, 3.0]]


def test_a_distribution_reaches_from_none_to_all() -> None:
    axes = plots.curves({"ours": [1.0, 2.0, 3.0]}, "ms", ours=["ours"]).axes[0]
    (line,) = axes.get_lines()
    assert np.asarray(line.get_ydata()).tolist() == [0.0, 50.0, 100.0]


def two_kinds() -> list[Figure]:
    """Return every kind of picture that shows ours beside another one."""
    ours, theirs = [([1.0, 10.0], [spread, spread]) for spread in (FAST, SLOW)]
    return [
        plots.dots(["ours", "theirs"], {"ms": [FAST, SLOW]}, "ms", ours=[True, False]),
        plots.curves({"ours": [1.0, 2.0], "theirs": [2.0, 3.0]}, "ms", ours=["ours"]),
        plots.lines({"ms": {"ours": ours, "theirs": theirs}}, "waiters", ours=["ours"]),
        plots.moments({"killed": {"ours": FAST, "theirs": SLOW}}, "seconds", ours=["ours"]),
    ]


@pytest.mark.parametrize("figure", two_kinds(), ids=["dots", "curves", "lines", "moments"])
def test_ours_differ_from_others_by_more_than_their_colour(figure: Figure) -> None:
    styles = {(line.get_marker(), line.get_linestyle()) for line in figure.axes[0].get_lines()}
    marks = {marker for marker, _ in styles if marker not in ("None", None, "")}
    assert len(marks) > 1 or len({dashes for _, dashes in styles}) > 1
