"""What users of other libraries complained of, and what went wrong elsewhere, about how tasks and holders end.

Numbers and references are those of the complaints as their reporters filed them.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from celery.exceptions import TaskRevokedError

from celery_distlock import Lock
from celery_distlock.keepalive import Keeper, Kept
from celery_distlock.lease import Claim, Completion, Lease, Renewal, new_owner
from celery_distlock.stores.base import LockStore
from celery_distlock.stores.memory import MemoryStore
from celery_distlock.stores.of_app import store_of
from tests.support.journal import Journal
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.servers import Databases
from tests.support.waiting import eventually
from tests.support.workers import LoadApp, Settings, StartWorker
from tests.worker.behind import RECORDS, TOMBSTONES, assert_nothing_left
from tests.worker.watching import (
    Death,
    assert_free_at_once,
    excluded_until_its_end,
    first_grant,
    lock_of,
    seen_held,
)

ENDINGS = "tests.worker.apps.endings"
MAY_LOG = ["WorkerLostError", "Terminated", "SystemExit", "LockLost"]
#: Seconds. A third of it is the interval of renewals: the rest is what a busy machine may take for one.
TTL = 3.0
#: Seconds after which somebody else would have been granted what nobody renews.
LONGER = TTL + 1.0


# 1. Lock stuck after crash, out of memory or deploy (celery-once #147 #103 #110, celery-singleton #21, huey #308).


def test_complaint_1_lock_stuck_after_a_crash_of_the_host(worker: StartWorker, load: LoadApp, journal: Journal) -> None:
    ttl = 1.0
    conf = {"distlock_ttl": ttl}
    crashing = worker(ENDINGS, conf=conf)
    tasks = load(ENDINGS, conf=conf)
    tasks.hold.delay("a")
    (start,) = journal.wait_for("start", key="a")
    crashing.kill_all()
    crashed = time.monotonic()
    journal.died(start["pid"])
    worker(ENDINGS, conf=conf, wait=False)
    first_grant(lock_of(tasks, "a"))
    assert time.monotonic() - crashed <= ttl + 1
    assert tasks.succeed.delay("a").get(timeout=20) == "a"
    assert journal.overlaps() == []


def test_complaint_1_lock_stuck_after_the_out_of_memory_killer(
    worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    worker(ENDINGS, may_log=MAY_LOG)
    tasks = load(ENDINGS)
    tasks.hold.delay("a")
    (start,) = journal.wait_for("start", key="a")
    death = Death(start["pid"])
    os.kill(start["pid"], signal.SIGKILL)
    # The ttl is thirty seconds.
    assert first_grant(lock_of(tasks, "a"), death).at - death.wait() < 1.0
    assert tasks.succeed.delay("a").get(timeout=20) == "a"
    assert_nothing_left(databases.locks)


def test_complaint_1_lock_stuck_after_a_deploy(
    worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    old = worker(ENDINGS, may_log=MAY_LOG)
    tasks = load(ENDINGS)
    result = tasks.hold_late.delay("a")
    journal.wait_for("start", key="a")
    # As an init system does: ask, and be impatient.
    old.stop_warm(wait=False)
    old.wait_for_log("Warm shutdown")
    old.stop_cold()
    assert_free_at_once(tasks, "a")
    worker(ENDINGS)
    journal.wait_for("start", count=2, key="a")
    journal.record("go", key="a")
    assert result.get(timeout=20) == "a"
    assert journal.overlaps() == []
    assert_nothing_left(databases.locks, but=[RECORDS])


# 3. TTL shorter than the run, then a blind delete frees somebody else's lock (celery #2926, redbeat #127).


def test_complaint_3_a_ttl_shorter_than_the_run_lets_two_run_at_once(
    worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    # Often enough for the other one to ask twice between the end of a lease that nobody renews and that of the body.
    conf = {"distlock_ttl": TTL, "distlock_retry_delay": 0.1, "distlock_retry_backoff_max": 0.2}
    worker(ENDINGS, conf=conf)
    tasks = load(ENDINGS)
    results = [tasks.last.delay("a", LONGER) for _ in range(2)]
    for result in results:
        assert result.get(timeout=20) == "a"
    assert len(journal.runs("a")) == 2
    assert journal.overlaps() == []


def test_complaint_3_a_late_release_frees_the_lock_of_the_next_holder(
    worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    late = worker(ENDINGS, conf={"distlock_ttl": TTL}, queues=["late"], may_log=MAY_LOG)
    eager = {"distlock_ttl": TTL, "distlock_retry_delay": 0.2, "distlock_retry_backoff_max": 0.5}
    worker(ENDINGS, conf=eager, queues=["next"])
    tasks = load(ENDINGS)
    tasks.hold_although_lost.apply_async(("a",), queue="late")
    journal.wait_for("start", key="a")
    late.freeze()
    successor = tasks.hold_once_asked.apply_async(("a",), queue="next")
    _, second = journal.wait_for("start", count=2, key="a")
    late.thaw()
    # The late one is told, ends, and releases what is not its own any more, while the successor still runs.
    journal.wait_for("lost", key="a")
    journal.record("go", key="a, although lost")
    late.wait_for_log("was no longer ours when it was released")
    seen_held(lock_of(tasks, "a"), LONGER)
    (holder,) = lock_of(tasks, "a").holders()
    assert holder["owner"] == second["owner"]
    journal.record("go", key="a")
    assert successor.get(timeout=20) == "a"


# 4. Lock stays after revoke, terminate, expiry (celery-singleton #29, celery #5350).


def test_complaint_4_lock_stays_after_revoke_terminate_or_expiry(
    worker: StartWorker, load: LoadApp, journal: Journal, databases: Databases
) -> None:
    node = worker(ENDINGS, concurrency=1, may_log=MAY_LOG)
    tasks = load(ENDINGS)
    # Occupy the only process, so that the others are still waiting when their fate comes.
    occupier = tasks.hold.delay("occupied")
    journal.wait_for("start", key="occupied")
    revoked = tasks.succeed.delay("revoked")
    expired = tasks.succeed.apply_async(("expired",), expires=0.5)
    node.wait_for_log(rf"succeed\[{expired.id}\] received")
    tasks.app.control.revoke(revoked.id)
    node.wait_for_log(f"Tasks flagged as revoked: {revoked.id}")
    # Its worker finds it expired when it arrives, or when its turn comes; expiry is the subject, so it has to pass.
    time.sleep(0.6)
    death = Death(journal.entries("start", key="occupied")[0]["pid"])
    tasks.app.control.revoke(occupier.id, terminate=True, signal="SIGTERM")
    death.wait()
    for result in (revoked, expired, occupier):
        with pytest.raises(TaskRevokedError):
            result.get(timeout=20)
    for key in ("occupied", "revoked", "expired"):
        assert_free_at_once(tasks, key)
    assert [run.key for run in journal.runs()] == ["occupied"]
    assert_nothing_left(databases.locks)


# 17. Renewal takes the process down (redbeat #230: 430 restarts in 14 days).


def test_complaint_17_a_failing_renewal_takes_the_process_down(
    worker: StartWorker, load: LoadApp, journal: Journal, settings: Settings, private_redis: Callable[..., RedisServer]
) -> None:
    server = private_redis()
    alone = Settings(settings.broker, settings.results, server.url, settings.journal)
    node = worker(ENDINGS, alone, conf={"distlock_ttl": TTL})
    tasks = load(ENDINGS, alone)
    result = tasks.hold.delay("a")
    (start,) = journal.wait_for("start", key="a")
    with server.client() as client:

        def renewed() -> None:
            before = client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)
            eventually(
                lambda: client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0) > before + 1,
                10,
                "another renewal",
            )

        renewed()
        client.client_kill_filter(_type="normal", skipme=True)
        renewed()
        client.script_flush()
        renewed()
        # Refuses the renewals themselves, not only the connection.
        client.config_set("maxmemory", "1mb")
        client.config_set("maxmemory", "0")
        renewed()
    server.restart()  # without data: the lease is entered again
    eventually(lambda: lock_of(tasks, "a").holders(), 10, "the lease in the new store")
    assert lock_of(tasks, "a").holders()[0]["fence"] == start["fence"]
    seen_held(lock_of(tasks, "a"), LONGER)
    assert node.alive
    assert start["pid"] in node.children()
    journal.record("go", key="a")
    assert result.get(timeout=20) == "a"
    assert_nothing_left(server.url, but=[TOMBSTONES])


class _Kept(Kept):
    def __init__(self, store: LockStore, lease: Lease) -> None:
        self.store, self._lease = store, lease
        self.look_at = 0.0
        self.renewals = 0

    def lease(self) -> Lease | None:
        return self._lease

    def ttl(self) -> float:
        return self._lease.ttl

    def on_renewed(self, deadline: float) -> None:
        self.renewals += 1

    def on_lost(self, answer: Renewal) -> None: ...


class _BreaksWhenAsked(_Kept):
    def lease(self) -> Lease | None:
        raise RuntimeError("on purpose")


class _BreaksWhenTold(_Kept):
    def on_renewed(self, deadline: float) -> None:
        raise RuntimeError("on purpose")


class _BrokenStore(MemoryStore):
    """A store that breaks its promise to raise nothing but StoreUnavailable."""

    def renew(self, leases: Sequence[Lease]) -> list[Renewal]:
        raise RuntimeError("on purpose")

    def release(self, leases: Sequence[Lease], completions: Sequence[Completion | None] = ()) -> list[bool]:
        raise RuntimeError("on purpose")


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    made = Keeper("distlock-test")
    yield made
    made.stop()


def _granted(store: LockStore, key: str) -> Lease:
    lease = store.acquire(Claim(key, new_owner(), 0.3))
    assert isinstance(lease, Lease)
    return lease


def test_complaint_17_an_error_in_one_renewal_ends_all_the_others(keeper: Keeper) -> None:
    sound_store, broken_store = MemoryStore(), _BrokenStore()
    keeper.give_back(broken_store, _granted(broken_store, "owed"))
    keeper.keep(_Kept(broken_store, _granted(broken_store, "a")))
    keeper.keep(_BreaksWhenAsked(sound_store, _granted(sound_store, "b")))
    keeper.keep(_BreaksWhenTold(sound_store, _granted(sound_store, "c")))
    sound = _Kept(sound_store, _granted(sound_store, "d"))
    keeper.keep(sound)
    eventually(lambda: sound.renewals >= 3, 10, "renewals beside broken ones")


# Accidents of other systems' stores.


def test_accident_a_permit_that_was_taken_from_a_live_holder_is_given_back_twice(
    worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    """Solid Queue #546, #547, #761: pruned by mistake, released again by its holder, and there were eleven at once."""
    worker(ENDINGS, concurrency=4, conf={"distlock_ttl": TTL}, may_log=MAY_LOG)
    tasks = load(ENDINGS)
    results = [tasks.hold_one_of_two.apply_async(("a",), lock={"on_lost": "warn"}) for _ in range(2)]
    first, second = journal.wait_for("start", count=2, key="a")
    # The pruning by mistake, twice, as two supervisors would.
    for _ in range(2):
        store_of(tasks.app).release([Lease.unknown("a", first["owner"], TTL)])
    journal.wait_for("lost", key="a")
    third = Lock("a", app=tasks.app, limit=2, ttl=TTL)
    fourth = Lock("a", app=tasks.app, limit=2, ttl=TTL)
    assert third.acquire(blocking=False)
    # The one that was pruned ends and releases once more, when the main process finds its child dead.
    os.kill(first["pid"], signal.SIGKILL)
    eventually(lambda: results[0].ready() or results[1].ready(), 20, "the end of the pruned one")
    assert not fourth.acquire(timeout=LONGER), "three at once"
    assert {holder["owner"] for holder in third.holders()} == {second["owner"], third.owner}
    third.release()
    journal.record("go", key="a")


