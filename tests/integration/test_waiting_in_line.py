"""Locks that are waited for, in the line of a real server: order, time-outs, deaths, interruptions."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_distlock import Lock, line
from celery_distlock.errors import DistLockError, LockTimeout, StoreUnavailable
from celery_distlock.held import frames
from celery_distlock.lease import Claim, Lease, new_owner
from celery_distlock.stores import open_store
from celery_distlock.stores.base import LockStore, Queueing
from celery_distlock.stores.memory import MemoryStore
from celery_distlock.stores.redis.layout import Layout
from tests.support.process import Process
from tests.support.redis_server import RedisServer
from tests.support.waiting import eventually

StartServer = Callable[..., RedisServer]

#: Waits in as many threads as it is told and prints "ticket number, fence, since, until" for each.
CONTENDERS = """
import json, sys, threading, time
from celery_distlock import Lock
from celery_distlock.stores import open_store

url, threads, hold = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
store = open_store(url)
place = threading.local()
enqueue = store.enqueue

def noted(claim, **more):
    answer = enqueue(claim, **more)
    place.number = answer.number
    return answer

store.enqueue = noted
out = threading.Lock()

def run():
    lock = Lock("k", store=store)
    with lock:
        since, fence = time.monotonic(), lock.fence
        time.sleep(hold)
        until = time.monotonic()
    with out:
        print(json.dumps([place.number, fence, since, until]), flush=True)

for _ in range(threads):
    threading.Thread(target=run).start()
"""


def waiting(server: redis.Redis, key: str = "k") -> int:
    """Return how many stand in the line."""
    return int(server.zcard(Layout("distlock").of_kind("w", key)))


@pytest.fixture(autouse=True)
def no_lock_outlives_its_test() -> Iterator[None]:
    """Give back what the test holds at its end: the code of the next one runs on the same stack."""
    yield
    for frame in list(frames()):
        with contextlib.suppress(DistLockError):
            frame.subject.release()
    frames().clear()


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture(params=["redis", "memory"])
def store(request: pytest.FixtureRequest) -> Iterator[LockStore]:
    if request.param == "memory":
        memory = MemoryStore(f"line-{time.monotonic_ns()}")
        yield memory
        memory.drop()
    else:
        with contextlib.closing(open_store(request.getfixturevalue("redis_url"))) as opened:
            yield opened


class Waiting:
    """A thread that waits for a lock, takes it, and goes on when it is told."""

    def __init__(self, lock: Lock, **options: Any) -> None:
        self.lock = lock
        self.answer: bool | BaseException | None = None
        self.asked = self.since = 0.0
        self.go_on = threading.Event()
        self.answered = threading.Event()
        self._options = options
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.asked = time.monotonic()
        try:
            self.answer = self.lock.acquire(**self._options)
        except Exception as exc:
            self.answer = exc
        self.since = time.monotonic()
        self.answered.set()
        if self.answer is True:
            self.go_on.wait(30)
            self.lock.release()

    def got_it(self, within: float = 10.0) -> bool:
        assert self.answered.wait(within), "still waiting"
        return self.answer is True

    def end(self) -> None:
        self.go_on.set()
        self.thread.join(30)
        assert not self.thread.is_alive()


def start_contenders(tmp_path: Path, name: str, url: str, threads: int, hold: float) -> Process:
    script = tmp_path / "contenders.py"
    if not script.exists():
        script.write_text(CONTENDERS)
    root = str(Path(__file__).parents[2])
    argv = [sys.executable, str(script), url, str(threads), str(hold)]
    return Process(argv, name=name, log=tmp_path / f"{name}.log", env={"PYTHONPATH": root})


# Order.


def test_fifty_contenders_in_five_processes_get_the_lock_in_the_order_of_their_tickets(
    redis_url: str, server: redis.Redis, tmp_path: Path
) -> None:
    with Lock("k", url=redis_url):
        processes = [start_contenders(tmp_path, f"p{n}", redis_url, 10, 0.002) for n in range(5)]
        try:
            eventually(lambda: waiting(server) == 50, 30, "fifty contenders in the line")
        except BaseException:
            for process in processes:
                process.end(0)
            raise
    for process in processes:
        assert process.wait(30) == 0, process.log
    runs = sorted(json.loads(text) for process in processes for text in process.log.splitlines())
    assert len(runs) == 50
    fences = [fence for _, fence, _, _ in runs]
    assert fences == sorted(fences), "not in the order of the tickets"
    assert all(until <= since for (_, _, _, until), (_, _, since, _) in itertools.pairwise(runs)), "overlap"
    assert not list(server.scan_iter("*k"))


def test_threads_get_the_lock_in_the_order_in_which_they_came(store: LockStore) -> None:
    order: list[int] = []

    def run(number: int) -> None:
        with Lock("k", store=store):
            order.append(number)

    with Lock("k", store=store):
        threads = []
        for number in range(20):
            threads.append(threading.Thread(target=run, args=(number,)))
            threads[-1].start()
            eventually(lambda number=number: places(store) == number + 1, 5, "the next one in the line")  # type: ignore[misc]
    for thread in threads:
        thread.join(10)
    assert order == list(range(20))


def places(store: LockStore) -> int:
    """Count who waits in this process's line, with a ticket."""
    known = line._lines.get(store)
    return len([w for w in known._waiters.values() if w.place is not None]) if known else 0


