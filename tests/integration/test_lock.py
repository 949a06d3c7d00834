"""``Lock`` and ``@locked``, outside of Celery."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from celery_distlock import (
    Lock,
    LockConfigError,
    LockContended,
    LockKeyError,
    LockLost,
    LockTimeout,
    current_lock,
    locked,
)
from celery_distlock.held import frames
from celery_distlock.stores import open_store
from tests.support.redis_server import RedisServer
from tests.support.waiting import eventually

PATIENCE = 20.0
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    return f"memory://{uuid.uuid4().hex}" if request.param == "memory" else request.getfixturevalue("redis_url")


@pytest.fixture(autouse=True)
def nothing_is_left_on_the_stack() -> Iterator[None]:
    assert frames() == []
    yield
    left = list(frames())
    frames().clear()
    assert left == []


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(60) as executor:
        yield executor


def run_program(program: str, *arguments: str) -> str:
    """Run a program of its own, which must end well, and return what it printed."""
    argv = [sys.executable, "-W", "error::UserWarning", "-c", program, *arguments]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class TestAcquire:
    def test_a_free_key_is_had_at_once_and_released_again(self, url: str) -> None:
        lock, other = Lock("k", url=url), Lock("k", url=url)
        assert lock.acquire() is True
        assert lock.held
        assert other.locked()
        assert other.acquire(blocking=False) is False
        assert not other.held
        lock.release()
        assert not lock.held
        assert not other.locked()
        assert other.acquire(blocking=False) is True
        other.release()

    def test_a_second_thread_starts_only_when_the_first_is_done(self, url: str, background: ThreadPoolExecutor) -> None:
        order: list[str] = []
        waits = threading.Event()
        first = Lock("k", url=url, identifier="A")
        first.acquire()
        order.append("A in")

        def second() -> None:
            waits.set()
            with Lock("k", url=url, identifier="B"):
                order.append("B in")

        done = background.submit(second)
        assert waits.wait(PATIENCE)
        assert not Lock("k", url=url).acquire(timeout=0.05)
        order.append("A out")
        first.release()
        done.result(PATIENCE)
        assert order == ["A in", "A out", "B in"]

    @pytest.mark.parametrize("seconds", [0.0, 0.05, 0.4])
    def test_a_time_out_is_kept_exactly_and_is_false_never_an_error(self, url: str, seconds: float) -> None:
        with Lock("k", url=url):
            before = time.monotonic()
            assert Lock("k", url=url).acquire(timeout=seconds) is False
            assert seconds <= time.monotonic() - before < seconds + 2.0

    def test_a_time_out_is_kept_by_a_thread_that_shares_the_object(
        self, url: str, background: ThreadPoolExecutor
    ) -> None:
        lock = Lock("k", url=url)
        lock.acquire()

        def wait() -> tuple[bool, float]:
            before = time.monotonic()
            return lock.acquire(timeout=0.1), time.monotonic() - before

        got, waited = background.submit(wait).result(PATIENCE)
        assert got is False
        assert 0.1 <= waited < 2.0
        assert lock.held
        lock.release()

    def test_a_thread_that_asks_twice_waits_for_itself(self, url: str) -> None:
        with Lock("k", url=url) as lock:
            assert lock.acquire(blocking=False) is False
            assert Lock("k", url=url).acquire(blocking=False) is False
            assert lock.held

    def test_fences_grow_and_owners_differ(self, url: str) -> None:
        lock = Lock("k", url=url)
        seen = []
        for _ in range(3):
            with lock:
                seen.append((lock.fence, lock.owner))
        fences = [fence for fence, _ in seen]
        assert fences == sorted(set(fences))
        assert len({owner for _, owner in seen}) == 3
        assert (lock.fence, lock.owner, lock.remaining) == (None, None, 0.0)

    def test_a_limit_lets_so_many_in(self, url: str) -> None:
        locks = [Lock("k", url=url, limit=2) for _ in range(3)]
        assert [lock.acquire(blocking=False) for lock in locks] == [True, True, False]
        locks[0].release()
        assert locks[2].acquire(blocking=False)
        for lock in locks[1:]:
            lock.release()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"blocking": False, "timeout": 1}, "blocking=False"),
            ({"timeout": -1}, "timeout=-1"),
            ({"timeout": "1"}, "timeout='1'"),
        ],
    )
    def test_wrong_arguments_are_an_error(self, url: str, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(LockConfigError, match=message):
            Lock("k", url=url).acquire(**arguments)


class TestDefinition:
    @pytest.mark.parametrize(
        ("key", "options", "message"),
        [
            ("", {}, "key=''"),
            (7, {}, "key=7"),
            ("k", {"ttl": 0}, "ttl=0"),
            ("k", {"ttl": True}, "ttl=True"),
            ("k", {"limit": 0}, "limit=0"),
            ("k", {"timeout": float("nan")}, "timeout=nan"),
            ("k", {"app": Celery("unused", set_as_current=False)}, "exactly one"),
            ("k", {"url": None}, "exactly one"),
        ],
    )
    def test_wrong_arguments_are_an_error(self, key: Any, options: dict[str, Any], message: str) -> None:
        with pytest.raises(LockConfigError, match=message):
            Lock(key, **{"url": "memory://x", **options})

    def test_a_store_may_be_given(self) -> None:
        store = open_store(f"memory://{uuid.uuid4().hex}")
        with Lock("k", store=store):
            assert len(store.holders("k")) == 1

    def test_prefixes_keep_locks_apart(self, url: str) -> None:
        with Lock("k", url=url, prefix="one"), Lock("k", url=url, prefix="two", timeout=0):
            assert not Lock("k", url=url, prefix="one").acquire(blocking=False)


class TestContextManager:
    def test_it_releases_after_an_error_and_lets_it_pass(self, url: str) -> None:
        lock = Lock("k", url=url)
        with pytest.raises(ZeroDivisionError), lock:
            _ = 1 / 0
        assert not lock.locked()

    def test_its_time_out_is_an_error_that_names_the_holder(self, url: str) -> None:
        with Lock("k", url=url, identifier="worker 7"), pytest.raises(LockTimeout) as caught:  # noqa: SIM117
            with Lock("k", url=url, timeout=0.1):
                raise AssertionError("two at once")
        assert caught.value.key == "k"
        assert 0.1 <= caught.value.waited < 2.0
        assert caught.value.holder is not None
        assert caught.value.holder["identifier"] == "worker 7"
        assert "'worker 7'" in str(caught.value)

    def test_the_identifier_is_seen_by_others(self, url: str) -> None:
        with Lock("k", url=url, identifier="worker 7"):
            (holder,) = Lock("k", url=url).holders()
        assert holder["identifier"] == "worker 7"
        assert holder["pid"] > 0
        assert holder["host"]

    def test_the_running_code_sees_it(self, url: str) -> None:
        assert current_lock() is None
        with Lock("k", url=url) as lock:
            held = current_lock()
            assert held is not None
            assert (held.key, held.owner, held.fence) == ("k", lock.owner, lock.fence)
        assert current_lock() is None

    def test_locks_may_be_released_in_any_order(self, url: str) -> None:
        first, second = Lock("a", url=url), Lock("b", url=url)
        first.acquire()
        second.acquire()
        first.release()
        held = current_lock()
        assert held is not None
        assert held.key == "b"
        second.release()
        assert current_lock() is None


class TestRelease:
    def test_what_is_not_held_cannot_be_released(self, url: str) -> None:
        lock = Lock("k", url=url)
        with pytest.raises(LockLost, match="not held"):
            lock.release()
        with lock:
            pass
        with pytest.raises(LockLost, match="not held"):
            lock.release()

    def test_another_object_cannot_release_it(self, url: str) -> None:
        with Lock("k", url=url) as lock:
            with pytest.raises(LockLost):
                Lock("k", url=url).release()
            (holder,) = lock.holders()
            assert holder["owner"] == lock.owner

    def test_another_thread_may_release_it_and_it_is_released_for_both(
        self, url: str, background: ThreadPoolExecutor
    ) -> None:
        lock = Lock("k", url=url)
        lock.acquire()
        background.submit(lock.release).result(PATIENCE)
        assert not lock.held
        with lock:
            assert lock.held
        assert not lock.locked()

    def test_a_store_that_is_gone_is_told_later(self, private_redis: Callable[..., RedisServer]) -> None:
        server = private_redis()
        lock = Lock("k", url=server.url, ttl=20.0)
        lock.acquire()
        server.freeze()
        try:
            # A store that does not answer does not keep the caller from going on.
            lock.release()
        finally:
            server.thaw()
        assert not lock.held
        other = Lock("k", url=server.url)
        eventually(lambda: not other.locked(), PATIENCE, "the release in the background")


class TestRenewal:
    def test_it_is_held_for_as_long_as_it_takes(self, url: str) -> None:
        other = Lock("k", url=url)
        # It would be unsure of its lock on a machine that keeps its keeper waiting for a second.
        with Lock("k", url=url, ttl=3.0) as lock:
            end = time.monotonic() + 3.0 + 1.0
            while time.monotonic() < end:
                lock.check()
                assert 0 < lock.remaining <= 3.0
                assert other.acquire(timeout=0.05) is False
        assert other.acquire(blocking=False)
        other.release()

    def test_a_released_lock_is_renewed_no_more(self, url: str) -> None:
        store = open_store(url)
        renew, renewed = store.renew, []

        def noting(leases: Any) -> Any:
            renewed.extend(lease.owner for lease in leases)
            return renew(leases)

        store.renew = noting  # type: ignore[method-assign]
        lock = Lock("k", store=store, ttl=0.15)
        lock.acquire()
        owner = lock.owner
        eventually(lambda: owner in renewed, PATIENCE, "a renewal")
        lock.release()
        renewed.clear()
        with Lock("other", store=store, ttl=0.15):
            eventually(lambda: len(renewed) >= 3, PATIENCE, "renewals of the other")
        assert owner not in renewed

    def test_a_second_holder_is_noticed(self, redis_url: str) -> None:
        store = open_store(redis_url)
        renew, others = store.renew, threading.Event()

        def late(leases: Any) -> Any:
            # After the loss of data the first to ask has the lock, and that is to be the other one.
            others.wait(PATIENCE)
            return renew(leases)

        store.renew = late  # type: ignore[method-assign]
        lock, other = Lock("k", store=store, ttl=3.0), Lock("k", url=redis_url)
        lock.acquire()
        with redis.Redis.from_url(redis_url) as client:
            client.flushdb()
        assert other.acquire(blocking=False)
        others.set()
        eventually(lambda: not lock.held, PATIENCE, "the loss")
        with pytest.raises(LockLost, match="given away"):
            lock.check()
        with pytest.raises(LockLost, match="given away"):
            lock.release()
        other.check()
        assert other.locked()
        other.release()
        with lock:
            lock.check()

    def test_a_loss_is_raised_at_the_end_of_a_block_but_not_instead_of_its_own_error(self, redis_url: str) -> None:
        def lose(lock: Lock) -> None:
            lock.check()
            with redis.Redis.from_url(redis_url) as client:
                client.flushdb()
            assert other.acquire(blocking=False)

        other = Lock("k", url=redis_url)
        with pytest.raises(LockLost), Lock("k", url=redis_url) as lock:
            lose(lock)
        other.release()
        with pytest.raises(ZeroDivisionError), Lock("k", url=redis_url) as lock:
            _ = lose(lock) or 1 / 0
        other.release()

    def test_a_silent_store_makes_it_unsure_and_its_answer_sure_again(
        self, private_redis: Callable[..., RedisServer]
    ) -> None:
        server = private_redis()
        with Lock("k", url=server.url, ttl=1.5) as lock:
            server.freeze()
            try:
                eventually(lambda: not lock.held, PATIENCE, "the doubt")
                with pytest.raises(LockLost, match="silent"):
                    lock.check()
                assert lock.remaining == 0.0
            finally:
                server.thaw()
            eventually(lambda: lock.held, PATIENCE, "the renewal")
            lock.check()


class TestThreads:
    def test_fifty_threads_share_one_object(self, url: str, background: ThreadPoolExecutor) -> None:
        lock, count = Lock("k", url=url), [0]

        def add() -> None:
            with lock:
                seen = count[0]
                time.sleep(0.0005)
                count[0] = seen + 1

        for done in [background.submit(add) for _ in range(50)]:
            done.result(PATIENCE)
        assert count == [50]
        assert not lock.locked()

    def test_threads_with_an_object_each_take_turns(self, url: str, background: ThreadPoolExecutor) -> None:
        count = [0]

        def add() -> None:
            with Lock("k", url=url):
                seen = count[0]
                time.sleep(0.0005)
                count[0] = seen + 1

        for done in [background.submit(add) for _ in range(20)]:
            done.result(PATIENCE)
        assert count == [20]


FORK = """
import os, sys
from celery_distlock import Lock, LockLost, current_lock
url = sys.argv[1]
lock, other = Lock("k", url=url, ttl=3.0), Lock("k", url=url)
lock.acquire()
owner = lock.owner
assert other.acquire(blocking=False) is False
child = os.fork()
if child == 0:
    code = 1
    try:
        # The parent holds it, not the child, on every path there is.
        assert not lock.held and current_lock() is None
        assert (lock.owner, lock.fence, lock.remaining) == (None, None, 0.0)
        assert lock.locked()
        assert lock.acquire(blocking=False) is False
        assert lock.acquire(timeout=3.5) is False       # longer than the ttl: the parent renews
        try:
            lock.release()
        except LockLost:
            code = 0
        assert lock.holders()[0]["owner"] == owner
    except BaseException:
        import traceback
        traceback.print_exc()
        code = 1
    os._exit(code)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
