"""What all benchmarks have in common: sizes, a run, and its result as a JSON file.

A benchmark is a module that says what it measures, how its result is told on a page, and how it is drawn; the module's
``BENCHMARK`` collects that. Its sizes are the fields of a dataclass, of which there are two: the full one, and a quick
one that only shows that everything works. Each field is an option of the command line.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from benchmarks import machine
from benchmarks.rounds import Rounds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RESULTS", "Benchmark", "Measured", "Result", "alone"]

#: Where results go unless told otherwise.
RESULTS = Path(__file__).parents[1] / "build" / "benchmarks"

Size = TypeVar("Size")


@dataclass
class Measured:
    """What a benchmark has found.

    Attributes:
        rounds: one value per kind, quantity and round.
        curves: distributions over all rounds together: so many values at equal steps, the smallest first.
        missing: kind → why it could not be measured here.
        complaints: what the workers complained of in their logs: reason to doubt the figures.
    """

    rounds: Rounds = field(default_factory=Rounds)
    curves: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)


@dataclass
class Result:
    """One run of one benchmark, as it is kept in a file.

    Attributes:
        at: when it began, UTC.
        seconds: how long it took.
        quick: whether it was run only to show that it works.
        size: the sizes it was run with.
        machine: what it ran on.
        load: of the machine, before it began and when it had ended.
    """

    benchmark: str
    at: str
    seconds: float
    quick: bool
    size: dict[str, Any]
    machine: dict[str, str]
    load: list[float]
    measured: Measured

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        told = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "measured"}
        return told | vars(self.measured) | {"rounds": self.measured.rounds.values}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Result:
        """Return what :meth:`to_json` told."""
        measured = Measured(**{one.name: told[one.name] for one in fields(Measured)})
        measured.rounds = Rounds(told["rounds"])
        own = {one.name: told[one.name] for one in fields(cls) if one.name != "measured"}
        return cls(**own, measured=measured)

    @property
    def rounds(self) -> Rounds:
        """What was measured in turns."""
        return self.measured.rounds

    def save(self, folder: Path) -> Path:
        """Write it to a file of this folder, in the place of an earlier one, and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.benchmark}.json"
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n")
        return path


@dataclass(frozen=True)
class Benchmark(Generic[Size]):
    """One benchmark.

    Attributes:
        name: of its module, its result and its picture.
        title: its heading on the page.
        full: the sizes with which figures are worth publishing.
        quick: sizes that take a few seconds.
        measure: do it.
        section: tell a result in Markdown, without the heading and the picture.
        draw: picture a result.
        alt: what the picture shows, for those who cannot see it.
    """

    name: str
    title: str
    full: Size
    quick: Size
    measure: Callable[[Size], Measured]
    section: Callable[[Result], str]
    draw: Callable[[Result], Figure]
    alt: str

    def run(self, size: Size, *, quick: bool = False) -> Result:
        """Measure, and return what was found together with where and when."""
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        began, before = time.monotonic(), machine.busy()
        measured = self.measure(size)
        seconds, load = round(time.monotonic() - began, 1), [before, machine.busy()]
        sizes = asdict(size)  # type: ignore[call-overload]  # a dataclass, which no bound of a type variable can say
        return Result(self.name, at, seconds, quick, sizes, machine.describe(), load, measured)


def alone(benchmark: Benchmark[Any], arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark from the command line, with sizes of its own, and print its page."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{benchmark.name}", description=benchmark.title)
    parser.add_argument("--quick", action="store_true", help="only show that it works")
    parser.add_argument("--results", type=Path, help="keep the result in this folder")
    for one in fields(benchmark.full):
        default = getattr(benchmark.full, one.name)
        many = isinstance(default, tuple)
        kind = type(default[0]) if many else type(default)
        name = f"--{one.name.replace('_', '-')}"
        parser.add_argument(name, type=kind, nargs="+" if many else None, help=f"{one.metadata['help']} ({default})")
    options = vars(parser.parse_args(arguments))
    given = {
        one.name: tuple(value) if isinstance(value, list) else value
        for one in fields(benchmark.full)
        if (value := options[one.name]) is not None
    }
    size = replace(benchmark.quick if options["quick"] else benchmark.full, **given)
    result = benchmark.run(size, quick=options["quick"])
    print(f"{result.machine}\nload {result.load}, {result.seconds} s\n\n{benchmark.section(result)}")
    if options["results"]:
        result.save(options["results"])
    return 0


def option(default: Any, text: str) -> Any:
    """Return a field of a size, with its help."""
    return field(default=default, metadata={"help": text})