def test_as_many_as_the_limit_hold_it_at_once_in_order(store: LockStore) -> None:
    first = [Lock("k", store=store, limit=3) for _ in range(3)]
    for lock in first:
        assert lock.acquire()
    waiters = []
    for number in range(5):
        waiters.append(Waiting(Lock("k", store=store, limit=3)))
        eventually(lambda number=number: places(store) == number + 1, 5, "the next one in the line")  # type: ignore[misc]
    for lock in first[:2]:
        lock.release()
    for waiter in waiters[:2]:
        assert waiter.got_it()
    assert not any(waiter.answered.is_set() for waiter in waiters[2:])
    assert len(store.holders("k")) == 3
    first[2].release()
    for waiter in waiters:
        assert waiter.got_it()
        waiter.end()
    assert store.holders("k") == []


def test_a_newcomer_that_does_not_wait_gets_nothing_while_others_wait(store: LockStore) -> None:
    holder = Lock("k", store=store)
    holder.acquire()
    first, second = Waiting(Lock("k", store=store)), Waiting(Lock("k", store=store))
    eventually(lambda: places(store) == 2, 5, "two in the line")
    taken = 0
    holder.release()
    for _ in range(20):
        taken += Lock("k", store=store).acquire(blocking=False)
    assert taken == 0
    for waiter in (first, second):
        waiter.go_on.set()
    for waiter in (first, second):
        assert waiter.got_it()
        waiter.end()


# What wakes a waiter. With a claim ttl of a minute, a place is polled every twenty seconds only.


def test_a_release_wakes_the_waiter_at_once(store: LockStore) -> None:
    store.claim_ttl = 60.0  # type: ignore[attr-defined]
    for _ in range(5):
        holder = Lock("k", store=store)
        holder.acquire()
        waiter = Waiting(Lock("k", store=store))
        eventually(lambda: places(store) == 1, 5, "one in the line")
        released = time.monotonic()
        holder.release()
        assert waiter.got_it(5.0)
        assert waiter.since - released < 2.0
        waiter.end()