lock.check()
lock.release()
child = os.fork()
if child == 0:
    with lock:
        lock.check()
    os._exit(0)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
assert lock.acquire(blocking=False)
lock.release()
print("ok")
"""

FORK_DEAD = """
import os, sys, time
from celery_distlock import Lock
url = sys.argv[1]
child = os.fork()
if child == 0:
    Lock("k", url=url, ttl=0.5).acquire()
    os._exit(0)
os.waitpid(child, 0)
before = time.monotonic()
assert Lock("k", url=url).acquire(timeout=5)
print(time.monotonic() - before)
"""

GEVENT = """
from gevent import monkey
monkey.patch_all()
import sys, threading
import gevent
from celery_distlock import Lock, LockContended, current_lock, locked
url = sys.argv[1]
count = [0]

@locked("count", url=url)
def add(_number):
    seen = count[0]
    gevent.sleep(0.001)
    assert current_lock().held
    count[0] = seen + 1

gevent.joinall([gevent.spawn(add, number) for number in range(30)], raise_error=True)
assert count == [30], count

# Renewed while greenlets run, and by a greenlet: there is one real thread.
lock, other = Lock("long", url=url, ttl=3.0), Lock("long", url=url)
with lock:
    for _ in range(12):
        gevent.sleep(0.3)
        lock.check()
        assert other.acquire(blocking=False) is False
