"""Let two real beats fire all jobs until the locked one has been made twice."""

from __future__ import annotations

import sys

from examples.beat_dedup.tasks import INTERVAL, app, counters
from examples.support import Processes, wait_until

REPORTS, TICKS = 2, 12


def main() -> int:
    """Return 0 if the locked report was never made twice at once, and runs were skipped meanwhile."""
    app.control.purge()
    counters.delete(*(f"{kind}:{what}" for kind in ("unlocked", "locked") for what in ("running", "at_once", "made")))
    counters.delete("locked:skipped_for", "each:ticks", "unique:ticks")
    with Processes() as started:
        print("starting a worker …", flush=True)
        started.worker("examples.beat_dedup.tasks", concurrency=8)
        print(f"a report that takes {3 * INTERVAL:g} s, every {INTERVAL:g} s", flush=True)
        for _ in range(2):
            started.beat("examples.beat_dedup.tasks")
        wait_until(lambda: ticks("each") > 1.5 * ticks("unique") > TICKS, "the ticks of two beats")
        wait_until(lambda: int(counters.get("locked:made") or 0) >= REPORTS, f"{REPORTS} reports")
    unlocked, locked = most_at_once("unlocked"), most_at_once("locked")
    skipped = int(counters.llen("locked:skipped_for"))
    print(f"without the lock: up to {unlocked} at once")
    print(f"with the lock:    up to {locked} at once, {skipped} runs skipped")
    print(f"a job of two beats: {ticks('each')} runs; with unique ticks: {ticks('unique')}")
    return 0 if locked == 1 and skipped else 1


def ticks(kind: str) -> int:
    """Return how often a short job has run."""
    return int(counters.get(f"{kind}:ticks") or 0)


def most_at_once(kind: str) -> int:
    """Return how many reports of a kind were being made at once, at most."""
    return max(int(count) for count in counters.lrange(f"{kind}:at_once", 0, -1))


if __name__ == "__main__":
    sys.exit(main())