def test_a_waiter_asks_when_hints_may_have_been_lost(
    private_redis: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscribed = threading.Event()
    on_gap = line.Line._on_gap

    def noted(self: line.Line) -> None:
        on_gap(self)
        subscribed.set()

    monkeypatch.setattr(line.Line, "_on_gap", noted)
    server = private_redis()
    with server.client() as client, contextlib.closing(open_store(server.url)) as store:
        store.claim_ttl = 60.0  # type: ignore[attr-defined]
        holder = Lock("k", store=store)
        holder.acquire()
        waiter = Waiting(Lock("k", store=store))
        eventually(lambda: places(store) == 1, 5, "one in the line")
        # Before it hears anything the first time, hints may have been lost as well: that has been asked about.
        assert subscribed.wait(5)
        running = line._lines[store]
        eventually(lambda: not running._gap and 1.0 < running._wakes_at - time.monotonic() < 60.0, 5, "a line at rest")
        # The listener is deaf when the hint is given.
        client.execute_command("ACL", "SETUSER", "default", "resetchannels")
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        holder.release()
        assert not waiter.answered.wait(0.3)
        client.execute_command("ACL", "SETUSER", "default", "allchannels")
        assert waiter.got_it(3.0)
        waiter.end()


def test_a_waiter_asks_when_the_holders_lease_ends(store: LockStore) -> None:
    store.claim_ttl = 60.0  # type: ignore[attr-defined]
    dead = store.acquire(Claim("k", new_owner(), 0.5))
    assert isinstance(dead, Lease)
    waiter = Waiting(Lock("k", store=store))
    assert waiter.got_it(5.0)
    assert 0.0 <= waiter.since - dead.deadline < 2.0
    waiter.end()


def test_a_place_is_kept_for_whoever_comes_when_nobody_has_waited_for_a_moment(
    store: LockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(store, Queueing)
    holder = Lock("k", store=store)
    holder.acquire()
    first = Waiting(Lock("k", store=store))
    eventually(lambda: places(store) == 1, 5, "one in the line")
    holder.release()
    assert first.got_it()
    # The thread of the line has nobody to ask about now, and sleeps.
    running = line._lines[store]
    eventually(lambda: running._wakes_at < float("inf") and running._closes_at < float("inf"), 5, "an idle line")
    polled = threading.Event()
    poll = store.poll

    def noted(*args: Any, **kwargs: Any) -> Any:
        polled.set()
        return poll(*args, **kwargs)

    monkeypatch.setattr(store, "poll", noted)
    second = Waiting(Lock("k", store=store))
    assert polled.wait(store.claim_ttl), "nobody kept its place"
    first.end()
    assert second.got_it()
    second.end()


def test_a_waiter_that_a_late_poll_has_entered_again_is_taken_out(
    store: LockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(store, Queueing)
    poll = store.poll
    polling, go_on, polled = threading.Event(), threading.Event(), threading.Event()

    def late(places: Any, **options: Any) -> Any:
        polling.set()
        go_on.wait(5)
        answers = poll(places, **options)
        polled.set()
        return answers

    holder = Lock("k", store=store)
    holder.acquire()
    waiter = Waiting(Lock("k", store=store))
    eventually(lambda: places(store) == 1, 5, "one in the line")
    monkeypatch.setattr(store, "poll", late)
    assert polling.wait(5)
    # While the poll is under way, the waiter has its turn, and is done.
    holder.release()
    assert waiter.got_it()
    waiter.end()
    go_on.set()
    assert polled.wait(5)
    began = time.monotonic()
    assert Lock("k", store=store).acquire(timeout=5.0)
    assert time.monotonic() - began < 1.5, "a place was kept for somebody who does not wait"


# Time-outs.


def test_time_outs_are_exact_and_leave_nothing_behind(redis_url: str, server: redis.Redis) -> None:
    with contextlib.closing(open_store(redis_url)) as store, Lock("k", store=store):
        # A place that is not given up stays for a minute.
        store.claim_ttl = 60.0  # type: ignore[attr-defined]
        before = set(server.scan_iter())
        waiters = [Waiting(Lock("k", store=store), timeout=0.3 + n / 100) for n in range(20)]
        late = []
        for n, waiter in enumerate(waiters):
            assert waiter.got_it() is False
            late.append(waiter.since - waiter.asked - 0.3 - n / 100)
        late.sort()
        assert late[0] >= 0.0
        # Who asked only when a poll is due would be late by up to twenty seconds.
        assert late[10] < 0.25, late
        assert late[-1] < 2.0, late
        # The last places may be given up in the background.
        eventually(lambda: set(server.scan_iter()) == before, 10, "the end of all places")
    assert not list(server.scan_iter("*k"))


def test_a_time_out_names_who_holds_the_lock_now(store: LockStore) -> None:
    first, second = Lock("k", store=store, identifier="first"), Waiting(Lock("k", store=store, identifier="second"))
    second.end()
    first.acquire()
    second = Waiting(Lock("k", store=store, identifier="second"))
    eventually(lambda: places(store) == 1, 5, "one in the line")
    third = threading.Timer(0.05, first.release)
    third.start()
    with pytest.raises(LockTimeout) as caught, Lock("k", store=store, timeout=1.5):
        pass
    third.join()
    assert caught.value.holder is not None
    assert caught.value.holder["identifier"] == "second"
    second.end()


def test_a_grant_that_races_with_the_time_out_is_never_lost(store: LockStore) -> None:
    # What is lost stays lost for long.
    store.claim_ttl = 60.0  # type: ignore[attr-defined]
    outcomes: list[bool] = []
    # Seconds before the time-out at which the key is released: as many as a hand-over takes on this machine.
    lead, step = 0.0, 0.0005
    for _ in range(60):
        holder = Lock("k", store=store)
        assert holder.acquire(timeout=0.5), "the place was lost to somebody who has left"
        waiter = Waiting(Lock("k", store=store), timeout=0.02 + max(0.0, lead))
        time.sleep(0.02 - min(0.0, lead))
        holder.release()
        got = waiter.got_it()
        step = 2 * step if outcomes[-1:] == [got] else 0.0005
        lead += -step if got else step
        outcomes.append(got)
        waiter.end()
    assert store.holders("k") == []
    assert set(outcomes) == {True, False}, "the race did not happen"


def test_a_waiter_that_gave_up_is_in_nobodys_way(store: LockStore) -> None:
    # Its place is not left to expire; but it may be given up in the background.
    store.claim_ttl = 60.0  # type: ignore[attr-defined]
    holder = Lock("k", store=store)
    holder.acquire()
    assert Lock("k", store=store).acquire(timeout=0.05) is False
    holder.release()
    assert Lock("k", store=store).acquire(timeout=1.0)


# Interruptions.


class Interrupted(BaseException):
    pass


@contextlib.contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    def interrupt(signum: int, frame: Any) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            yield
        finally:
            # It may strike here, too.
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_waiter_that_is_interrupted_leaves_the_line(store: LockStore) -> None:
    holder = Lock("k", store=store)
    holder.acquire()
    with pytest.raises(Interrupted), interrupted_after(0.05):
        Lock("k", store=store).acquire()
    holder.release()
    # Its place is given up in the background.
    began = time.monotonic()
    assert Lock("k", store=store).acquire(timeout=5.0)
    assert time.monotonic() - began < 1.5, "its place was kept for as long as an offer lasts"


def test_no_place_is_kept_for_a_waiter_that_vanished(store: LockStore, monkeypatch: pytest.MonkeyPatch) -> None:
    # An exception that strikes between two lines, where no handler is.
    def vanish(self: Any, its_line: line.Line, end: float) -> None:
        its_line.enqueue(self)
        raise Interrupted

    monkeypatch.setattr(line._Blocked, "wait", vanish)
    holder = Lock("k", store=store)
    holder.acquire()
    with contextlib.suppress(Interrupted):
        Lock("k", store=store).acquire()
    monkeypatch.undo()
    eventually(lambda: places(store) == 0, 2, "its end")
    holder.release()


# A socket that redis-py was just making is closed by the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_waiters_interrupted_at_any_moment_leave_nothing_that_lasts(redis_url: str) -> None:
    rng = random.Random(11)
    with contextlib.closing(open_store(redis_url)) as store:
        # Given back at once, not left to expire: a silent waiter keeps its place for a minute, a lease lasts for half.
        store.claim_ttl = 60.0  # type: ignore[attr-defined]
        Lock("warm up", store=store).acquire()
        for _ in range(150):
            holder = Lock("k", store=store)
            assert holder.acquire(timeout=1.0), "an interrupted waiter is still in the way"
            releasing = threading.Timer(0.003, holder.release)
            releasing.start()
            lock = Lock("k", store=store)
            with contextlib.suppress(Interrupted), interrupted_after(rng.uniform(0.0005, 0.006)):
                lock.acquire()
            releasing.join()
            if lock.held:
                lock.release()
        eventually(lambda: store.holders("k") == [], 2, "the end of what interrupted waiters had got")


@pytest.mark.parametrize("question", ["enqueue", "confirm"])
def test_what_was_granted_without_an_answer_is_given_back(
    store: LockStore, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    assert isinstance(store, Queueing)
    holder = Lock("k", store=store)
    holder.acquire()
    ask = getattr(store, question)
    asked = []

    def without_answer(*args: Any, **options: Any) -> None:
        if question == "enqueue":
            holder.release()
        asked.append(ask(*args, **options))
        raise StoreUnavailable(store.name, "the answer was lost")

    monkeypatch.setattr(store, question, without_answer)
    waiter = Waiting(Lock("k", store=store), timeout=1.5)
    if question == "confirm":
        eventually(lambda: places(store) == 1, 5, "one in the line")
        holder.release()
    assert waiter.got_it() is False
    assert asked
    monkeypatch.undo()
    # Nobody else would give back what it was granted for thirty seconds.
    assert Lock("k", store=store).acquire(timeout=1.0), "granted to somebody who does not know it"
    waiter.end()


# Deaths.


def test_a_waiting_process_that_is_killed_costs_the_next_one_the_claim_ttl_at_most(
    redis_url: str, server: redis.Redis, tmp_path: Path
) -> None:
    holder = Lock("k", url=redis_url)
    holder.acquire()
    process = start_contenders(tmp_path, "dead", redis_url, 3, 0.0)
    eventually(lambda: waiting(server) == 3, 15, "three in the line")
    alive = Waiting(Lock("k", url=redis_url))
    eventually(lambda: waiting(server) == 4, 5, "four in the line")
    process.kill()
    released = time.monotonic()
    holder.release()
    assert alive.got_it(5.0)
    assert 0.5 < alive.since - released < 2.0 + 1.0
    alive.end()


def test_a_holder_that_is_killed_is_followed_by_the_first_waiter_within_its_ttl(
    redis_url: str, tmp_path: Path, server: redis.Redis
) -> None:
    script = tmp_path / "holder.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, time
            from celery_distlock import Lock
            Lock("k", url=sys.argv[1], ttl=3.0).acquire()
            print("held", flush=True)
            time.sleep(60)
            """
        )
    )
    root = str(Path(__file__).parents[2])
    process = Process(
        [sys.executable, str(script), redis_url], name="holder", log=tmp_path / "holder.log", env={"PYTHONPATH": root}
    )
    process.wait_for_log("held")
    waiters = []
    for number in range(2):
        waiters.append(Waiting(Lock("k", url=redis_url)))
        eventually(lambda number=number: waiting(server) == number + 1, 5, "the next one in the line")  # type: ignore[misc]
    time.sleep(3.5)
    assert not waiters[0].answered.is_set(), "a living holder was replaced"
    killed = time.monotonic()
    process.kill()
    assert waiters[0].got_it(5.0)
    # Its last renewal was up to a third of the ttl ago; the grace of 0.1 s comes on top.
    assert 1.0 < waiters[0].since - killed < 3.0 + 1.0
    for waiter in waiters:
        assert waiter.got_it()
        waiter.end()


# What the server does.


def test_a_killed_pub_sub_connection_costs_a_second_at_most(private_redis: StartServer) -> None:
    server = private_redis()
    with server.client() as client, contextlib.closing(open_store(server.url)) as store:
        worst = 0.0
        for _ in range(10):
            holder = Lock("k", store=store)
            holder.acquire()
            waiter = Waiting(Lock("k", store=store))
            eventually(lambda: places(store) == 1, 5, "one in the line")
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            released = time.monotonic()
            holder.release()
            assert waiter.got_it(5.0)
            worst = max(worst, waiter.since - released)
            waiter.end()
        assert worst < 1.0, worst


def test_without_any_hints_a_hand_over_takes_less_than_a_second(
    private_redis: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = private_redis()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "quiet", "on", "nopass", "~*", "+@all", "resetchannels")
    url = f"redis://quiet:x@{server.host}:{server.port}/0"
    with contextlib.closing(open_store(url)) as store:
        polls = []
        poll = store.poll  # type: ignore[attr-defined]

        def noted(*args: Any, **kwargs: Any) -> Any:
            polls.append(time.monotonic())
            return poll(*args, **kwargs)

        monkeypatch.setattr(store, "poll", noted)
        for _ in range(3):
            holder = Lock("k", store=store)
            holder.acquire()
            waiter = Waiting(Lock("k", store=store))
            eventually(lambda: places(store) == 1, 5, "one in the line")
            due, before = line._lines[store]._tick, len(polls)
            released = time.monotonic()
            holder.release()
            assert waiter.got_it(5.0)
            assert waiter.since - released < 1.0
            assert due - released < 0.7
            assert len(polls) - before <= 2
            waiter.end()


def test_a_server_that_restarts_without_data_neither_loses_waiters_nor_lets_them_overlap(
    private_redis: StartServer,
) -> None:
    server = private_redis()
    with contextlib.closing(open_store(server.url)) as store:
        holder = Lock("k", store=store, ttl=3.0)
        holder.acquire()
        waiters = []
        for number in range(3):
            waiters.append(Waiting(Lock("k", store=store, ttl=3.0)))
            eventually(lambda number=number: places(store) == number + 1, 5, "the next one in the line")  # type: ignore[misc]
        server.restart()
        eventually(lambda: [h["owner"] for h in store.holders("k")] == [holder.owner], 3, "the holder's return")
        time.sleep(0.5)
        assert holder.held
        assert not any(waiter.answered.is_set() for waiter in waiters), "granted although it was held"
        holder.release()
        # They come back in their order, however late they notice.
        since = []
        for waiter in waiters:
            assert waiter.got_it(6.0)
            since.append(waiter.since)
            waiter.end()
        assert since == sorted(since)
        assert since[-1] - since[0] < 1.0, "those who wait gave each other time that nobody needed"


def test_a_server_that_does_not_answer_for_a_while_is_waited_for(private_redis: StartServer) -> None:
    server = private_redis()
    with contextlib.closing(open_store(f"{server.url}?timeout=1.0")) as store:
        holder = Lock("k", store=store)
        holder.acquire()
        waiter = Waiting(Lock("k", store=store))
        eventually(lambda: places(store) == 1, 5, "one in the line")
        server.freeze()
        eventually(lambda: line._lines[store].failure is not None, 5, "a poll without an answer")
        server.thaw()
        assert not waiter.answered.is_set()
        holder.release()
        assert waiter.got_it(5.0)
        waiter.end()


def test_a_server_that_is_gone_for_long_is_no_answer(
    private_redis: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "PATIENCE", 0.5)
    server = private_redis()
    with contextlib.closing(open_store(server.url)) as store:
        holder = Lock("k", store=store)
        holder.acquire()
        patient, hasty = Waiting(Lock("k", store=store)), Waiting(Lock("k", store=store), timeout=4.0)
        eventually(lambda: places(store) == 2, 5, "two in the line")
        server.kill()
        for waiter in (patient, hasty):
            assert waiter.got_it(5.0) is False
            assert isinstance(waiter.answer, StoreUnavailable)
            waiter.end()
        with contextlib.suppress(Exception):
            holder.release()


# What is left when nobody waits.


def test_without_waiters_there_are_neither_threads_nor_connections(
    private_redis: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"distlock-line", "distlock-listener"}
    eventually(lambda: not names & {thread.name for thread in threading.enumerate()}, 30, "the end of earlier lines")
    monkeypatch.setattr(line, "_IDLE", 0.2)
    server = private_redis()
    with server.client() as client, contextlib.closing(open_store(server.url)) as store:
        for _ in range(2):
            with Lock("k", store=store):
                waiter = Waiting(Lock("k", store=store))
                eventually(lambda: len(client.client_list(_type="pubsub")) == 1, 5, "a listener")
                assert names <= {thread.name for thread in threading.enumerate()}
            assert waiter.got_it()
            waiter.end()
            eventually(lambda: not names & {thread.name for thread in threading.enumerate()}, 5, "the threads' end")
            assert client.client_list(_type="pubsub") == []
            assert store not in line._lines


def test_three_hundred_waiters_of_one_process_are_one_listener_and_one_poll(private_redis: StartServer) -> None:
    server = private_redis()
    before = threading.stack_size(256 * 1024)
    try:
        with server.client() as client, contextlib.closing(open_store(server.url)) as store:
            holders = [Lock(f"k{n}", store=store) for n in range(10)]
            for holder in holders:
                holder.acquire()
            waiters = [Waiting(Lock(f"k{n % 10}", store=store)) for n in range(300)]
            eventually(lambda: places(store) == 300, 20, "all of them in the line", every=0.05)
            client.config_resetstat()
            began = time.monotonic()
            time.sleep(2.0)
            calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]
            # A script per key, every two thirds of a second.
            assert calls <= 10 * (1 + (time.monotonic() - began) / 0.66), calls
            assert len(client.client_list(_type="pubsub")) == 1
            for waiter in waiters:
                waiter.go_on.set()
            for holder in holders:
                holder.release()
            for waiter in waiters:
                assert waiter.got_it()
                waiter.end()
    finally:
        threading.stack_size(before)


# Forks and greenlets.


def test_a_forked_child_has_a_line_of_its_own(redis_url: str) -> None:
    program = """
        import os, sys, threading, time
        from celery_distlock import Lock, line
        from celery_distlock.stores import open_store
        url = sys.argv[1]
        store = open_store(url)
        store.claim_ttl = 60.0
        holder = Lock("k", store=store)
        holder.acquire()
        got = threading.Event()
        def wait():
            with Lock("k", store=store):
                got.set()
        waiter = threading.Thread(target=wait)
        waiter.start()
        time.sleep(0.2)
        pid = os.fork()
        if pid == 0:
            assert not line._lines
            assert not Lock("k", store=store).acquire(timeout=0.2)
            own = Lock("own", url=url)
            assert own.acquire()
            threading.Timer(0.1, own.release).start()
            began = time.monotonic()
            assert Lock("own", url=url).acquire(timeout=5)
            assert time.monotonic() - began < 1.0
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert not got.is_set()
        began = time.monotonic()
        holder.release()
        assert got.wait(5)
        print(time.monotonic() - began)
    """
    # Without the hint it would ask twenty seconds later.
    assert float(run(program, redis_url)) < 2.0


def test_greenlets_wait_in_order_and_let_others_run(redis_url: str) -> None:
    pytest.importorskip("gevent")
    program = """
        from gevent import monkey
        monkey.patch_all()
        import gevent, sys, time
        from celery_distlock import Lock, line
        url, order, worst = sys.argv[1], [], 0.0

        def tick():
            global worst
            while True:
                before = time.monotonic()
                gevent.sleep(0.005)
                worst = max(worst, time.monotonic() - before)

        def places():
            (known,) = line._lines.values() or [None]
            return len([w for w in known._waiters.values() if w.place is not None]) if known else 0

        def contend(number):
            with Lock("k", url=url):
                order.append(number)
                gevent.sleep(0.005)

        ticking = gevent.spawn(tick)
        with Lock("k", url=url):
            waiters = []
            for number in range(20):
                waiters.append(gevent.spawn(contend, number))
                while places() <= number:
                    gevent.sleep(0.005)
            impatient = gevent.spawn(lambda: Lock("k", url=url).acquire(timeout=0.3))
            killed = gevent.spawn(contend, 99)
            gevent.sleep(0.02)
            killed.kill()
            impatient.join()
            assert impatient.value is False
        gevent.joinall(waiters, raise_error=True)
        assert order == list(range(20)), order
        print(worst)
    """
    # Who blocked the others would do so until the lock is released, which those must do.
    assert float(run(program, redis_url)) < 2.0


def run(program: str, url: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
