"""Save a document ten times in a second, and see how often it is indexed."""

from __future__ import annotations

import sys
import time

from examples.debounce.tasks import QUIET, app, save, work
from examples.support import Processes, wait_until

DOCUMENT = "novel"
SAVES = 10


def main() -> int:
    """Return 0 if only the last revision was indexed."""
    app.control.purge()
    work.delete(f"each:{DOCUMENT}", f"latest:{DOCUMENT}", "superseded")
    with Processes() as started:
        print("starting a worker …", flush=True)
        started.worker("examples.debounce.tasks")
        print(f"{SAVES} saves in a second, to be indexed {QUIET:g} s after the last one", flush=True)
        for revision in range(1, SAVES + 1):
            save(DOCUMENT, revision)
            time.sleep(1 / SAVES)
        wait_until(lambda: work.llen(f"each:{DOCUMENT}") == SAVES, "the index of each save")
        wait_until(lambda: int(work.get("superseded") or 0) == SAVES - 1, "the ones that were replaced")
        wait_until(lambda: work.llen(f"latest:{DOCUMENT}") > 0, "the index of the last save")
    each, latest = (list(map(str, work.lrange(f"{kind}:{DOCUMENT}", 0, -1))) for kind in ("each", "latest"))
    print(f"for each save: {len(each)} runs, revisions {', '.join(each)}")
    print(f"debounced:     {len(latest)} run, revision {', '.join(latest)}")
    return 0 if latest == [str(SAVES)] else 1


if __name__ == "__main__":
    sys.exit(main())
