"""Redis and ZooKeeper side by side, and other libraries' locks on the same servers, without Celery.

Run: ``python -m benchmarks.stores [--rounds 15] [--locks 50] [--servers 3]``

Uncontended acquire and release of a key that nobody used before, as tasks' keys mostly are; hand-over from a release to
the return of the one who waits, in another thread with a connection of its own; one bare write to each store, for
comparison. The test servers do not wait for the disk. ``--servers 3`` makes an ensemble of ZooKeeper.
"""

from __future__ import annotations

import itertools
import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import redis_lock

from benchmarks.frame import Benchmark, Measured, Result, alone, option
from benchmarks.rounds import turns
from benchmarks.scene import NO_ZOOKEEPER
from benchmarks.tables import figure, ratio, table
from celery_distlock import Lock
from celery_distlock.lease import Claim, Lease, new_owner
from celery_distlock.stores import open_store
from celery_distlock.stores.base import LockStore
from tests.support import zookeeper_server
from tests.support.redis_server import RedisServer
from tests.support.zookeeper_ensemble import ZooKeeperEnsemble
from tests.support.zookeeper_server import ZooKeeperServer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What is measured → what it is called.
KINDS = {
    "redis write": "Redis: one SET",
    "redis ours": "Redis: ours",
    "redis redis_py": "Redis: redis-py's Lock",
    "redis python_redis_lock": "Redis: python-redis-lock",
    "zookeeper write": "ZooKeeper: one set()",
    "zookeeper ours": "ZooKeeper: ours",
    "zookeeper kazoo": "ZooKeeper: kazoo's Lock",
}
BASE = "redis ours"
HEAD = ["", "acquire and release", "relative to ours in Redis", "hand-over", "relative to one write"]
_RECORD = {"task": "proj.tasks.charge", "id": "0" * 36, "retries": 0, "attempt": 0, "depth": 0, "host": "web-1"}
_TTL = 30
#: Seconds for which a key is held that is handed over, as a task takes its time: the other one waits by then. One that
#: asks ten times a second is met anywhere between two questions.
_HELD = (0.05, 0.15)

_numbers = itertools.count()


@dataclass(frozen=True)
class Size:
    """How much."""

    rounds: int = option(15, "rounds")
    locks: int = option(50, "locks of each kind in a round")
    handovers: int = option(4, "hand-overs of each kind in a round")
    servers: int = option(1, "of ZooKeeper: one, or an ensemble")


@dataclass
class Kind:
    """What is measured: a call, and two of the same lock, with a connection each; ``None`` for what is no lock."""

    take_and_give: Callable[[str], object]
    pair: Callable[[str], tuple[Any, Any]] | None = None


