"""The checker is not satisfied with just anything: it refuses each of our mutants, and accepts what is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.mutants import MUTANTS
from tests.lab.needs import needs
from tests.lab.scenarios import SCENARIOS, Scenario, play


def name_of(scenario: Scenario) -> str:
    return f"{scenario.mutant}-{scenario.script.__name__}"


def test_there_is_a_scenario_for_every_mutant() -> None:
    assert {scenario.mutant for scenario in SCENARIOS} == set(MUTANTS)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=name_of)
def test_a_mutant_is_caught(scenario: Scenario, tmp_path: Path) -> None:
    needs(clocks=scenario.cast.get("clocks", False))
    outcome = play(scenario, tmp_path / "run", scenario.mutant)
    assert outcome.violations, str(outcome)
    print(outcome.violations[0])


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=name_of)
def test_the_original_is_not(scenario: Scenario, tmp_path: Path) -> None:
    needs(clocks=scenario.cast.get("clocks", False))
    outcome = play(scenario, tmp_path / "run", None)
    assert not outcome.violations, str(outcome)
    assert outcome.verdict.counts["holds"] > 0
