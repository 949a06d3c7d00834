"""What every process of a run does first: take the mutant it was told to, and record what it does."""

from __future__ import annotations

import os

from tests.lab import mutants, recorder

__all__ = ["MUTANT", "ROLE", "begin", "role"]

#: The environment variables that name the mutant, if any, and the process's part in the play.
MUTANT, ROLE = "LAB_MUTANT", "LAB_ROLE"


def begin() -> None:
    """Do it. The mutant first: what it changes is what is recorded."""
    mutant = os.environ.get(MUTANT)
    if mutant:
        mutants.MUTANTS[mutant]()
    recorder.install()


def role() -> str:
    """Return the name of this process's part."""
    return os.environ.get(ROLE, "")
