"""Sessions and processes: each has its own, and none is left behind."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from celery_distlock.lease import Claim, Contended, Lease, Renewal, Ticket, new_owner
from celery_distlock.stores.zookeeper import ZooKeeperStore
from tests.stores.zookeeper import client_of
from tests.support.waiting import eventually
from tests.support.zookeeper_server import ZooKeeperServer


@pytest.fixture
def store(zookeeper_url: str) -> Iterator[ZooKeeperStore]:
    with closing(ZooKeeperStore(zookeeper_url)) as store:
        yield store


def granted(store: ZooKeeperStore, key: str = "k") -> Lease:
    answer = store.acquire(Claim(key, new_owner(), 30.0))
    assert isinstance(answer, Lease), answer
    return answer


# A forked child.


def in_child(check: Callable[[], None]) -> int:
    """Call something in a forked child and return its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            check()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# Celery's own pools fork with threads, too.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_has_a_session_of_its_own_and_the_parents_goes_on(store: ZooKeeperStore) -> None:
    lease = granted(store)
    parents = client_of(store).client_id

    def check() -> None:
        assert store._ours.session.id == 0
        assert isinstance(store.acquire(Claim("k", new_owner(), 30.0)), Contended)
        assert client_of(store).client_id[0] != parents[0]
        granted(store, "another")
        store.close()

    assert in_child(check) == 0
    assert store.renew([lease]) == [Renewal.HELD]
    assert client_of(store).client_id == parents
    assert [holder["key"] for holder in store.holders()] == ["k"]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_that_uses_nothing_of_its_parents_harms_nothing(store: ZooKeeperStore) -> None:
    lease = granted(store)
    states: list[str] = []
    client_of(store).add_listener(states.append)
    assert in_child(lambda: None) == 0
    assert store.renew([lease]) == [Renewal.HELD]
    assert states == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_does_not_give_up_the_places_of_its_parent(store: ZooKeeperStore) -> None:
    store.claim_ttl = 0.5
    granted(store)
    place = store.enqueue(Claim("k", new_owner(), 30.0))
    assert isinstance(place, Ticket)

    def check() -> None:
        store.holders("k")
        # The parent says every now and then that it waits; the child does not hear of that.
        time.sleep(0.8)
        store.holders("k")
        store.close()

    with ThreadPoolExecutor() as threads:
        child = threads.submit(in_child, check)
        while not child.done():
            [place] = store.poll([place])  # type: ignore[list-item]
            assert isinstance(place, Ticket)
            time.sleep(0.05)
        assert child.result() == 0
    [after] = store.poll([place])
    assert isinstance(after, Ticket)
    assert after.number == place.number


# The end of a process.

PROGRAM = """
import os, signal, sys, time
# What a shell starts in the background inherits that Ctrl-C is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from celery_distlock.lease import Claim, Lease
from celery_distlock.stores import open_store

store = open_store(sys.argv[1])
assert isinstance(store.acquire(Claim("k", "holder", 30.0)), Lease)
store.listen(lambda key, owner: None)
store.enqueue(Claim("k", "waiter", 30.0))
print("ready", flush=True)
exec(sys.argv[2])
"""


def started(url: str, end: str) -> subprocess.Popen[str]:
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, url, end], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    return program


@pytest.mark.parametrize("end", ["pass", "sys.exit(0)", "raise KeyboardInterrupt"])
def test_a_process_that_ends_takes_its_nodes_with_it_at_once(store: ZooKeeperStore, end: str) -> None:
    """Nor do the client's threads keep it alive."""
    with started(store.name, end) as program:
        program.wait(10)
    assert isinstance(store.acquire(Claim("k", new_owner(), 30.0)), Lease)


def test_a_process_that_is_killed_leaves_nothing_longer_than_its_session(store: ZooKeeperStore) -> None:
    granted(store, "connected")
    with started(f"{store.name}?session_timeout=3", "time.sleep(60)") as program:
        program.kill()
        program.wait(10)
    assert isinstance(store.acquire(Claim("k", new_owner(), 30.0)), Contended)
    wish = Claim("k", new_owner(), 30.0)
    eventually(lambda: isinstance(store.acquire(wish), Lease), 5, "the key")


def test_the_end_of_a_process_is_not_held_up_by_a_frozen_server(
    private_zookeeper: Callable[..., ZooKeeperServer],
) -> None:
    server = private_zookeeper()
    with started(f"{server.fresh_chroot()}?session_timeout=30", "time.sleep(60)") as program:
        server.freeze()
        began = time.monotonic()
        program.send_signal(signal.SIGINT)
        program.wait(20)
        assert time.monotonic() - began < 8.0


# A body that keeps the interpreter to itself.

GREEDY = """
import ctypes, sys, time
from celery_distlock import Lock, LockLost

lock = Lock("k", url=sys.argv[1])
lock.acquire()
print("ready", flush=True)
ctypes.PyDLL(None).usleep(5000000)
try:
    lock.check()
    print("believed")
except LockLost:
    print("not believed")
"""


def test_a_body_that_holds_the_gil_longer_than_its_session_loses_its_lock_and_is_told(store: ZooKeeperStore) -> None:
    """Where nobody else keeps its lease: a worker's main process does."""
    granted(store, "connected")
    command = [sys.executable, "-c", GREEDY, f"{store.name}?session_timeout=2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        wish = Claim("k", new_owner(), 30.0)
        assert isinstance(store.acquire(wish), Contended)
        eventually(lambda: isinstance(store.acquire(wish), Lease), 4.8, "the key")
        assert program.stdout.readline() == "not believed\n"


# Greenlets.

GREEN = """
import sys
if sys.argv[2] == "gevent":
    from gevent import monkey
    monkey.patch_all()
    import gevent
    spawn, pause, wait = gevent.spawn, gevent.sleep, gevent.joinall
else:
    import eventlet
    eventlet.monkey_patch()
    spawn, pause = eventlet.spawn, eventlet.sleep
    wait = lambda all: [one.wait() for one in all]

import threading
from celery_distlock.lease import Claim, Lease, Renewal, new_owner
from celery_distlock.stores import open_store

store = open_store(sys.argv[1])
inside, most, grants, ticks = 0, 0, 0, 0

def contend():
    global inside, most, grants
    for _ in range(5):
        while True:
            answer = store.acquire(Claim("shared", new_owner(), 30.0))
            if isinstance(answer, Lease):
                break
            pause(0.005)
        inside += 1
        most = max(most, inside)
        assert store.renew([answer]) == [Renewal.HELD]
        inside -= 1
        assert store.release([answer]) == [True]
        grants += 1

def tick():
    global ticks
    while grants < 30:
        ticks += 1
        pause(0.001)

heard = threading.Event()
workers = [spawn(contend) for _ in range(6)] + [spawn(tick)]
wait(workers)
lease = store.acquire(Claim("k", "first", 30.0))
with_listener = store.listen(lambda key, owner: heard.set())
store.enqueue(Claim("k", "second", 30.0), listener=with_listener.name)
store.release([lease])
assert heard.wait(5)
kind = type(store._ours.session._client.handler).__mro__[1].__name__
store.close()
print(most, grants, ticks > 30, kind)
"""


@pytest.mark.parametrize(
    ("library", "handler"), [("gevent", "SequentialGeventHandler"), ("eventlet", "SequentialEventletHandler")]
)
def test_greenlets_share_a_session_as_threads_do(zookeeper_url: str, library: str, handler: str) -> None:
    # Imported here, it would warn of every fork of the tests that follow.
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GREEN, f"{zookeeper_url}?timeout=20", library],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"1 30 True {handler}\n"
