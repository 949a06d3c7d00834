"""Ticks and leaders, with Celery's own scheduler, in one process."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.beat import Scheduler, SchedulingError, Service
from celery.schedules import crontab, schedule
from celery.signals import beat_init

from celery_distlock import LockedTask, StoreUnavailable, beat
from celery_distlock.beat import LeaderScheduler, Tick, Ticks
from celery_distlock.stores.base import LockStore
from celery_distlock.stores.memory import MemoryStore
from celery_distlock.stores.of_app import forget_store, use_store
from celery_distlock.tokens import Token


class Store(MemoryStore):
    """May refuse to answer."""

    down = False

    def acquire(self, claim: Any) -> Any:
        if self.down:
            raise StoreUnavailable(self.name, "it is down")
        return super().acquire(claim)

    def renew(self, leases: Any) -> Any:
        if self.down:
            raise StoreUnavailable(self.name, "it is down")
        return super().renew(leases)

    def reserve(self, token: Token) -> Any:
        if self.down:
            raise StoreUnavailable(self.name, "it is down")
        return super().reserve(token)


class WithoutTokens(LockStore):
    """A store around another one, of which it has the locks only."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.name = store.name

    def acquire(self, claim: Any) -> Any:
        return self.store.acquire(claim)

    def renew(self, leases: Any) -> Any:
        return self.store.renew(leases)

    def release(self, leases: Any, completions: Any = ()) -> Any:
        return self.store.release(leases, completions)

    def forget(self, completions: Any) -> None:
        self.store.forget(completions)

    def holders(self, key: Any = None, *, prefix: str = "") -> Any:
        return self.store.holders(key, prefix=prefix)

    def close(self) -> None:
        self.store.close()


class Shop:
    """An app, its store, and what was published of it."""

    def __init__(self, **schedule: Any) -> None:
        self.store = Store(uuid.uuid4().hex)
        self.app = Celery(
            "shop", set_as_current=False, broker=f"memory://{uuid.uuid4().hex}", backend="cache+memory://"
        )
        self.app.conf.update(
            beat_schedule={name: {"task": "job", "schedule": each} for name, each in schedule.items()},
            distlock_url="memory://",
            distlock_beat_scheduler="celery.beat:Scheduler",
            # Renewed every half second: who leads is in doubt only on a machine that is busy for a second.
            distlock_beat_ttl=1.5,
        )
        use_store(self.app, self.store)
        self.published: list[Any] = []

    def define(self, **options: Any) -> Any:
        task = self.app.task(base=LockedTask, shared=False, name="job", **options)(job)._get_current_object()
        publish = task.apply_async

        def counted(*args: Any, **kwargs: Any) -> Any:
            result = publish(*args, **kwargs)
            if not getattr(result, "duplicate", False):
                self.published.append(kwargs.get("headers"))
            return result

        task.apply_async = counted
        return task


def job() -> None:
    """Do nothing."""


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop(job=schedule(3600.0), other=schedule(3600.0))
    with shop.app:
        yield shop
    forget_store(shop.app)
    shop.store.drop()


def due(scheduler: Any, *names: str) -> None:
    """Let these entries be due in this scheduler."""
    for name in names or ("job",):
        entry = scheduler.schedule[name]
        entry.last_run_at = entry.default_now() - timedelta(seconds=3600.5)
    scheduler._heap = None


