"""The limits of what is promised are where docs/guarantees.md says that they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.counterexamples import COUNTEREXAMPLES, Counterexample, show
from tests.lab.needs import needs
from tests.lab.run import Outcome

EXAMPLES = {example.name: example for example in COUNTEREXAMPLES}


def shown(name: str, folder: Path) -> tuple[Counterexample, Outcome]:
    example = EXAMPLES[name]
    needs(example.store, clocks="clock" in name)
    outcome = show(example, folder / "run")
    print(outcome)
    return example, outcome


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "redis: the server restarts without its data",
        "redis: a replica takes over that missed the last writes",
        "redis: the clock of the server jumps forwards",
        "zookeeper: the node of a holder is deleted by hand",
    ],
)
def test_two_believe_for_a_while_when_the_store_breaks(name: str, tmp_path: Path) -> None:
    _, outcome = shown(name, tmp_path)
    assert outcome.verdict.excused, str(outcome)
    assert not outcome.violations, str(outcome)
    # By its next renewal a holder knows.
    assert all(crowd.end - crowd.start < 2.0 for crowd in outcome.verdict.excused)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["redis: data lost and a clock that went back", "zookeeper: all servers lose their data"]
)
def test_fences_begin_anew_and_a_resource_that_checks_them_refuses(name: str, tmp_path: Path) -> None:
    _, outcome = shown(name, tmp_path)
    assert any("fence did not grow" in each for each in outcome.violations), str(outcome)
    assert outcome.lists["fenced"].refused > 0
    assert outcome.lists["fenced"].lost == 0


@pytest.mark.slow
@pytest.mark.parametrize("store", ["redis", "zookeeper"])
def test_who_is_stopped_before_its_write_loses_that_of_others_unless_fences_are_checked(
    store: str, tmp_path: Path
) -> None:
    _, outcome = shown(f"{store}: holders are stopped between their last look and their write", tmp_path)
    assert outcome.lists["plain"].lost > 0
    assert outcome.lists["checked"].lost > 0
    assert outcome.lists["fenced"].lost == 0
    assert outcome.lists["fenced"].refused > 0
    assert not outcome.verdict.violations, str(outcome)