def test_accident_a_dead_workers_permit_is_lost_for_ever(worker: StartWorker, load: LoadApp, journal: Journal) -> None:
    """Solid Queue: permits leak when a worker dies, until nothing runs any more."""
    worker(ENDINGS, concurrency=5, may_log=MAY_LOG)
    tasks = load(ENDINGS)
    for round_number in range(1, 3):
        for _ in range(2):
            tasks.hold_one_of_two.delay("a")
        starts = journal.wait_for("start", count=2 * round_number, key="a")[-2:]
        for start in starts:
            death = Death(start["pid"])
            os.kill(start["pid"], signal.SIGKILL)
            death.wait()
    lock = Lock("a", app=tasks.app, limit=2)
    other = Lock("a", app=tasks.app, limit=2)
    assert lock.acquire(timeout=1.0)
    assert other.acquire(timeout=1.0)
    lock.release()
    other.release()


def test_accident_a_reaper_frees_the_lock_of_a_process_that_is_only_slow(
    worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    """sidekiq-unique-jobs #488 … #779: whoever does not report for a while is taken for dead."""
    worker(ENDINGS, conf={"distlock_ttl": TTL})
    tasks = load(ENDINGS)
    result = tasks.hold.delay("a")
    (start,) = journal.wait_for("start", key="a")
    os.kill(start["pid"], signal.SIGSTOP)
    seen_held(lock_of(tasks, "a"), LONGER)
    os.kill(start["pid"], signal.SIGCONT)
    journal.record("go", key="a")
    assert result.get(timeout=20) == "a"


def test_accident_renewal_stops_because_the_workers_only_thread_is_busy(
    worker: StartWorker, load: LoadApp, journal: Journal
) -> None:
    """BullMQ #3183, python-redis-lock #91: with the solo pool the body runs in the main process's main thread."""
    worker(ENDINGS, pool="solo", conf={"distlock_ttl": TTL})
    tasks = load(ENDINGS)
    result = tasks.last.delay("a", LONGER)
    excluded_until_its_end(tasks, journal, "a")
    assert result.get(timeout=20) == "a"
    assert journal.entries("lost") == journal.entries("unsure") == []


def test_accident_a_reply_that_is_lost_after_the_grant_orphans_the_lock(
    worker: StartWorker,
    load: LoadApp,
    journal: Journal,
    settings: Settings,
    databases: Databases,
    proxy: Callable[[RedisServer], Proxy],
) -> None:
    """redis-py's Lock, python-redis-lock: asked again, they are contended by themselves."""
    between = proxy(databases.server)
    worker(ENDINGS, Settings(settings.broker, settings.results, between.url(settings.locks), settings.journal))
    tasks = load(ENDINGS)
    assert tasks.succeed.delay("warm").get(timeout=20) == "warm"
    lost_grant = between.swallow_reply(lambda data: b"EVALSHA" in data and b'"id"' in data)
    assert tasks.succeed.delay("a").get(timeout=20) == "a"
    lost_grant.wait()
    assert_free_at_once(tasks, "a")
    assert len(journal.runs("a")) == 1
    # And a reply to the release: nothing is to be done twice, nothing stays.
    lost_release = between.swallow_reply(lambda data: b"EVALSHA" in data and b'"id"' not in data)
    assert tasks.succeed.delay("b").get(timeout=20) == "b"
    lost_release.wait()
    assert_free_at_once(tasks, "b")
    assert_nothing_left(databases.locks)
