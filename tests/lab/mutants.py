"""Our own code, broken on purpose."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["MUTANTS"]

MUTANTS: dict[str, Callable[[], None]] = {}
