"""The pictures: few inks, units on every axis, and nothing told by colour alone.

The colours are those of Okabe and Ito, which the colour-blind tell apart; ours are blue and round, the others'
vermilion and square.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from benchmarks.rounds import Spread
from benchmarks.tables import number

__all__ = ["OTHERS", "OURS", "Line", "bars", "curves", "dots", "lines", "moments"]

OURS, OTHERS = "#0072B2", "#D55E00"
_INKS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
_OUR_INKS = ("#0072B2", "#000000", "#56B4E9")
_DASHES = ("-", "--", "-.", ":", (0, (9, 2)), (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (12, 2, 1, 2)))
_GREY = "#BBBBBB"
_WIDTH = 8.6

Line = tuple[Sequence[float], Sequence[Spread]]


def _figure(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = [figure.add_subplot(1, panels, 1 + number) for number in range(panels)]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(color=_GREY, linewidth=0.4)
        each.set_axisbelow(True)
    return figure, axes


def _plain(value: float, _: object = None) -> str:
    """Return a number on an axis: 1000 rather than 10³."""
    return f"{value:,g}"


def _logarithmic(axes: Axes, which: str) -> None:
    """Make an axis logarithmic, with numbers that people read; called when everything is drawn."""
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    low, high = getattr(axes, f"get_{which}lim")()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 200 else (1.0,), numticks=20))
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_formatter(NullFormatter())


def dots(
    labels: Sequence[str],
    panels: Mapping[str, Sequence[Spread | None]],
    unit: str,
    *,
    ours: Sequence[bool],
    mark: float | None = None,
    log: bool = False,
) -> Figure:
    """Return medians with their ranges, one row for each label, in panels side by side.

    Arguments:
        labels: of the rows, the first one on top.
        panels: what each panel shows → one spread for each row; None: not measured.
        unit: of all of them.
        ours: which rows are ours.
        mark: a value to draw a line at.
        log: whether the axes are logarithmic.
    """
    figure, axes = _figure(len(panels), 1.1 + 0.32 * len(labels))
    rows = range(len(labels))
    for panel, (each, (title, spreads)) in enumerate(zip(axes, panels.items(), strict=True)):
        each.set_title(title, fontsize=10)
        if mark is not None:
            each.axvline(mark, color="black", linewidth=0.8)
        for row, spread, own in zip(rows, spreads, ours, strict=True):
            if spread is None:
                continue
            ink, shape = (OURS, "o") if own else (OTHERS, "s")
            each.plot([spread.low, spread.high], [row, row], color=ink, linewidth=1.5, alpha=0.5)
            each.plot([spread.median], [row], shape, color=ink, markersize=6)
        if log:
            _logarithmic(each, "x")
        each.grid(axis="y", visible=False)
        each.set_ylim(len(labels) - 0.5, -0.5)
        each.set_yticks(rows, labels if panel == 0 else [""] * len(labels))
        each.tick_params(axis="y", length=0)
    figure.supxlabel(f"{unit}; median and range of the rounds", fontsize=9)
    return figure


def curves(distributions: Mapping[str, Sequence[float]], unit: str, *, ours: Sequence[str]) -> Figure:
    """Return cumulative distributions over a logarithmic axis.

    Arguments:
        distributions: label → values at equal steps, the smallest first.
        unit: of the values.
        ours: the labels that are ours.
    """
    figure, (axes,) = _figure(1, 3.8)
    own, others = itertools.count(), itertools.count()
    for dashes, (label, values) in zip(itertools.cycle(_DASHES), distributions.items(), strict=False):
        which = next(own) if label in ours else next(others)
        ink = (_OUR_INKS if label in ours else _INKS)[which]
        shares = [100 * step / (len(values) - 1) for step in range(len(values))]
        # What overlaps has no place on this axis; the table counts it.
        shown = [max(value, 1e-2) for value in values]
        axes.plot(shown, shares, color=ink, linestyle=dashes, linewidth=2.2 if label in ours else 1.4, label=label)
    _logarithmic(axes, "x")
    axes.set_xlabel(unit)
    axes.set_ylabel("% of the hand-overs that were at least as fast", fontsize=9)
    axes.set_ylim(0, 100)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    return figure


def lines(panels: Mapping[str, Mapping[str, Line]], across: str, *, ours: Sequence[str]) -> Figure:
    """Return medians with ranges over a number, both logarithmic, in panels side by side.

    Arguments:
        panels: what each panel shows, with its unit → label → the numbers, and a spread for each.
        across: what the numbers are.
        ours: the labels that are ours.
    """
    figure, axes = _figure(len(panels), 3.6)
    for each, (title, shown) in zip(axes, panels.items(), strict=True):
        each.set_title(title, fontsize=10)
        others = itertools.count()
        for label, (numbers, spreads) in shown.items():
            ink, shape = (OURS, "o") if label in ours else (_INKS[next(others)], "s")
            medians = [one.median for one in spreads]
            below = [one.median - one.low for one in spreads]
            above = [one.high - one.median for one in spreads]
            each.errorbar(numbers, medians, [below, above], color=ink, marker=shape, capsize=3, label=label)
        each.set_xscale("log")
        each.set_yscale("log")
        low, high = each.get_ylim()
        # A flat line fills the picture with its noise unless there is room around it.
        each.set_ylim(min(low, high / 30), high * 1.5)
        _logarithmic(each, "y")
        every = sorted({number for numbers, _ in shown.values() for number in numbers})
        each.set_xticks(every, [f"{one:,}" for one in every], fontsize=8)
        each.xaxis.set_minor_locator(NullLocator())
        each.set_xlabel(across, fontsize=9)
        each.legend(frameon=False, fontsize=8)
    return figure


def bars(panels: Mapping[str, Mapping[str, Spread]], *, ours: Sequence[str]) -> Figure:
    """Return bars with ranges and numbers, in panels side by side, each with a unit of its own.

    Arguments:
        panels: what each panel shows, with its unit → label → value.
        ours: the labels that are ours.
    """
    rows = max(len(shown) for shown in panels.values())
    figure, axes = _figure(len(panels), 0.9 + 0.34 * rows)
    for each, (title, shown) in zip(axes, panels.items(), strict=True):
        each.set_title(title, fontsize=10)
        widest = max(spread.high for spread in shown.values())
        for row, (label, spread) in enumerate(shown.items()):
            ink, pattern = (OURS, None) if label in ours else (OTHERS, "///")
            each.barh(row, spread.median, height=0.6, color=ink, hatch=pattern, edgecolor="white")
            each.plot([spread.low, spread.high], [row, row], color="black", linewidth=1.2)
            each.text(spread.high + widest * 0.02, row, number(spread.median), va="center", fontsize=8)
        each.set_yticks(range(len(shown)), list(shown), fontsize=8)
        each.set_ylim(len(shown) - 0.5, -0.5)
        each.set_xlim(0, widest * 1.22)
        each.grid(axis="y", visible=False)
        each.xaxis.set_major_locator(MaxNLocator(4))
        each.xaxis.set_major_formatter(FuncFormatter(_plain))
        each.tick_params(axis="x", labelsize=8)
    return figure


def _last(value: Spread | float) -> float:
    return value.high if isinstance(value, Spread) else value


def moments(rows: Mapping[str, Mapping[str, Spread | float]], unit: str, *, ours: Sequence[str]) -> Figure:
    """Return when something happened, by row and label, or that it had not by the end (an arrow).

    Arguments:
        rows: row → label → spread, or a bare number: not until then.
        unit: of all of them.
        ours: the labels that are ours.
    """
    labels = list(dict.fromkeys(label for shown in rows.values() for label in shown))
    least = 1e-3
    step = 0.8 / len(labels)
    figure, (axes,) = _figure(1, 1.2 + 0.16 * len(labels) * len(rows))
    shapes = dict(zip(labels, itertools.cycle("osD^vPX*"), strict=False))
    inks = itertools.cycle(_INKS)
    colours = {label: OURS if label in ours else next(inks) for label in labels}
    latest = max(_last(value) for shown in rows.values() for value in shown.values())
    axes.set_xlim(least * 0.8, latest * 2.5)
    axes.set_xscale("log")
    for row, shown in enumerate(rows.values()):
        for place_of, (label, value) in enumerate(shown.items()):
            place, ink = row - 0.4 + step * (place_of + 0.5), colours[label]
            if isinstance(value, Spread):
                # What was free before its holder was dead has no place on this axis; the table tells.
                median, low, high = (max(each, least) for each in value[:3])
                axes.plot([low, high], [place, place], color=ink, linewidth=1.5, alpha=0.5)
                axes.plot([median], [place], shapes[label], color=ink, markersize=5)
            else:
                axes.annotate(
                    "", (value * 1.7, place), (value, place), arrowprops={"arrowstyle": "->", "color": ink, "lw": 1.5}
                )
                axes.plot([value], [place], shapes[label], color=ink, markersize=5, fillstyle="none")
        if row:
            axes.axhline(row - 0.5, color=_GREY, linewidth=0.8)
    _logarithmic(axes, "x")
    axes.grid(axis="y", visible=False)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"{unit}; hollow with an arrow: not until then", fontsize=9)
    handles = [axes.plot([], [], shapes[label], color=colours[label], label=label)[0] for label in labels]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    return figure
