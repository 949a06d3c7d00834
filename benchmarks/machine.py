"""What was measured on, and how busy it was: figures without that say little."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["describe", "load"]


def describe(*packages: str) -> str:
    """Return the versions of Python and of these packages, and the number of cores, in one line."""
    versions = [f"{package} {_version(package)}" for package in packages]
    return ", ".join([f"Python {platform.python_version()}", *versions, f"{os.cpu_count()} cores"])


def load() -> str:
    """Return the load of the last minute, others' included."""
    return f"load {os.getloadavg()[0]:.1f}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(missing)"
