"""What the examples have in common beside ZooKeeper: their arguments, and lines with the time in front."""

from __future__ import annotations

import argparse
import time

__all__ = ["arguments", "say"]

_started = time.monotonic()


def arguments(doc: str | None, **numbers: tuple[float, str]) -> argparse.Namespace:
    """Read the command line: ``--url``, and positional numbers that may be left out.

    Arguments:
        doc: the example's docstring, for ``--help``.
        numbers: name → default and explanation; a whole default takes whole numbers only.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--url", help="a ZooKeeper that is running, zookeeper://host:2181,…/chroot; default: start one")
    for name, (default, explanation) in numbers.items():
        parser.add_argument(
            name, type=type(default), nargs="?", default=default, help=f"{explanation} (default: {default})"
        )
    return parser.parse_args()


def say(what: str, *, since: float | None = None) -> None:
    """Print a line of the log: seconds since the start (or the monotonic time ``since``), and what happened."""
    print(f"{time.monotonic() - (since or _started):5.2f} s  {what}", flush=True)