class TestTick:
    def of(self, shop: Shop, each: Any, now: float, last: float | None = None) -> str:
        last_run_at = datetime.fromtimestamp(now - 60 if last is None else last, timezone.utc)
        entry = SimpleNamespace(name="job", schedule=each, last_run_at=last_run_at, default_now=shop.app.now)
        return Tick.of(shop.app, entry, now).key

    def test_an_interval_has_one_whenever_its_beats_were_started(self, shop: Shop) -> None:
        minute = schedule(60.0)
        assert len({self.of(shop, minute, now) for now in (1200.0, 1210.3, 1259.9)}) == 1
        assert self.of(shop, minute, 1200.0) != self.of(shop, minute, 1260.0)

    def test_a_crontab_has_one_whatever_the_clocks_say(self, shop: Shop) -> None:
        hourly = crontab(minute=0, app=shop.app)
        moments = []
        for ahead in (-1500.0, 0.0, 25.0, 1500.0):
            clock = 1_800_000_000.0 // 3600 * 3600 + 3600
            hourly.nowfun = lambda clock=clock, ahead=ahead: datetime.fromtimestamp(clock + ahead, timezone.utc)
            moments.append(self.of(shop, hourly, clock + ahead, last=clock - 3000.0))
        assert len(set(moments)) == 1

    @pytest.mark.parametrize("down_for", [0.0, 7200.0, 40 * 86400.0])
    def test_a_crontab_has_one_also_for_a_beat_that_was_down_for_long(self, shop: Shop, down_for: float) -> None:
        # What it has missed was others'; what is due is what they have published last.
        twice_an_hour = crontab(minute="0,20", app=shop.app)
        clock = 1_800_000_000.0 // 3600 * 3600 + 3600
        twice_an_hour.nowfun = lambda: datetime.fromtimestamp(clock + 1202.0, timezone.utc)
        key = self.of(shop, twice_an_hour, clock + 1202.0, last=clock + 2.0 - down_for)
        assert key.endswith(f":{clock + 1200:.3f}")

    def test_a_schedule_that_ends_has_a_last_one(self, shop: Shop) -> None:
        now = 1_800_000_000.0

        class Once(crontab):  # type: ignore[misc]
            def remaining_estimate(self, last_run_at: datetime) -> Any:
                return timedelta(seconds=-5.0) if last_run_at.timestamp() < now - 5.0 else None

        once = Once(app=shop.app, nowfun=lambda: datetime.fromtimestamp(now, timezone.utc))
        assert self.of(shop, once, now).endswith(f":{now - 5.0:.3f}")

    def test_entries_have_their_own(self, shop: Shop) -> None:
        one = Tick.of(shop.app, shop_entry(shop, "job"), 7.0)
        other = Tick.of(shop.app, shop_entry(shop, "other"), 7.0)
        assert one.key != other.key

    def test_it_is_remembered_for_two_intervals_a_minute_at_least(self, shop: Shop) -> None:
        entry = shop_entry(shop, "job")
        assert Tick.of(shop.app, entry).memory == 7200.0
        entry.schedule = schedule(1.0)
        assert Tick.of(shop.app, entry).memory == 60.0
        entry.schedule = crontab(minute=0, app=shop.app)
        # However late it is published.
        assert Tick.of(shop.app, entry).memory == 7200.0


def shop_entry(shop: Shop, name: str) -> Any:
    return Scheduler(shop.app).schedule[name]


