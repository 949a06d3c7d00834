"""The page ``docs/benchmarks.md`` and its pictures, made from results and from nothing else.

What the page was made from lies beside it, as ``benchmarks.json``: so a test can make it again and compare.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.frame import Benchmark, Result

__all__ = ["DOCS", "load", "page", "publish", "published"]

DOCS = Path(__file__).parents[1] / "docs"
_RESULTS = "benchmarks.json"
_PAGE = "benchmarks.md"
_PICTURES = "images"


def load(folder: Path, benchmarks: Sequence[Benchmark[Any]]) -> dict[str, Result]:
    """Return the results of these benchmarks, by name, as far as the folder has them."""
    paths = {one.name: folder / f"{one.name}.json" for one in benchmarks}
    return {name: Result.from_json(json.loads(path.read_text())) for name, path in paths.items() if path.exists()}


def published(docs: Path = DOCS) -> dict[str, Result]:
    """Return the results from which the page was made."""
    told = json.loads((docs / _RESULTS).read_text())
    return {name: Result.from_json(each) for name, each in told.items()}


def publish(results: Mapping[str, Result], benchmarks: Sequence[Benchmark[Any]], docs: Path) -> Path:
    """Write page, pictures, and what they were made from; return the page's path."""
    (docs / _PICTURES).mkdir(parents=True, exist_ok=True)
    for one in benchmarks:
        figure = one.draw(results[one.name])
        # Without a date in it, the same results make the same file.
        figure.savefig(docs / _PICTURES / _picture(one), dpi=110, metadata={"Software": None})
    told = {name: result.to_json() for name, result in results.items()}
    (docs / _RESULTS).write_text(json.dumps(told, separators=(",", ":")) + "\n")
    path = docs / _PAGE
    path.write_text(page(results, benchmarks))
    return path


def _picture(benchmark: Benchmark[Any]) -> str:
    return f"benchmark-{benchmark.name}.png"


def page(results: Mapping[str, Result], benchmarks: Sequence[Benchmark[Any]]) -> str:
    """Return the page."""
    own = [results[one.name] for one in benchmarks]
    parts = [_INTRODUCTION]
    if any(result.quick for result in own):
        parts.append(_QUICK)
    parts.append(_where(own))
    for one, result in zip(benchmarks, own, strict=True):
        parts += [
            f"## {one.title}\n",
            f"![{one.alt}]({_PICTURES}/{_picture(one)})\n",
            _wrapped(one.section(result)),
            _how(one, result),
        ]
    return "\n".join(parts)


def _wrapped(text: str) -> str:
    """Return a text whose lines are as long as those of other pages; figures have widths of their own."""
    parts = [part.strip() for part in text.split("\n\n") if part.strip()]
    wrap = textwrap.TextWrapper(120, break_long_words=False, break_on_hyphens=False).fill
    return "\n\n".join(part if part.startswith("|") else wrap(part) for part in parts) + "\n"


_INTRODUCTION = """\
# Benchmarks

<!-- Made by `make bench` from benchmarks.json: changes by hand are lost, and found by a test. -->

What the locks cost, how soon they are passed on, and what becomes of them when something dies, beside other libraries
that do the same job. `make bench` measures all of it, on a machine of yours, too.

All servers and workers are real, and run on one machine. Whatever is compared takes turns: a round measures every kind
once, in an order that changes, and a ratio is that of two neighbours in one round. Figures are the median of the
rounds, with the smallest and the largest in brackets.
"""

_QUICK = """\
> **These are figures of a quick run, which shows that the commands work, and measures nothing.**
"""


def _where(results: Sequence[Result]) -> str:
    """Tell the machine and the versions: of every result, if they differ."""
    told: dict[str, list[str]] = {}
    for result in results:
        lines = ", ".join(f"{name} {version}" for name, version in result.machine.items() if name != "machine")
        told.setdefault(f"{result.machine['machine']}; {lines}.", []).append(result.benchmark)
    if len(told) == 1:
        return _wrapped(f"Measured on {next(iter(told))}")
    return _wrapped("\n\n".join(f"Measured on {where} ({', '.join(names)})" for where, names in told.items()))


def _how(benchmark: Benchmark[Any], result: Result) -> str:
    """Tell how to measure it again, and how busy the machine was."""
    before, after = result.load
    text = (
        f"*`python -m benchmarks.{benchmark.name}`, {result.at[:16].replace('T', ' ')} UTC, {result.seconds:.0f} s; "
        f"load of the machine {before:.1f} before and {after:.1f} after.*\n"
    )
    complaints = len(result.measured.complaints)
    return text + (f"\n**The workers complained {complaints} times in their logs.**\n" if complaints else "")
