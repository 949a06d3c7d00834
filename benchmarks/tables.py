"""Figures and tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.rounds import Spread

__all__ = ["LABELS", "figure", "number", "ratio", "table"]

#: What the kinds are called on the page and in the pictures.
LABELS = {
    "bare": "bare task",
    "floor": "two calls, bare socket",
    "locked": "LockedTask, all arguments",
    "locked_keyed": "LockedTask, template",
    "unique": "LockedTask, unique",
    "celery_once": "celery-once",
    "celery_singleton": "celery-singleton",
    "celery_heimdall": "celery-heimdall",
    "bare_late": "bare task, late ack",
    "locked_late": "LockedTask, late ack",
    "parked": "LockedTask, all parked",
    "arriving": "LockedTask",
    "full": "LockedTask, workers full",
    "ours": "LockedTask",
    "python_redis_lock": "python-redis-lock",
    "kazoo": "kazoo's Lock",
    "redis_py": "redis-py's Lock",
    "celery_retry": "Celery's retry",
}


def number(value: float) -> str:
    """Return a number with three significant digits, or all of a large one's."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def figure(spread: Spread, unit: str) -> str:
    """Return a median with its range."""
    median = f"{number(spread.median)} {unit}".rstrip()
    return f"{median} ({number(spread.low)} … {number(spread.high)})"


def ratio(spread: Spread) -> str:
    """Return the median of ratios with its range."""
    return f"× {spread.median:.2f} ({spread.low:.2f} … {spread.high:.2f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the first column is text, the others are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
