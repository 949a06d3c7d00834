"""``python -m tests.lab --store redis --seed 1 --minutes 3``: what ``make lab`` runs."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.lab.run import run


def main() -> int:
    """Run, print what happened, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    parser.add_argument("--store", choices=("redis", "zookeeper"), default="redis")
    parser.add_argument("--seed", type=int, default=None, help="default: one by chance, which is printed")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--mutant", default=None, help="break our own code in this way; see mutants.py")
    parser.add_argument("--no-breaking", action="store_true", help="only faults that must not let two believe")
    parser.add_argument("--folder", type=Path, default=None, help="keep everything there")
    given = parser.parse_args()
    seed = random.randrange(1_000_000) if given.seed is None else given.seed
    folder = given.folder or Path(tempfile.mkdtemp(prefix="lab-"))
    print(f"store {given.store}, seed {seed}, {given.minutes:g} minutes; everything is written to {folder}", flush=True)
    begun = time.monotonic()
    outcome = run(
        folder,
        given.store,
        seed,
        60.0 * given.minutes,
        breaking=not given.no_breaking,
        mutant=given.mutant,
        say=lambda line: print(f"{time.monotonic() - begun:7.1f} s  {line}", flush=True),
    )
    print(outcome)
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())