class TestUniqueTick:
    def test_of_two_beats_one_publishes(self, shop: Shop) -> None:
        shop.define(beat_unique_tick=True)
        schedulers = [Scheduler(shop.app) for _ in range(2)]
        for scheduler in schedulers:
            Ticks(scheduler)
            due(scheduler, "job", "other")
            while scheduler.tick() == 0:
                pass
        assert len(shop.published) == 2

    def test_without_it_both_do(self, shop: Shop) -> None:
        shop.define()
        for scheduler in [Scheduler(shop.app) for _ in range(2)]:
            Ticks(scheduler)
            due(scheduler)
            assert scheduler.tick() == 0
        assert len(shop.published) == 2

    def test_a_beat_that_starts_is_told_of_it(self, shop: Shop) -> None:
        shop.define(beat_unique_tick=True)
        services = [Service(shop.app, scheduler_cls=Scheduler) for _ in range(2)]
        for service in services:
            beat_init.send(sender=service)
            due(service.scheduler)
            service.scheduler.tick()
        assert len(shop.published) == 1

    def test_a_tick_that_could_not_be_published_is_anybodys(self, shop: Shop) -> None:
        task = shop.define(beat_unique_tick=True)
        first, second = Scheduler(shop.app), Scheduler(shop.app)
        Ticks(first)
        Ticks(second)
        publish, task.apply_async = task.apply_async, refuse
        with pytest.raises(SchedulingError):
            first.apply_async(first.schedule["job"])
        task.apply_async = publish
        second.apply_async(second.schedule["job"])
        assert len(shop.published) == 1

    def test_a_beat_that_is_told_to_end_in_the_question_leaves_the_tick_to_others(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def reserve(token: Token) -> Any:
            MemoryStore.reserve(shop.store, token)
            raise SystemExit

        shop.define(beat_unique_tick=True)
        first, second = Scheduler(shop.app), Scheduler(shop.app)
        Ticks(first)
        Ticks(second)
        monkeypatch.setattr(shop.store, "reserve", reserve)
        with pytest.raises(SystemExit):
            first.apply_async(first.schedule["job"])
        monkeypatch.undo()
        second.apply_async(second.schedule["job"])
        assert len(shop.published) == 1

    def test_a_silent_store_stops_no_job(self, shop: Shop) -> None:
        shop.define(beat_unique_tick=True)
        scheduler = Scheduler(shop.app)
        Ticks(scheduler)
        shop.store.down = True
        scheduler.apply_async(scheduler.schedule["job"])
        assert len(shop.published) == 1


def refuse(*_: Any, **__: Any) -> None:
    raise ConnectionError("refused")


def test_a_job_whose_last_run_has_not_finished_is_skipped_and_counted(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    shop.define(unique_while="queued_or_running", beat_unique_tick=True)
    scheduler = Scheduler(shop.app)
    Ticks(scheduler)
    before = beat.skipped["other"]
    caplog.set_level("INFO", "celery_distlock")
    for name in ("job", "other"):
        assert (scheduler.apply_async(scheduler.schedule[name]) is None) == (name == "other")
    assert beat.skipped["other"] == before + 1
    assert [record.levelname for record in caplog.records] == ["INFO"]


@pytest.mark.parametrize("policy", ["return", "raise"])
def test_it_is_counted_and_no_error_by_any_beat_that_starts(
    shop: Shop, caplog: pytest.LogCaptureFixture, policy: str
) -> None:
    # Not because of a task that another test has defined.
    beat_init.disconnect(dispatch_uid="celery_distlock.beat")
    shop.define(unique_while="queued_or_running", on_duplicate=policy)
    service = Service(shop.app, scheduler_cls=Scheduler)
    beat_init.send(sender=service)
    before = beat.skipped["job"] + beat.skipped["other"]
    caplog.set_level("WARNING")
    due(service.scheduler, "job", "other")
    while service.scheduler.tick() == 0:
        pass
    assert len(shop.published) == 1
    assert beat.skipped["job"] + beat.skipped["other"] - before == 1
    assert caplog.records == []


class TestLeader:
    @pytest.fixture
    def beats(self, shop: Shop) -> Iterator[list[LeaderScheduler]]:
        shop.define()
        beats = [LeaderScheduler(app=shop.app) for _ in range(3)]
        yield beats
        for one in beats:
            one._stand_down()

    def tick(self, one: LeaderScheduler) -> float:
        wait = 0.0
        while wait == 0.0:
            wait = one.tick()
        return wait

    def test_one_leads_and_the_others_stand_by(
        self, shop: Shop, beats: list[LeaderScheduler], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "celery.beat")
        for one in beats:
            due(one._inner, "job", "other")
            assert 0.0 < self.tick(one) <= 0.5
        assert [one.leads for one in beats] == [True, False, False]
        assert len(shop.published) == 2
        assert len([record for record in caplog.records if "Sending due task" in record.getMessage()]) == 2

    def test_when_the_leader_goes_another_leads_and_publishes_nothing_again(
        self, shop: Shop, beats: list[LeaderScheduler]
    ) -> None:
        for one in beats:
            due(one._inner)
            self.tick(one)
        beats[0].close()
        self.tick(beats[1])
        assert [one.leads for one in beats] == [False, True, False]
        assert len(shop.published) == 1

    def test_what_a_dead_leader_owed_is_published_by_the_next(self, shop: Shop, beats: list[LeaderScheduler]) -> None:
        self.tick(beats[0])
        due(beats[1]._inner, "job", "other")
        self.tick(beats[1])
        assert shop.published == []
        beats[0]._stand_down()
        self.tick(beats[1])
        assert len(shop.published) == 2

    def test_what_a_dead_leader_owed_is_published_though_the_next_one_has_just_been_started(
        self, shop: Shop, beats: list[LeaderScheduler]
    ) -> None:
        self.tick(beats[0])
        for witness in beats[1:]:
            due(witness._inner, "job", "other")
            self.tick(witness)
        beats[0]._stand_down()
        newcomer = LeaderScheduler(app=shop.app)
        self.tick(newcomer)
        assert newcomer.leads
        assert shop.published == []
        for witness in beats[1:]:
            self.tick(witness)
        assert not any(one.leads for one in beats)
        assert len(shop.published) == 2
        newcomer.close()

    def test_what_may_have_been_published_is_not_by_those_who_do_not_lead(
        self, shop: Shop, beats: list[LeaderScheduler], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.tick(beats[0])
        due(beats[1]._inner)
        self.tick(beats[1])
        beats[0]._stand_down()
        self.tick(beats[2])
        assert beats[2].leads

        def silent(token: Any) -> None:
            raise StoreUnavailable("memory://", "silent")

        monkeypatch.setattr(shop.store, "reserve", silent)
        self.tick(beats[1])
        assert shop.published == []

    def test_a_leader_that_is_not_certain_publishes_nothing(self, shop: Shop, beats: list[LeaderScheduler]) -> None:
        leader = beats[0]
        self.tick(leader)
        shop.store.down = True
        deadline = leader._lock.remaining
        assert deadline > 0
        assert leader._lock._kept is not None
        leader._lock._kept.deadline = 0.0
        assert not leader.leads
        due(leader._inner)
        self.tick(leader)
        assert shop.published == []
        shop.store.down = False
        self.tick(leader)
        assert leader.leads
        assert len(shop.published) == 1

    def test_after_a_silence_of_the_store_each_entry_is_published_once(
        self, shop: Shop, beats: list[LeaderScheduler], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ticks = itertools.count()
        monkeypatch.setattr(Tick, "of", lambda app, entry: Tick(f"{entry.name}:{next(ticks)}", 60.0))
        first, second, _ = beats
        self.tick(first)
        shop.store.down = True
        assert first._lock._kept is not None
        first._lock._kept.deadline = 0.0
        end = time.monotonic() + 1.8
        while time.monotonic() < end:
            for one in (first, second):
                due(one._inner, "job", "other")
                time.sleep(min(0.1, self.tick(one)))
        shop.store.down = False
        self.tick(first)
        assert first.leads
        assert len(shop.published) == 2
        # Nor does who stood by remember more.
        self.tick(second)
        first._stand_down()
        self.tick(second)
        assert second.leads
        assert len(shop.published) == 4

    def test_a_shared_schedule_is_left_alone_by_those_who_stand_by_and_read_anew_by_the_leader(
        self, shop: Shop
    ) -> None:
        shop.define()
        made: list[Any] = []

        class Shared(Scheduler):  # type: ignore[misc]
            def __init__(self, **options: Any) -> None:
                super().__init__(**options)
                made.append(self)
                self.ticks = 0
                self.closed = False

            def close(self) -> None:
                self.closed = True
                super().close()

            def tick(self) -> float:
                self.ticks += 1
                return 10.0

        shop.app.conf.distlock_beat_scheduler = f"{__name__}:Shared"
        globals()["Shared"] = Shared
        leader, other = LeaderScheduler(app=shop.app), LeaderScheduler(app=shop.app)
        assert leader.tick() <= 0.5
        other.tick()
        assert [each.ticks for each in made] == [0, 0, 1]
        assert [each.closed for each in made] == [True, False, False]
        leader.close()
        other.tick()
        assert [each.ticks for each in made] == [0, 0, 1, 1]
        other.close()

    def test_in_a_store_that_keeps_no_tokens_one_leads_and_nothing_is_made_up_for(self, shop: Shop) -> None:
        shop.define()
        use_store(shop.app, WithoutTokens(shop.store))
        leader, other = LeaderScheduler(app=shop.app), LeaderScheduler(app=shop.app)
        for one in (leader, other):
            due(one._inner)
            self.tick(one)
        assert len(shop.published) == 1
        leader.close()
        self.tick(other)
        assert (other.leads, len(shop.published)) == (True, 1)
        due(other._inner, "other")
        self.tick(other)
        assert len(shop.published) == 2
        other.close()

    def test_it_is_whatever_it_is_put_around(self, shop: Shop, beats: list[LeaderScheduler]) -> None:
        assert beats[0].max_interval == beats[0]._inner.max_interval
        assert set(beats[0].schedule) >= {"job", "other"}
        assert not hasattr(beats[0], "no_such_thing")
