"""Nothing that is promised is broken, whatever breaks: real servers, real workers, and a nemesis with a seed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.lab.needs import needs
from tests.lab.run import StoreName, run


def nothing_is_violated(store: StoreName, seed: int, seconds: float, folder: Path) -> None:
    needs(store)
    outcome = run(folder / "run", store, seed, seconds, say=lambda line: print(f"{seed}: {line}"))
    print(outcome)
    assert not outcome.violations, f"make lab STORE={store} SEED={seed}\n{outcome}"
    assert not outcome.verdict.undecided, str(outcome)
    # A history of nothing proves nothing.
    assert outcome.verdict.counts["grants"] > seconds
    assert sum(outcome.happened.values()) > seconds / 10


@pytest.mark.xdist_group("lab-redis")
def test_a_short_run_with_redis(tmp_path: Path) -> None:
    nothing_is_violated("redis", 1, 8.0, tmp_path)


@pytest.mark.xdist_group("lab-zookeeper")
def test_a_short_run_with_zookeeper(tmp_path: Path) -> None:
    nothing_is_violated("zookeeper", 1, 8.0, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("store", ["redis", "zookeeper"])
def test_a_long_run_with_a_seed_by_chance(store: StoreName, tmp_path: Path) -> None:
    nothing_is_violated(store, random.randrange(1_000_000), 180.0, tmp_path)
