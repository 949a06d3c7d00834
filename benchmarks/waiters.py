"""What it costs that many wait: server time, bytes and messages per task that got its turn; memory per parked task.

Run: ``python -m benchmarks.waiters [--waiters 10 100 1000 10000] [--handovers 200] [--rounds 1]``

So many tasks, and ``--handovers`` more, are parked on one key behind a lock that this program holds. For some seconds
nothing happens: what the lock server does meanwhile is the fixed polling. Then the lock is released, and passes from
task to task until so many are left as are named. Locks live in a Redis server of their own. How long it worked for what
is read from its slow log, which is told to keep every command; what a task costs is its share of all calls but polls,
from its first attempt to its release.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks.bodies import gaps
from benchmarks.machine import describe, load
from benchmarks.scene import Scene, prepared, wait_until
from celery_distlock.stores.redis import scripts
from tests.support.redis_server import RedisServer

SECONDS = 0.01
#: Seconds for which nothing happens but polling.
_QUIET = 4.0
_KEY = "waited-for"


class Spent(NamedTuple):
    """Calls, and the server's microseconds."""

    calls: float
    us: float

    def plus(self, other: Spent, share: float = 1.0) -> Spent:
        """Return the sum of this and of a share of the other."""
        return Spent(self.calls + other.calls * share, self.us + other.us * share)


class Meter:
    """What a Redis server does.

    Arguments:
        server: the server.
    """

    def __init__(self, server: RedisServer) -> None:
        self._client = server.client()
        self._memory_before = self._memory()
        self.reset()

    def reset(self) -> None:
        """Begin to count, anew."""
        self._client.slowlog_reset()
        self._bytes = self._transferred()
        self._calls = self._commands()
        self._since = time.monotonic()

    def keep_every_command(self) -> None:
        """Have the server log what it does, which takes memory."""
        self._client.config_set("slowlog-max-len", 1_000_000)
        self._client.config_set("slowlog-log-slower-than", 0)

    def _transferred(self) -> int:
        told = self._client.info("stats")
        return int(told["total_net_input_bytes"] + told["total_net_output_bytes"])

    def _commands(self) -> dict[str, int]:
        told: Mapping[str, Any] = self._client.info("commandstats")
        return {name.removeprefix("cmdstat_"): int(stat["calls"]) for name, stat in told.items()}

    def _memory(self) -> int:
        return int(self._client.info("memory")["used_memory"])

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

    def spent(self) -> dict[str, Spent]:
        """Return how often it was called and how long it worked, by script, and forget its log."""
        spent: dict[str, Spent] = defaultdict(lambda: Spent(0.0, 0.0))
        for entry in self._client.slowlog_get(1_000_000):
            words = entry["command"].split(b" ", 2)
            if words[0].upper() == b"EVALSHA":
                name = _SCRIPTS.get(words[1], "?")
                spent[name] = spent[name].plus(Spent(1.0, entry["duration"]))
        self._client.slowlog_reset()
        return spent


_NAMES = ("acquire", "draw", "enqueue", "confirm", "release", "withdraw", "renew")
_SCRIPTS = {script.sha: script.name for script in vars(scripts).values() if isinstance(script, scripts.Script)}


def measure(waiters: int, handovers: int, patience: float) -> dict[str, float]:
    """Return what one task costs when so many wait."""
    count = waiters + handovers
    with prepared(separate_locks=True) as scene:
        # What is loaded on first use must not count as memory of the parked.
        _hand_over(scene, "warm-up", 20)
        locks, broker = Meter(scene.locks), Meter(scene.server)
        locks.keep_every_command()
        workers = _resident(scene)
        with scene.held(_KEY):
            for _ in range(count):
                scene.tasks.ours.delay(_KEY, SECONDS)
            wait_until(lambda: scene.parked(_KEY) >= count, patience, f"{count} waiters", every=0.1)
            spent = locks.spent()
            messages = broker.calls("lpush", "rpush") / count
            nothing = Spent(0.0, 0.0)
            per_task = {name: nothing.plus(spent[name], 1 / count) for name in _NAMES}
            memory = {
                "worker, bytes/waiter": (_resident(scene) - workers) / count,
                "lock server, bytes/waiter": locks.memory() / count,
                "broker and results, bytes/waiter": broker.memory() / count,
            }
            locks.reset()
            cpu = scene.main_cpu()
            time.sleep(_QUIET)
            quiet = locks.seconds()
            polling = {
                "polling, bytes/s": locks.transferred() / quiet,
                "polling, server us/s": sum(one.us for one in locks.spent().values()) / quiet,
                "polling, main processes' CPU ms/s": (scene.main_cpu() - cpu) / quiet * 1e3,
            }
            broker.reset()
            locks.reset()
        bodies = scene.bodies(_KEY)
        wait_until(lambda: len(bodies) >= handovers, 120, f"{handovers} hand-overs", every=0.001)
        for worker in scene.workers:
            worker.freeze()
        took = locks.seconds()
        ended = bodies.since()
        transferred = locks.transferred() - polling["polling, bytes/s"] * took
        spent = locks.spent()
        for name in _NAMES:
            per_task[name] = per_task[name].plus(spent[name], 1 / len(ended))
        messages += broker.calls("lpush", "rpush") / len(ended)
        times = sorted(gaps(ended))
        return {
            "calls/task": sum(one.calls for one in per_task.values()),
            **{f"  {name}": one.calls for name, one in per_task.items()},
            "server us/task": sum(one.us for one in per_task.values()),
            **{f"  {name}, us": one.us for name, one in per_task.items()},
            "bytes/hand-over": transferred / len(ended),
            "messages/task": messages,
            "hand-over p50, ms": times[len(times) // 2] * 1e3,
            "hand-over p99, ms": times[len(times) * 99 // 100] * 1e3,
            **polling,
            "polls during the hand-overs, server us/s": spent[scripts.POLL.name].us / took,
            **memory,
        }


def _hand_over(scene: Scene, key: str, count: int) -> None:
    for _ in range(count):
        scene.tasks.ours.delay(key, SECONDS)
    wait_until(lambda: len(scene.bodies(key)) >= count, 60, f"{count} tasks")


def _resident(scene: Scene) -> int:
    return sum(process.memory_info().rss for process in scene.processes())


def main() -> int:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--waiters", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--handovers", type=int, default=100)
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
        print(f"{name:42}" + "".join(f"{value:12,.2f}" for value in medians))
    return 0


if __name__ == "__main__":
    sys.exit(main())
