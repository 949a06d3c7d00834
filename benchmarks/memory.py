"""What locks and waiters take of a store, and what is left of them.

Run: ``python -m benchmarks.memory [--rounds 7] [--locks 1000]``

In turns, so many locks are held under different keys, or wanted by so many waiters of one key, and the store is asked
how much it keeps: Redis for the memory of its data, ZooKeeper for its nodes and the bytes of their paths and data. Then
all are given back, and it is asked again.
"""

from __future__ import annotations

import itertools
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import redis_lock

from benchmarks.frame import Benchmark, Measured, Result, alone, option
from benchmarks.rounds import turns
from benchmarks.scene import NO_ZOOKEEPER, zookeeper_of
from benchmarks.tables import LABELS, figure, number, ratio, table
from celery_distlock.lease import Claim, Lease, Offer, Ticket, new_owner
from celery_distlock.stores import open_store
from celery_distlock.stores.base import LockStore, Queueing
from tests.support.apps import close_app, load_app
from tests.support.redis_server import RedisServer
from tests.support.zookeeper_server import ZooKeeperServer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS, WAITERS = "ours", "waiters"
#: Holds so many locks, and returns what gives them back.
Hold = Callable[[int], Callable[[], object]]
#: As long as those of tasks are, or a little longer.
_RECORD = {"task": "proj.tasks.charge", "id": "0" * 36, "retries": 0, "attempt": 0, "depth": 0, "host": "web-1"}
_LONG = 3600.0
#: The keys that our store keeps in Redis though nobody holds anything.
CONSTANT = "constant"
#: So many keys meet each of its shards.
_EVERYWHERE = 500
#: Seconds within which waiters have to be heard of.
_HEARD_OF = 0.5
#: A name of its own for each lock that was ever held.
_numbers = itertools.count()


@dataclass(frozen=True)
class Size:
    """How much."""

    rounds: int = option(7, "rounds")
    locks: int = option(1000, "locks, and waiters")


def measure(size: Size) -> Measured:
    """Ask Redis, then ZooKeeper."""
    found = Measured()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        _in_redis(stack, folder / "redis", size, found)
        server = zookeeper_of(stack, folder / "zookeeper")
        if server is None:
            found.missing["ZooKeeper"] = NO_ZOOKEEPER
        else:
            _in_zookeeper(stack, server, size, found)
    return found


def _in_redis(stack: ExitStack, folder: Path, size: Size, found: Measured) -> None:
    server = RedisServer(folder)
    stack.callback(server.stop)
    tasks = load_app("benchmarks.tasks", {"DISTLOCK_URL": server.url})
    stack.callback(close_app, tasks.app)
    client = stack.enter_context(server.client())
    raw = stack.enter_context(server.client(decode_responses=False))
    store = stack.enter_context(closing(open_store(server.url)))
    kinds: dict[str, Hold] = {
        OURS: lambda count: _ours(store, count),
        WAITERS: lambda count: _waiters(store, count),
        "redis_py": lambda count: _each([raw.lock(_key(), timeout=_LONG) for _ in range(count)]),
        "python_redis_lock": lambda count: _each(
            [redis_lock.Lock(raw, _key(), expire=int(_LONG)) for _ in range(count)]
        ),
        "celery_once": lambda count: _once(tasks.celery_once, count),
        "celery_singleton": lambda count: _singleton(tasks.celery_singleton, count),
        "celery_heimdall": lambda count: _heimdall(tasks.celery_heimdall, count),
    }

    def kept() -> dict[str, float]:
        return {"bytes": float(client.info("memory")["used_memory"]), "entries": float(client.dbsize())}

    for hold in kinds.values():
        hold(10)()
    for kind in turns(list(kinds), size.rounds):
        # Every one begins with tables of the same size, which Redis does not make smaller at once, and with what our
        # store keeps whoever holds a lock.
        client.flushall()
        _ours(store, _EVERYWHERE)()
        found.rounds.add(CONSTANT, entries=float(client.dbsize()))
        _compare(found, f"redis {kind}", kinds[kind], size.locks, kept)


def _in_zookeeper(stack: ExitStack, server: ZooKeeperServer, size: Size, found: Measured) -> None:
    store = stack.enter_context(closing(open_store(f"{server.url}?timeout=30")))
    client = stack.enter_context(server.client())
    kinds: dict[str, Hold] = {
        OURS: lambda count: _ours(store, count),
        WAITERS: lambda count: _waiters(store, count),
        "kazoo": lambda count: _each([client.Lock(f"/kazoo/{_key()}") for _ in range(count)]),
    }

    def kept() -> dict[str, float]:
        # The store gives back and tidies up behind its caller's back.
        store.holders("the last requests have been executed")
        told = dict(line.split("\t") for line in server.command("mntr").splitlines() if "\t" in line)
        return {"bytes": float(told["zk_approximate_data_size"]), "entries": float(told["zk_znode_count"])}

    for hold in kinds.values():
        hold(10)()
    for kind in turns(list(kinds), size.rounds):
        _compare(found, f"zookeeper {kind}", kinds[kind], size.locks, kept)


