"""What a lock in ZooKeeper costs, beside kazoo's own ``Lock`` on the same server, in one interleaved run.

Run: ``python -m benchmarks.zookeeper [--rounds 400] [--ensemble] [--keys 10000]``

Uncontended acquire and release, of a key that nobody used before (as tasks' keys mostly are) and of the same key again
and again, with a new ``Lock`` object of kazoo's each time and with one that is used again; hand-over from a release to
the waiter's return; a single write for comparison; what so many locks over as many keys leave behind. Prints medians
and the ratios of neighbouring measurements, so whatever else the machine is doing hits all alike. The test servers
do not wait for the disk.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from celery_distlock import Lock
from celery_distlock.lease import Claim, Lease, new_owner
from celery_distlock.stores.base import LockStore
from celery_distlock.stores.zookeeper import ZooKeeperStore
from tests.support.zookeeper_ensemble import ZooKeeperEnsemble
from tests.support.zookeeper_server import ZooKeeperServer

RECORD = {"task": "benchmarks.tasks.locked", "id": "0" * 36, "host": "localhost", "pid": os.getpid()}


def take_and_give(store: LockStore, key: str) -> None:
    """Acquire and release once."""
    lease = store.acquire(Claim(key, new_owner(), 30.0, record=RECORD))
    assert isinstance(lease, Lease)
    store.release([lease])


def measure(rounds: int, candidates: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Call all candidates in turn; return the seconds of each call."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 20):
        for name, call in candidates.items():
            began = time.perf_counter()
            call()
            if number >= 20:
                times[name].append(time.perf_counter() - began)
    return times


def uncontended(store: LockStore, client: Any, rounds: int) -> None:
    """Print what uncontended locks cost."""
    numbers = itertools.count()
    reused = client.Lock("/kazoo/reused")

    def kazoo_again() -> None:
        with reused:
            pass

    def kazoo_new_object() -> None:
        with client.Lock("/kazoo/same"):
            pass

    def kazoo_new_key() -> None:
        with client.Lock(f"/kazoo/{next(numbers)}"):
            pass

    client.ensure_path("/kazoo/written")
    times = measure(
        rounds,
        {
            "one write": lambda: client.set("/kazoo/written", b"x"),
            "ours, new key": lambda: take_and_give(store, f"k{next(numbers)}"),
            "kazoo, new key": kazoo_new_key,
            "ours, same key": lambda: take_and_give(store, "same"),
            "kazoo, same key, new object": kazoo_new_object,
            "kazoo, same key, same object": kazoo_again,
        },
    )
    for name, seconds in times.items():
        print(f"{name:32}  p50 {statistics.median(seconds) * 1e3:6.2f} ms")
    for one, other in (
        ("ours, new key", "kazoo, new key"),
        ("ours, same key", "kazoo, same key, new object"),
        ("ours, same key", "kazoo, same key, same object"),
    ):
        ratio = statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))
        print(f"{one} / {other}: {ratio:.2f}")


def hand_over(first: LockStore, second: LockStore, client: Any, rounds: int) -> None:
    """Print how long it takes from a release to the return of the one who waited."""
    times, writes = [], []
    for number in range(rounds):
        lock, waiting = Lock(f"h{number}", store=first), Lock(f"h{number}", store=second)
        lock.acquire()
        got: list[float] = []

        def wait(waiting: Lock = waiting, got: list[float] = got) -> None:
            with waiting:
                got.append(time.perf_counter())

        thread = threading.Thread(target=wait)
        thread.start()
        path = f"/benchmark/distlock/locks/h{number}"
        while len(client.get_children(path)) < 2:
            time.sleep(0.002)
        time.sleep(0.06)  # as a task takes its time; its watch is set a moment after its node
        began = time.perf_counter()
        lock.release()
        thread.join()
        times.append(got[0] - began)
        began = time.perf_counter()
        client.set("/kazoo/written", b"x")
        writes.append(time.perf_counter() - began)
    ordered = sorted(times)
    ratio = statistics.median(times) / statistics.median(writes)
    print(
        f"hand-over                         p50 {statistics.median(times) * 1e3:6.2f} ms, "
        f"p99 {ordered[int(len(ordered) * 0.99)] * 1e3:.2f} ms; {ratio:.2f} × one write"
    )


def leftovers(store: LockStore, client: Any, keys: int) -> None:
    """Print what so many locks leave behind."""
    began = time.perf_counter()
    for number in range(keys):
        take_and_give(store, f"n{number}")
    seconds = time.perf_counter() - began
    store.holders("the last requests have been executed")
    client.sync("/benchmark/distlock/locks")
    left = client.get_children("/benchmark/distlock/locks")
    print(f"{keys} locks over {keys} keys in {seconds:.1f} s left {len(left)} nodes")


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--ensemble", action="store_true", help="three servers instead of one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kind = ZooKeeperEnsemble if options.ensemble else ZooKeeperServer
        server = kind(Path(folder))
        try:
            url = f"{server.url}/benchmark?timeout=30"
            with (
                closing(ZooKeeperStore(url)) as store,
                closing(ZooKeeperStore(url)) as other,
                server.client() as client,
            ):
                uncontended(store, client, options.rounds)
                hand_over(store, other, client, max(20, options.rounds // 4))
                leftovers(store, client, options.keys)
        finally:
            server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
