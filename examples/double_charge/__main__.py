"""Let the accidents happen to real workers: all of them, or those named on the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from examples.support import Processes


def main(names: list[str]) -> int:
    """Return 0 if, under the lock, every order was charged once."""
    with Processes() as started:
        # Before the tasks are imported, here and in the workers.
        os.environ.setdefault("LEDGER", str(started.folder / "ledger.sqlite"))
        from examples.double_charge import accidents, tasks

        tasks.app.control.purge()
        print("starting workers …", flush=True)
        workers = started.workers("examples.double_charge.tasks", accidents.WORKERS)
        happens = {
            "clicked_twice": ("the customers click twice", accidents.clicked_twice),
            "delivered_again": ("the broker delivers the message again", accidents.delivered_again),
            "child_killed": ("the process is killed in mid-charge", accidents.child_killed),
            "worker_killed": (
                "the worker is killed before it acknowledges",
                lambda: accidents.worker_killed(workers),
            ),
        }
        good = True
        for name in names or happens:
            what, accident = happens[name]
            seen = accident()
            print(f"{what}: orders {seen.orders}, charges without a lock {seen.unlocked}, with a lock {seen.locked}")
            if isinstance(seen, accidents.KilledInMidCharge):
                print(f"  the key was free {_ms(seen.free_after)} after the kill")
                print(f"  the next task began {_ms(seen.next_after)} after the kill")
            sys.stdout.flush()
            good = good and seen.locked_once
    return 0 if good else 1


def _ms(seconds: Sequence[float]) -> str:
    return ", ".join(f"{1000 * each:.0f} ms" for each in seconds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
