"""How soon the next task runs when one ends: from the end of one body to the start of the next, on one key.

Run: ``python -m benchmarks.handover [--handovers 2000] [--rounds 4] [--broker redis|rabbitmq]``

Two workers with two prefork processes each run tasks of 10 ms that all want one key: ours wait in the workers' main
processes; other people's locks wait in the task's body and so in a pool process; Celery's retry comes back later. The
systems take turns, so whatever else the machine is doing hits all alike; shown are the medians over the rounds of each
round's percentiles, and their spread.

``parked``     ours, all parked before the first begins: nothing else happens
``arriving``   ours, while more of them arrive: the publisher keeps ``--waiting`` tasks that want the key
``full``       the same, while both workers are also kept full of unrelated tasks of 10 ms
the others     as many tasks want the key as in ``arriving``

The others' locks are released in the body, ours after the result is stored: that is part of the time.

At last, the time that six unrelated tasks take which are published behind sixty that wait for a key.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.bodies import gaps, overlaps
from benchmarks.machine import describe, load
from benchmarks.scene import Scene, prepared, wait_until

#: Our own tasks: all parked before the first begins; arriving while others run; the same in full workers.
PARKED, ARRIVING, FULL = OURS = ("parked", "arriving", "full")
PEERS = ("redis_py", "python_redis_lock", "kazoo", "celery_retry")
SECONDS = 0.01
#: How many unrelated tasks are kept waiting for a slot, where both workers are to be full.
_FULL = 24
#: Seconds without an end after which a system is given up.
_PATIENCE = 30.0

_keys = itertools.count()


class Round:
    """What one system did in one round."""

    def __init__(self, times: Sequence[float], overlapping: int, cpu: float) -> None:
        self.p50, self.p99 = (_percentile(times, share) * 1e3 for share in (0.5, 0.99))
        self.overlaps = overlapping
        #: Milliseconds of the workers' CPU per task.
        self.cpu = cpu * 1e3


def measure(scene: Scene, kind: str, count: int, waiting: int) -> Round:
    """Hand one key from task to task ``count`` times.

    Arguments:
        kind: the name of a task, or one of :data:`OURS`.
        count: how many hand-overs.
        waiting: how many tasks want the key at any time, unless all are parked before the first begins.

    Raises:
        TimeoutError: nothing has ended for half a minute.
    """
    key = f"{kind}-{next(_keys)}"
    task = scene.tasks.ours if kind in OURS else getattr(scene.tasks, kind)
    done, unrelated = scene.bodies(key), scene.bodies("unrelated")
    others = len(unrelated)
    ended = published = 0
    if kind == PARKED:
        with scene.held(key):
            for _ in range(count + 1):
                task.delay(key, SECONDS)
            published = count + 1
            wait_until(lambda: scene.parked(key) > count, 120, "the waiters")
    cpu, moved_at = scene.cpu(), time.monotonic()
    while ended <= count:
        while kind == FULL and others < len(unrelated) + _FULL:
            scene.tasks.unrelated.delay(SECONDS)
            others += 1
        while published <= count and published < ended + waiting:
            task.delay(key, SECONDS)
            published += 1
        time.sleep(0.002)
        now = len(done)
        if now > ended:
            moved_at, ended = time.monotonic(), now
        elif time.monotonic() > moved_at + _PATIENCE:
            raise TimeoutError(f"{kind}: {ended} of {count} done, and no more for {_PATIENCE:.0f} s")
    cpu = scene.cpu() - cpu
    wait_until(lambda: len(unrelated) >= others, _PATIENCE, "the unrelated tasks")
    bodies = done.since()
    return Round(gaps(bodies), overlaps(bodies), cpu / len(bodies))


def behind_waiters(scene: Scene, kind: str, waiters: int = 60, others: int = 6) -> float | None:
    """Return the seconds that some unrelated tasks take behind others that wait; None: longer than these wait."""
    key, unrelated = f"{kind}-{next(_keys)}", scene.bodies("unrelated")
    task, before = scene.tasks.ours if kind in OURS else getattr(scene.tasks, kind), len(unrelated)
    patience = 5.0
    with ExitStack() as held:
        if kind in OURS:
            held.enter_context(scene.held(key))
        else:
            # Whoever comes first holds the key for that long.
            task.delay(key, patience)
        for _ in range(waiters):
            task.delay(key, 0.0)
        if kind in OURS:
            wait_until(lambda: scene.parked(key) >= waiters, 60, "the waiters")
        started = time.monotonic()
        for _ in range(others):
            scene.tasks.unrelated.delay(SECONDS)
        wait_until(lambda: len(unrelated) >= before + others, 120, "the unrelated tasks")
        took = unrelated.since(before)[-1].end - started
    wait_until(lambda: len(scene.bodies(key)) >= waiters, 240, "the waiters", every=0.05)
    return took if took < patience else None


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def _told(values: Sequence[float]) -> str:
    return f"{statistics.median(values):8.2f} [{min(values):7.2f} .. {max(values):7.2f}]"


def main() -> int:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--handovers", type=int, default=2000, help="of ours, in all rounds together")
    parser.add_argument("--peer-handovers", type=int, default=400, help="of each of the others, in all together")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--waiting", type=int, default=8, help="how many tasks want the key at any time")
    parser.add_argument("--broker", default="redis", choices=["redis", "rabbitmq"])
    parser.add_argument("--concurrency", type=int, default=2, help="pool processes of each of the two workers")
    parser.add_argument("--only", choices=[*OURS, *PEERS], action="append", help="measure only this one")
    options = parser.parse_args()
    packages = ("celery", "kombu", "redis", "python-redis-lock", "kazoo")
    print(f"{describe(*packages)}, broker {options.broker}, 2 x {options.concurrency} prefork, {load()}")
    rounds: dict[str, list[Round]] = defaultdict(list)
    with prepared(broker=options.broker, concurrency=options.concurrency) as scene:
        kinds = [kind for kind in (*OURS, *PEERS) if not options.only or kind in options.only]
        if not scene.zookeeper and "kazoo" in kinds:
            print("There is no ZooKeeper here (Debian package: zookeeper), so kazoo's Lock is left out.")
            kinds.remove("kazoo")
        for kind in kinds:
            # Connections, scripts, imports.
            measure(scene, kind, 20, options.waiting)
        for _ in range(options.rounds):
            for kind in kinds:
                count = options.handovers if kind in OURS else options.peer_handovers
                rounds[kind].append(measure(scene, kind, max(1, count // options.rounds), options.waiting))
        print(f"\n{'':18} {'p50, ms':>27}   {'p99, ms':>27}   overlaps   worker CPU, ms/task   ({load()})")
        for kind in kinds:
            of_kind = rounds[kind]
            print(
                f"{kind:18} {_told([one.p50 for one in of_kind])}   {_told([one.p99 for one in of_kind])}   "
                f"{sum(one.overlaps for one in of_kind):8}   {statistics.median(one.cpu for one in of_kind):10.2f}"
            )
        print("\nsix unrelated tasks published behind sixty waiters:")
        for kind in kinds:
            if kind not in (ARRIVING, FULL):
                took = behind_waiters(scene, kind)
                print(f"{kind:18} {'as long as these wait' if took is None else f'{took * 1e3:.0f} ms'}")
        for complaint in scene.complaints():
            print(complaint)
    return 0


if __name__ == "__main__":
    sys.exit(main())