def measure(size: Size) -> Measured:
    """Take locks and hand them over, in turns."""
    found = Measured()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        kinds = _in_redis(stack, folder)
        if zookeeper_server.executable() is None:
            found.missing["ZooKeeper"] = NO_ZOOKEEPER
        else:
            kinds |= _in_zookeeper(stack, folder, size)
        for kind in kinds.values():
            for _ in range(5):
                kind.take_and_give(_key())
        for name in turns(list(kinds), size.rounds):
            kind = kinds[name]
            began = time.perf_counter()
            for _ in range(size.locks):
                kind.take_and_give(_key())
            found.rounds.add(name, lock_ms=(time.perf_counter() - began) / size.locks * 1e3)
            took = sorted(
                _once(kind) if kind.pair is None else _hand_over(*kind.pair(_key())) for _ in range(size.handovers)
            )
            found.rounds.add(name, handover_ms=took[len(took) // 2] * 1e3)
    return found


def _key() -> str:
    return f"key-{next(_numbers)}"


def _in_redis(stack: ExitStack, folder: Path) -> dict[str, Kind]:
    server = RedisServer(folder / "redis")
    stack.callback(server.stop)
    first, second = (stack.enter_context(server.client(decode_responses=False)) for _ in range(2))

    def redis_py(key: str) -> tuple[Any, Any]:
        return first.lock(key, timeout=_TTL), second.lock(key, timeout=_TTL)

    def python_redis_lock(key: str) -> tuple[Any, Any]:
        return redis_lock.Lock(first, key, expire=_TTL), redis_lock.Lock(second, key, expire=_TTL)

    return {
        "redis write": Kind(lambda key: first.set("written", key)),
        "redis ours": _ours(stack, server.url),
        "redis redis_py": Kind(lambda key: _with(redis_py(key)[0]), redis_py),
        "redis python_redis_lock": Kind(lambda key: _with(python_redis_lock(key)[0]), python_redis_lock),
    }


def _in_zookeeper(stack: ExitStack, folder: Path, size: Size) -> dict[str, Kind]:
    server: ZooKeeperServer | ZooKeeperEnsemble
    server = ZooKeeperServer(folder / "zookeeper") if size.servers == 1 else ZooKeeperEnsemble(folder / "ensemble")
    stack.callback(server.stop)
    first, second = (stack.enter_context(server.client()) for _ in range(2))
    first.ensure_path("/written")

    def kazoo(key: str) -> tuple[Any, Any]:
        return first.Lock(f"/kazoo/{key}"), second.Lock(f"/kazoo/{key}")

    return {
        "zookeeper write": Kind(lambda key: first.set("/written", key.encode())),
        "zookeeper ours": _ours(stack, f"{server.url}/benchmark?timeout=30"),
        "zookeeper kazoo": Kind(lambda key: _with(kazoo(key)[0]), kazoo),
    }


def _ours(stack: ExitStack, url: str) -> Kind:
    first, second = (stack.enter_context(closing(open_store(url))) for _ in range(2))
    return Kind(
        lambda key: _take_and_give(first, key),
        lambda key: (Lock(key, store=first), Lock(key, store=second)),
    )


def _take_and_give(store: LockStore, key: str) -> None:
    lease = store.acquire(Claim(key, new_owner(), _TTL, record=_RECORD))
    assert isinstance(lease, Lease)
    store.release([lease])


def _with(lock: Any) -> None:
    with lock:
        pass


def _write_to(kind: str) -> str:
    """Return the kind that is one write to the same store."""
    return f"{kind.partition(' ')[0]} write"


def _once(kind: Kind) -> float:
    """Return the seconds that one write takes after a pause as long as a hand-over's."""
    time.sleep(random.uniform(*_HELD))
    began = time.perf_counter()
    kind.take_and_give(_key())
    return time.perf_counter() - began


def _hand_over(lock: Any, waiting: Any) -> float:
    """Return the seconds from a release to the return of the one who waits."""
    got: list[float] = []

    def wait() -> None:
        with waiting:
            got.append(time.perf_counter())

    lock.acquire()
    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(random.uniform(*_HELD))
    began = time.perf_counter()
    lock.release()
    thread.join()
    return got[0] - began


def section(result: Result) -> str:
    """Tell it."""
    size, rounds = result.size, result.rounds
    rows = [
        [
            label,
            figure(rounds.spread(kind, "lock_ms"), "ms"),
            "1" if kind == BASE else ratio(rounds.ratio(kind, "lock_ms", BASE)),
            figure(rounds.spread(kind, "handover_ms"), "ms"),
            "1" if kind.endswith("write") else ratio(rounds.ratio(kind, "handover_ms", _write_to(kind))),
        ]
        for kind, label in KINDS.items()
        if kind in rounds
    ]
    without = "".join(f"\n{kind} is not in it: {why}.\n" for kind, why in result.measured.missing.items())
    servers = "one server" if size["servers"] == 1 else f"an ensemble of {size['servers']}"
    return f"""\
The stores without Celery: a lock is taken and given back whose key is new, {size["locks"]} times in each of
{size["rounds"]} rounds; and handed over to somebody who waits for it in another thread, {size["handovers"]} times, each
after a pause as long as a short task. Of a write the last figures are those of a single one after such a pause, when no
cache is warm any more; the first are those of one of many in a row. ZooKeeper is {servers}; neither store waits for a
disk, so a real ensemble is slower.

{table(HEAD, rows)}
{without}
"""


def draw(result: Result) -> Figure:
    """Picture both."""
    from benchmarks import plots

    rounds = result.rounds
    kinds = [kind for kind in KINDS if kind in rounds]
    panels = {
        title: [rounds.spread(kind, quantity) if rounds.of(kind, quantity) else None for kind in kinds]
        for title, quantity in (("acquire and release", "lock_ms"), ("hand-over", "handover_ms"))
    }
    ours = [kind.endswith("ours") for kind in kinds]
    return plots.dots([KINDS[kind] for kind in kinds], panels, "ms", ours=ours, log=True)


BENCHMARK = Benchmark(
    "stores",
    "Redis and ZooKeeper side by side",
    Size(),
    Size(rounds=2, locks=5, handovers=1),
    measure,
    section,
    draw,
    "Milliseconds for acquire and release, and for a hand-over, in Redis and in ZooKeeper",
)

if __name__ == "__main__":
    sys.exit(alone(BENCHMARK))
