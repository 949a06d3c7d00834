"""All benchmarks, and the page that tells of them: ``python -m benchmarks`` (``make bench``).

Results go to ``build/benchmarks``, one JSON file for each. When there is one of every benchmark, page and pictures are
made from them: in ``docs``, or for a quick run beside the results. A benchmark that was run alone replaces its own
result only. ``--page-only`` makes page and pictures anew from what is published, without measuring.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import anatomy, handover, memory, overhead, publish, recovery, renewal, report, stores, waiters
from benchmarks.frame import RESULTS, Benchmark

#: In the order of the page.
ALL: tuple[Benchmark[Any], ...] = (
    overhead.BENCHMARK,
    anatomy.BENCHMARK,
    handover.BENCHMARK,
    waiters.BENCHMARK,
    recovery.BENCHMARK,
    publish.BENCHMARK,
    renewal.BENCHMARK,
    memory.BENCHMARK,
    stores.BENCHMARK,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them; return how many failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(one.name for one in ALL)}")
    parser.add_argument("--quick", action="store_true", help="only show that everything works")
    parser.add_argument("--results", type=Path, help=f"the folder of the results ({RESULTS})")
    parser.add_argument("--docs", type=Path, help=f"the folder of the page ({report.DOCS})")
    parser.add_argument("--page-only", action="store_true", help="measure nothing; make the page anew")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - {one.name for one in ALL}:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    results = options.results or (RESULTS / "quick" if options.quick else RESULTS)
    docs = options.docs or (results if options.quick else report.DOCS)
    if options.page_only:
        print(report.publish(report.published(docs), ALL, docs))
        return 0
    chosen = [one for one in ALL if not options.names or one.name in options.names]
    for one in chosen:
        # What fails now has no result, rather than an old one.
        (results / f"{one.name}.json").unlink(missing_ok=True)
    failed = [one.name for one in chosen if not _run(one, results, options.quick)]
    found = report.load(results, ALL)
    if failed:
        print(f"failed: {', '.join(failed)}")
    elif missing := [one.name for one in ALL if one.name not in found]:
        print(f"no page yet: there is no result of {', '.join(missing)}")
    else:
        print(report.publish(found, ALL, docs))
    return len(failed)


def _run(benchmark: Benchmark[Any], results: Path, quick: bool) -> bool:
    """Run one in a process of its own and keep its result; tell whether there is one."""
    # celery-once and celery-singleton keep the first server they see for as long as their process lives.
    began = time.monotonic()
    print(f"{time.strftime('%H:%M:%S')} {benchmark.name} ", end="", flush=True)
    command = [sys.executable, "-m", f"benchmarks.{benchmark.name}", "--results", str(results)]
    command += ["--quick"] if quick else []
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(f"{time.monotonic() - began:.0f} s", flush=True)
    if done.returncode:
        # The others do not depend on it.
        print(done.stdout)
    return not done.returncode


if __name__ == "__main__":
    sys.exit(main())
