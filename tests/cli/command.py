"""The real ``celery`` command, with this project's commands, whether or not the project is installed here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["ROOT", "celery_command", "project"]

ROOT = Path(__file__).parents[2]


def project() -> dict[str, Any]:
    """Return the table ``project`` of ``pyproject.toml``."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return dict(tomllib.load(file)["project"])


def _installed(folder: Path) -> Path:
    """Write what an installer writes: the metadata in which Celery looks for commands."""
    info = folder / "celery_distlock-0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project()['name']}\nVersion: 0\n")
    lines = []
    for group, points in project()["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {path}" for name, path in points.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder


def celery_command(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run ``celery`` with these arguments to its end, which must come within a minute.

    Arguments:
        folder: a temporary one.
        env: added to the environment.
    """
    paths = os.pathsep.join((str(ROOT), str(_installed(folder))))
    return subprocess.run(
        [sys.executable, "-m", "celery", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, **(env or {})},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