def _compare(found: Measured, kind: str, hold: Hold, count: int, kept: Callable[[], dict[str, float]]) -> None:
    """Note what is kept while so many are held, and after that, per lock."""
    before = kept()
    give_back = hold(count)
    during = kept()
    give_back()
    after = kept()
    found.rounds.add(
        kind,
        **{name: (during[name] - before[name]) / count for name in before},
        **{f"{name}_left": after[name] - before[name] for name in before},
    )


# -- who holds ---------------------------------------------------------------------------------------------------------


def _key() -> str:
    return f"order:{next(_numbers)}"


def _taken(store: LockStore, key: str) -> Lease:
    lease = store.acquire(Claim(key, new_owner(), _LONG, record=_RECORD))
    assert isinstance(lease, Lease)
    return lease


def _ours(store: LockStore, count: int) -> Callable[[], object]:
    leases = [_taken(store, _key()) for _ in range(count)]
    return lambda: store.release(leases)


def _waiters(store: LockStore, count: int) -> Callable[[], object]:
    assert isinstance(store, Queueing)
    lease = _taken(store, "wanted")
    claims = [Claim("wanted", new_owner(), _LONG, record=_RECORD) for _ in range(count)]
    places: list[Ticket | Offer] = []
    heard_of = time.monotonic()
    for claim in claims:
        place = store.enqueue(claim)
        assert isinstance(place, Ticket)
        places.append(place)
        if time.monotonic() > heard_of + _HEARD_OF:
            store.poll(places)
            heard_of = time.monotonic()

    def give_back() -> None:
        store.withdraw(claims)
        store.release([lease])

    return give_back


def _each(locks: Sequence[Any]) -> Callable[[], object]:
    for lock in locks:
        lock.acquire()
    return lambda: [lock.release() for lock in locks]


def _once(task: Any, count: int) -> Callable[[], object]:
    keys = [task.get_key((next(_numbers),)) for _ in range(count)]
    for key in keys:
        task.once_backend.raise_or_lock(key, timeout=int(_LONG))
    return lambda: [task.once_backend.clear_lock(key) for key in keys]


def _singleton(task: Any, count: int) -> Callable[[], object]:
    keys = [task.generate_lock(task.name, (next(_numbers),)) for _ in range(count)]
    for key in keys:
        task.aquire_lock(key, str(uuid.uuid4()))
    return lambda: [task.unlock(key) for key in keys]


def _heimdall(task: Any, count: int) -> Callable[[], object]:
    from celery_heimdall.task import acquire_lock, release_lock, unique_key_for_task

    keys = [unique_key_for_task(task, (next(_numbers),), {}, prefix="h-lock:") for _ in range(count)]
    for key in keys:
        acquire_lock(task, key, int(_LONG), task_id=str(uuid.uuid4()))
    return lambda: [release_lock(task, key) for key in keys]


# -- the page ----------------------------------------------------------------------------------------------------------


def _label(kind: str) -> str:
    store, _, library = kind.partition(" ")
    names = {"redis": "Redis", "zookeeper": "ZooKeeper"}
    label = "a waiter of ours" if library == WAITERS else LABELS[library]
    return f"{names[store]}, {label}"


def section(result: Result) -> str:
    """Tell it."""
    size, rounds = result.size, result.rounds
    rows = [
        [
            _label(kind),
            figure(rounds.spread(kind, "bytes"), "B"),
            ratio(rounds.ratio(kind, "bytes", f"{kind.partition(' ')[0]} {OURS}")),
            number(rounds.spread(kind, "entries").median),
            number(rounds.spread(kind, "entries_left").median),
        ]
        for kind in rounds.values
        if kind != CONSTANT
    ]
    without = "".join(f"\n{kind} is not in it: {why}.\n" for kind, why in result.measured.missing.items())
    return f"""\
What does a store keep for each lock that is held, and for each waiter in a line? {size["rounds"]} rounds of
{size["locks"]:,} of them, each with the record of a task where the library keeps one. In Redis, bytes are those of its
memory and entries are keys; in ZooKeeper, bytes are those of paths and data, and entries are nodes.

{table(["", "bytes each", "bytes, relative to our lock", "entries each", "entries left when all are given back"], rows)}
{without}
Besides, our store keeps {rounds.spread(CONSTANT, "entries").median:.0f} keys in Redis, however many locks there were.
What python-redis-lock leaves, to wake up who waits, expires a second later. kazoo leaves the node of every key. The
other libraries keep a random token, or the task's id: nothing tells who holds the lock, since when, or where. Who waits
for their locks keeps a connection, and a process of the pool.
"""


def draw(result: Result) -> Figure:
    """Picture the bytes."""
    from benchmarks import plots

    rounds = result.rounds
    panels: dict[str, dict[str, Any]] = {}
    for kind in rounds.values:
        if kind == CONSTANT:
            continue
        store, _, _ = kind.partition(" ")
        title = "bytes of memory in Redis" if store == "redis" else "bytes of paths and data in ZooKeeper"
        panels.setdefault(title, {})[_label(kind).partition(", ")[2]] = rounds.spread(kind, "bytes")
    return plots.bars(panels, ours=[LABELS[OURS], "a waiter of ours"])


BENCHMARK = Benchmark(
    "memory",
    "What the store keeps",
    Size(),
    Size(rounds=2, locks=50),
    measure,
    section,
    draw,
    "Bytes per lock and per waiter in Redis and in ZooKeeper, for each library",
)

if __name__ == "__main__":
    sys.exit(alone(BENCHMARK))
