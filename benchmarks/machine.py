"""What was measured on, and how busy it was: figures without that say little."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from tests.support import redis_server, zookeeper_server

__all__ = ["busy", "describe"]

#: What is measured, and what it is compared with.
PACKAGES = (
    "celery",
    "kombu",
    "redis",
    "kazoo",
    "python-redis-lock",
    "celery-once",
    "celery-singleton",
    "celery-heimdall",
)


def describe() -> dict[str, str]:
    """Return the machine, and the versions of everything that takes part."""
    found = {
        "machine": f"{len(os.sched_getaffinity(0))} cores ({_cpu()}), {psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
    }
    found |= {package: _version(package) for package in PACKAGES}
    return found | {"Redis": _redis(), "ZooKeeper": _zookeeper()}


def busy() -> float:
    """Return the load of the last minute, others' included."""
    return os.getloadavg()[0]


def _cpu() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _redis() -> str:
    program = redis_server.executable()
    if program is None:
        return "missing"
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\S+)", told)
    return found[1] if found else told.strip()


def _zookeeper() -> str:
    """Return the version, which Debian's package tells in the name of a link to the jar."""
    if zookeeper_server.executable() is None:
        return "missing"
    named = [re.fullmatch(r"zookeeper-(\d[\d.]*)\.jar", path.name) for path in Path("/usr/share/java").iterdir()]
    return next((found[1] for found in named if found), "installed")