assert other.acquire(blocking=False) is True
other.release()

# Each greenlet has a stack of its own: one that is spawned inside a holder is somebody else.
@locked("mine", url=url, max_retries=0)
def outer():
    def inner():
        try:
            outer()
        except LockContended:
            return "refused"
    return gevent.spawn(inner).get()

assert outer() == "refused"
shared = Lock("shared", url=url)
def share(_number):
    with shared:
        seen = count[0]
        gevent.sleep(0.001)
        count[0] = seen + 1
gevent.joinall([gevent.spawn(share, number) for number in range(20)], raise_error=True)
assert count == [50], count
print("ok")
"""


class TestProcesses:
    def test_a_forked_child_holds_nothing_and_touches_nothing_of_its_parents(self, redis_url: str) -> None:
        assert run_program(FORK, redis_url) == "ok"

    def test_a_dead_process_is_believed_for_its_ttl(self, redis_url: str) -> None:
        assert float(run_program(FORK_DEAD, redis_url)) < 3.0

    def test_greenlets_take_turns(self, redis_url: str) -> None:
        pytest.importorskip("gevent")
        assert run_program(GEVENT, redis_url) == "ok"


class TestLocked:
    @pytest.mark.parametrize(
        ("key", "expected"),
        [
            ("import:{path}", "import:a"),
            (lambda path, mode="r": f"by-hand:{path}{mode}", "by-hand:ar"),
            (None, "load:"),
            (("path",), "load:"),
            (["mode", "path"], "load:"),
        ],
        ids=["template", "callable", "all arguments", "some arguments", "a list"],
    )
    def test_its_key_has_every_form_of_a_tasks_key(self, url: str, key: Any, expected: str) -> None:
        @locked(key, url=url)
        def load(path: str, mode: str = "r") -> str:
            """Load it."""
            lock = current_lock()
            assert lock is not None
            return lock.key

        name = f"{__name__}.{load.__qualname__}"
        expected = f"{name}:" if expected == "load:" else expected
        assert load("a").startswith(expected)
        assert load("a") == load(path="a") == load("a", "r")
        assert load("a") != load("b")
        assert (load.__name__, load.__doc__) == ("load", "Load it.")

    def test_arguments_that_are_left_out_do_not_count(self, url: str) -> None:
        @locked(("path",), url=url)
        def load(path: str, mode: str = "r") -> str:
            lock = current_lock()
            assert lock is not None
            return lock.key

        assert load("a", "r") == load("a", "w")

    def test_a_callables_none_means_no_lock(self, url: str) -> None:
        @locked(lambda path: None, url=url)
        def load(path: str) -> Any:
            return current_lock()

        assert load("a") is None

    def test_arguments_that_make_no_key_are_an_error_and_nothing_runs(self, url: str) -> None:
        @locked("{order[id]}", url=url)
        def load(order: Any) -> None:
            raise AssertionError("it ran")

        with pytest.raises(LockKeyError, match="order"):
            load({})

    def test_calls_of_one_key_run_in_turn_and_of_others_beside_them(
        self, url: str, background: ThreadPoolExecutor
    ) -> None:
        both = threading.Barrier(2)
        count = {"a": 0, "b": 0}

        @locked("{name}", url=url)
        def add(name: str, meet: bool = False) -> None:
            if meet:
                both.wait(PATIENCE)
            seen = count[name]
            time.sleep(0.0005)
            count[name] = seen + 1

        for done in [background.submit(add, "a") for _ in range(20)]:
            done.result(PATIENCE)
        for done in [background.submit(add, name, True) for name in ("a", "b")]:
            done.result(PATIENCE)
        assert count == {"a": 21, "b": 1}

    def test_it_asks_so_often_and_so_long_apart(self, url: str) -> None:
        store = open_store(url)
        acquire, asked = store.acquire, []

        def counting(claim: Any) -> Any:
            asked.append(time.monotonic())
            return acquire(claim)

        @locked("k", store=store, max_retries=3, retry_delay=0.05)
        def work() -> None:
            raise AssertionError("it ran")

        store.acquire = counting  # type: ignore[method-assign]
        with ThreadPoolExecutor(1) as elsewhere:
            lock = Lock("k", url=url, identifier="somebody")
            assert elsewhere.submit(lock.acquire).result(PATIENCE)
            with pytest.raises(LockContended, match="'somebody'"):
                work()
            lock.release()
        assert len(asked) == 1 + 3
        assert all(later - earlier >= 0.05 for earlier, later in pairwise(asked))

    def test_one_of_the_retries_may_succeed(self, url: str, background: ThreadPoolExecutor) -> None:
        asked = threading.Event()
        store = open_store(url)
        acquire = store.acquire

        def counting(claim: Any) -> Any:
            answer = acquire(claim)
            asked.set()
            return answer

        @locked("k", store=store, max_retries=1000, retry_delay=0.01)
        def work() -> str:
            return "done"

        with Lock("k", url=url):
            store.acquire = counting  # type: ignore[method-assign]
            result = background.submit(work)
            assert asked.wait(PATIENCE)
            assert not result.done()
        assert result.result(PATIENCE) == "done"

    def test_no_retries_means_one_try(self, url: str, background: ThreadPoolExecutor) -> None:
        @locked("k", url=url, max_retries=0, retry_delay=30.0)
        def work() -> None:
            raise AssertionError("it ran")

        with Lock("k", url=url):
            assert isinstance(background.submit(work).exception(PATIENCE), LockContended)

    def test_a_time_out_is_an_error(self, url: str, background: ThreadPoolExecutor) -> None:
        @locked("k", url=url, timeout=0.1)
        def work() -> None:
            raise AssertionError("it ran")

        with Lock("k", url=url):
            error = background.submit(work).exception(PATIENCE)
        assert isinstance(error, LockTimeout)
        assert 0.1 <= error.waited < 2.0

    def test_a_call_inside_a_call_runs_under_the_same_lock(self, url: str) -> None:
        @locked("k", url=url, max_retries=0)
        def count_down(number: int) -> list[Any]:
            lock = current_lock()
            assert lock is not None
            lock.check()
            return [lock.owner, *(count_down(number - 1) if number else [])]

        assert len(set(count_down(3))) == 1
        assert not Lock("k", url=url).locked()
        with Lock("k", url=url) as lock:
            assert set(count_down(1)) == {lock.owner}
            assert lock.locked()

    def test_an_error_passes_and_releases(self, url: str) -> None:
        @locked("k", url=url)
        def work() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            work()
        assert not Lock("k", url=url).locked()

    def test_a_result_made_without_the_lock_is_not_returned(self, redis_url: str) -> None:
        other = Lock("k", url=redis_url)

        @locked("k", url=redis_url)
        def work() -> str:
            with redis.Redis.from_url(redis_url) as client:
                client.flushdb()
            assert other.acquire(blocking=False)
            return "done"

        with pytest.raises(LockLost):
            work()
        other.release()

    def test_methods_can_be_locked_by_their_arguments(self, url: str) -> None:
        class Account:
            @locked("account:{number}", url=url)
            def close(self, number: int) -> str:
                lock = current_lock()
                assert lock is not None
                return lock.key

        assert Account().close(7) == "account:7"

    def test_an_app_is_asked_for_its_store_when_it_is_called(self) -> None:
        app = Celery("late", set_as_current=False)

        @locked("k", app=app)
        def work() -> bool:
            lock = current_lock()
            return lock is not None and lock.held

        # Decorators run at import, when an app is often not configured yet.
        app.conf.distlock_url = f"memory://{uuid.uuid4().hex}"
        assert work()
        app.close()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_retries": -1}, "max_retries=-1"),
            ({"max_retries": True}, "max_retries=True"),
            ({"max_retries": 1, "timeout": 1.0}, "give one of them"),
            ({"retry_delay": -1}, "retry_delay=-1"),
            ({"ttl": 0}, "ttl=0"),
            ({"key": "{nothing}"}, "nothing"),
            ({"key": ("nothing",)}, "nothing"),
            ({"url": None}, "exactly one"),
        ],
    )
    def test_wrong_arguments_are_an_error_where_it_is_decorated(self, options: dict[str, Any], message: str) -> None:
        def work(path: str) -> None: ...

        with pytest.raises(LockConfigError, match=message):
            locked(**{"url": "memory://x", **options})(work)

    def test_what_runs_after_it_has_returned_cannot_be_locked(self) -> None:
        async def coroutine() -> None: ...

        def generator() -> Iterator[int]:
            yield 1

        async def asynchronous_generator() -> Any:
            yield 1

        for function in (coroutine, generator, asynchronous_generator):
            with pytest.raises(LockConfigError, match="after the call has returned"):
                locked("k", url="memory://x")(function)


class TestAHoldElsewhere:
    """Re-entrancy is about one lock; the same key in another store, or under another prefix, is another one."""

    def test_does_not_let_a_function_in_that_is_locked_in_another_store(self, url: str) -> None:
        elsewhere = f"memory://{uuid.uuid4().hex}"

        @locked("k", url=elsewhere, max_retries=0)
        def work() -> str:
            return "done"

        other = Lock("k", url=elsewhere, identifier="the other")
        with ThreadPoolExecutor(1) as thread:
            thread.submit(other.acquire).result(PATIENCE)
            with Lock("k", url=url), pytest.raises(LockContended, match="the other"):
                work()
            thread.submit(other.release).result(PATIENCE)
        assert work() == "done"

    def test_does_not_let_a_function_in_that_is_locked_under_another_prefix(self, url: str) -> None:
        @locked("k", url=url, prefix="mine", max_retries=0)
        def work() -> None: ...

        other = Lock("k", url=url, prefix="mine", identifier="the other")
        with ThreadPoolExecutor(1) as thread:
            thread.submit(other.acquire).result(PATIENCE)
            with Lock("k", url=url), pytest.raises(LockContended, match="the other"):
                work()
            thread.submit(other.release).result(PATIENCE)
        work()
