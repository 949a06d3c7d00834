"""What it costs that many wait: server time, bytes and messages per task that got its turn; memory per parked task.

Run: ``python -m benchmarks.waiters [--waiters 10 100 1000 10000] [--handovers 200] [--rounds 1]``

So many tasks are parked on one key behind a lock that this program holds. For some seconds nothing happens: what the
lock server does meanwhile is the fixed polling. Then the lock is released and passes from task to task, while the
publisher replaces each task that ends. Locks live in a Redis server of their own. How long it worked for what is read
from its slow log, which is told to keep every command; the hand-overs' share is all but the polls.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from benchmarks.bodies import gaps
from benchmarks.machine import describe, load
from benchmarks.scene import Scene, prepared, wait_until
from celery_distlock.stores.redis import scripts
from tests.support.redis_server import RedisServer

SECONDS = 0.01
#: Seconds for which nothing happens but polling.
_QUIET = 4.0
_KEY = "waited-for"


class Meter:
    """What a Redis server does.

    Arguments:
        server: the server.
    """

    def __init__(self, server: RedisServer) -> None:
        self._client = server.client()
        self._memory_before = self._memory()

    def reset(self) -> None:
        """Begin to count, anew."""
        # Only now: it takes memory.
        self._client.config_set("slowlog-max-len", 1_000_000)
        self._client.config_set("slowlog-log-slower-than", 0)
        self._client.slowlog_reset()
        self._bytes = self._transferred()
        self._calls = self._commands()
        self._since = time.monotonic()

    def _transferred(self) -> int:
        told = self._client.info("stats")
        return int(told["total_net_input_bytes"] + told["total_net_output_bytes"])

    def _commands(self) -> dict[str, int]:
        told: Mapping[str, Any] = self._client.info("commandstats")
        return {name.removeprefix("cmdstat_"): int(stat["calls"]) for name, stat in told.items()}

    def _memory(self) -> int:
        return int(self._client.info("memory")["used_memory_dataset"])

    def memory(self) -> int:
        """Return how many more bytes its data take than when the meter was made."""
        return self._memory() - self._memory_before

    def seconds(self) -> float:
        """Return since when it measures."""
        return time.monotonic() - self._since

    def transferred(self) -> int:
        """Return how many bytes it received and sent."""
        return self._transferred() - self._bytes

    def calls(self, *commands: str) -> int:
        """Return how often these commands were called."""
        now = self._commands()
        return sum(now.get(command, 0) - self._calls.get(command, 0) for command in commands)

    def microseconds(self) -> dict[str, float]:
        """Return how long it worked, by script."""
        spent: dict[str, float] = defaultdict(float)
        for entry in self._client.slowlog_get(1_000_000):
            words = entry["command"].split(b" ", 2)
            if words[0].upper() == b"EVALSHA":
                spent[_SCRIPTS.get(words[1], "?")] += entry["duration"]
        return spent


_NAMES = ("acquire", "enqueue", "confirm", "release", "withdraw", "renew", "poll")
_SCRIPTS = {script.sha: script.name for script in vars(scripts).values() if isinstance(script, scripts.Script)}


def measure(waiters: int, handovers: int, patience: float) -> dict[str, float]:
    """Return what one task costs behind which so many wait."""
    with prepared(separate_locks=True) as scene:
        # What is loaded on first use must not count as memory of the parked.
        _hand_over(scene, "warm-up", 20, 8)
        meter, messages = Meter(scene.locks), Meter(scene.server)
        workers = _resident(scene)
        with scene.held(_KEY):
            for _ in range(waiters):
                scene.tasks.ours.delay(_KEY, SECONDS)
            wait_until(lambda: scene.parked(_KEY) >= waiters, patience, f"{waiters} waiters", every=0.1)
            memory = {
                "worker, bytes/waiter": (_resident(scene) - workers) / waiters,
                "lock server, bytes/waiter": meter.memory() / waiters,
                "broker and results, bytes/waiter": messages.memory() / waiters,
            }
            meter.reset()
            cpu = scene.main_cpu()
            time.sleep(_QUIET)
            quiet = meter.seconds()
            polling = {
                "polling, server us/s": sum(meter.microseconds().values()) / quiet,
                "polling, bytes/s": meter.transferred() / quiet,
                "polling, main processes' CPU ms/s": (scene.main_cpu() - cpu) / quiet * 1e3,
            }
            messages.reset()
            meter.reset()
        _hand_over(scene, _KEY, handovers, 0)
        for worker in scene.workers:
            worker.freeze()
        took = meter.seconds()
        bodies = scene.bodies(_KEY).since()
        count = len(bodies)
        spent = meter.microseconds()
        polls = spent.pop(scripts.POLL.name, 0.0)
        times = sorted(gaps(bodies))
        return {
            "server us/task": sum(spent.values()) / count,
            **{f"  {name}": spent[name] / count for name in _NAMES if name != scripts.POLL.name},
            "bytes/task": (meter.transferred() - polling["polling, bytes/s"] * took) / count,
            "messages/task": messages.calls("lpush", "rpush") / count,
            "hand-over p50, ms": times[len(times) // 2] * 1e3,
            "hand-over p99, ms": times[len(times) * 99 // 100] * 1e3,
            **polling,
            "polls during the hand-overs, server us/s": polls / took,
            **memory,
        }


def _hand_over(scene: Scene, key: str, count: int, waiting: int) -> None:
    """Run ``count`` tasks, and publish one for each that ends."""
    for _ in range(waiting):
        scene.tasks.ours.delay(key, SECONDS)
    bodies, published = scene.bodies(key), 0

    def replaced() -> bool:
        nonlocal published
        ended = len(bodies)
        while published < ended:
            scene.tasks.ours.delay(key, SECONDS)
            published += 1
        return ended >= count

    wait_until(replaced, 120, f"{count} hand-overs")


def _resident(scene: Scene) -> int:
    return sum(process.memory_info().rss for process in scene.processes())


def main() -> int:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--waiters", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--handovers", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--patience", type=float, default=300.0, help="seconds for all to be parked")
    options = parser.parse_args()
    print(f"{describe('celery', 'kombu', 'redis')}, 2 x 2 prefork, {load()}")
    found: dict[int, list[dict[str, float]]] = defaultdict(list)
    for _ in range(options.rounds):
        for waiters in options.waiters:
            found[waiters].append(measure(waiters, options.handovers, options.patience))
            print(f"  {waiters} waiters: {load()}", flush=True)
    print(f"\n{'waiters':42}" + "".join(f"{waiters:>12}" for waiters in options.waiters))
    for name in found[options.waiters[0]][0]:
        medians = [statistics.median(one[name] for one in found[waiters]) for waiters in options.waiters]
        print(f"{name:42}" + "".join(f"{value:12,.1f}" for value in medians))
    return 0


if __name__ == "__main__":
    sys.exit(main())
