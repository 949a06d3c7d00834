"""Several beats, and each tick of each entry once.

*Ticks.* ``beat_unique_tick=True``: before an entry of this task is published, its tick is entered in the store; the
beat that comes second publishes nothing. A tick is the entry's name and its due time: of a crontab, its latest moment;
of an interval, which of the intervals since the epoch it is. So beats that were started at different moments agree, and
so do clocks that differ by less than half the interval.

*A leader.* ``celery beat -S celery_distlock.beat:LeaderScheduler``: one beat publishes, the others stand by::

                    lease granted
        stand by ─────────────────▶ lead: publishes, each tick entered in the store
           ▲                          │
           └── lease not certain ─────┘   looked at before each publish

Authority
    The store. A leader stops by itself when its lease is not certain any more, which is before the store grants it
    to somebody else; a message that was on its way to the broker just then is of a tick that is entered already.

What each failure does
    * The leader dies: another leads as soon as the store lets it, and publishes what the dead one owed. If that is one
      that was started too late to know, those who stand by do so.
    * The store is silent: nobody leads, until it answers; then each entry that is due is published once.
    * The broker is down: the tick is given back, Celery logs it.

Standing by
    A scheduler whose schedule is its own (Celery's) goes on ticking, without publishing; the last tick of each entry
    is remembered, and those of the last moments, and published by who becomes the leader, unless they are in the
    store. (Where the store keeps no tokens nobody could tell, and they are lost.) One whose schedule is shared (a
    database's) is left alone, and made anew when its beat becomes the leader.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any

from celery.beat import PersistentScheduler, Scheduler, SchedulingError
from celery.schedules import schedule as interval_schedule
from celery.utils.imports import load_extension_class_names, symbol_by_name

from celery_distlock.errors import DuplicateTask, LockConfigError, LockLost, StoreUnavailable
from celery_distlock.lease import Holder, new_owner
from celery_distlock.lock import Lock
from celery_distlock.options import store_settings
from celery_distlock.stores.base import Uniqueness
from celery_distlock.stores.of_app import store_of
from celery_distlock.task.message import cancel
from celery_distlock.tokens import Duplicate, Token

__all__ = ["LeaderScheduler", "Tick", "Ticks", "attend", "skipped"]

log = logging.getLogger(__name__)

#: How often entries were not published, since the job of their last tick had not finished; by the entry's name.
skipped: Counter[str] = Counter()

#: Seconds for which a tick is remembered at least.
_MEMORY = 60.0
#: Seconds before now, from which on the latest moment of a crontab is looked for: further back while there is none, so
#: that there are few to go through.
_STEPS_BACK = (60.0, 3600.0, 86400.0, 32 * 86400.0)
#: Seconds between two tries of those who stand by, at most.
_PAUSE = 0.5


@dataclass(frozen=True)
class Tick:
    """One moment of one entry.

    Attributes:
        key: the same in every beat.
        memory: seconds for which it must be remembered.
    """

    key: str
    memory: float

    @classmethod
    def of(cls, app: Any, entry: Any, now: float | None = None) -> Tick:
        """Return the tick that is due now (seconds since the epoch)."""
        now = time.time() if now is None else now
        schedule = entry.schedule
        if isinstance(schedule, interval_schedule):
            interval = float(schedule.run_every.total_seconds())
            moment = now // interval * interval
        else:
            moment, interval = _latest(schedule, entry.last_run_at, now)
        return cls(f"beat:{app.main}:{entry.name}:{moment:.3f}", max(_MEMORY, 2 * interval))


def _latest(schedule: Any, last_run_at: datetime, now: float) -> tuple[float, float]:
    """Return the moment that is due, and how many seconds later the next one is.

    Not simply the first one after the last run: a beat that was down, or has kept no schedule, has missed some.
    """

    def following(moment: datetime) -> float | None:
        left = schedule.remaining_estimate(moment)
        looked_at = schedule.maybe_make_aware(schedule.now()).timestamp()
        # Whole seconds: what is left of them is when we looked.
        return None if left is None else float(round(looked_at + left.total_seconds()))

    def at(moment: float) -> datetime:
        return datetime.fromtimestamp(moment, schedule.tz)

    moment = following(last_run_at)
    since = schedule.maybe_make_aware(last_run_at).timestamp()
    for back in _STEPS_BACK:
        if now - back <= since:
            break
        latest = following(at(now - back))
        if latest is not None and latest <= now:
            moment = latest
            break
    if moment is None:
        return now, 0.0
    while (then := following(at(moment))) is not None and moment < then <= now:
        moment = then
    return moment, 0.0 if then is None else then - moment


class Ticks:
    """Publishes for a scheduler, each tick once.

    Arguments:
        scheduler: any of Celery's kind; its ``apply_async`` is replaced.
        everything: enter the ticks of all entries, not only those of tasks with ``beat_unique_tick``.
    """

    def __init__(self, scheduler: Any, *, everything: bool = False) -> None:
        self._scheduler = scheduler
        self._app = scheduler.app
        self._everything = everything
        self._publish = scheduler.apply_async
        scheduler.apply_async = self.apply_async
        self.who = f"{socket.gethostname()}:{os.getpid()}:{new_owner()}"

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Publish a due entry, as the scheduler's own method does; None if another beat has."""
        if not self._everything and not self._wants(entry):
            return self._published(entry, producer=producer, advance=advance, **kwargs)
        tick = Tick.of(self._app, entry)
        return self.once(tick, entry, producer=producer, advance=advance, **kwargs)

    def once(self, tick: Tick, entry: Any, *, advance: bool, blindly: bool = True, **kwargs: Any) -> Any:
        """Publish an entry, unless its tick has been published; return the result, or None.

        Arguments:
            tick: the entry's.
            entry: what is due.
            advance: whether the scheduler is to note that it was published.
            blindly: whether it is published if the store gives no answer.
            kwargs: for the scheduler's own method.
        """
        store = store_of(self._app)
        if not isinstance(store, Uniqueness):
            raise LockConfigError(f"beat_unique_tick needs a store that keeps tokens, which {store.name} does not")
        token = Token(tick.key, f"{self.who}:{new_owner()}", tick.memory, queued=False, window=tick.memory)
        answer: Any = None
        try:
            try:
                answer = store.reserve(token)
            except StoreUnavailable as error:
                if not blindly:
                    return None
                log.warning("Entry %s is published without asking for other beats: %s", entry.name, error)
            if not isinstance(answer, Duplicate):
                log.debug("Entry %s: this beat publishes tick %s", entry.name, tick.key)
                return self._published(entry, advance=advance, **kwargs)
        except BaseException:
            # Also for the signal that ends this beat, which may strike in the question.
            cancel(store, token, window=True)
            raise
        log.debug("Entry %s: another beat has published tick %s", entry.name, tick.key)
        if advance:
            self._scheduler.reserve(entry)
        return None

    def _wants(self, entry: Any) -> bool:
        options = getattr(self._app.tasks.get(entry.task), "_lock_options", None)
        return options is not None and options.beat_unique_tick

    def _published(self, entry: Any, **kwargs: Any) -> Any:
        try:
            result = self._publish(entry, **kwargs)
        except SchedulingError as error:
            # There is nobody here for whom on_duplicate="raise" could be meant.
            if not isinstance(error.__context__, DuplicateTask):
                raise
        else:
            if not getattr(result, "duplicate", False):
                return result
        skipped[entry.name] += 1
        return None


@dataclass
class _Owed:
    """A tick of an entry that was not published here."""

    tick: Tick
    entry: Any
    since: float


class LeaderScheduler:
    """A scheduler around another one (``distlock_beat_scheduler``), of which one beat's publishes at a time.

    What is not about leading is the other one's: its attributes are this one's.
    """

    def __init__(self, app: Any, lazy: bool = False, **options: Any) -> None:
        settings = store_settings(app.conf)
        aliases = dict(load_extension_class_names("celery.beat_schedulers"))
        make = symbol_by_name(settings.beat_scheduler, aliases=aliases)
        self._make: Callable[[], Any] = lambda: make(app=app, lazy=lazy, **options)
        self._app = app
        self._ttl = settings.beat_ttl
        self._pause = min(_PAUSE, self._ttl / 3)
        self._owed: dict[str, list[_Owed]] = {}
        self._was_leading = False
        self._silent_since: float | None = None
        self._stands_by = False
        #: The fence of who leads, as far as is known.
        self._leader = 0
        store = self._store = store_of(app)
        self._enters_ticks = isinstance(store, Uniqueness)
        self._lock = Lock(
            f"beat:{app.main}",
            store=store,
            ttl=self._ttl,
            identifier=f"beat on {socket.gethostname()} (pid {os.getpid()})",
        )
        self._take(self._make())

    def _take(self, scheduler: Any) -> None:
        self._inner = scheduler
        self._shared = type(scheduler) not in (Scheduler, PersistentScheduler)
        if getattr(scheduler, "lock_key", None):
            # RedBeat's own election: who stands by would hang in it when it starts, for as long as a dead leader's
            # lock lasts (25 minutes).
            scheduler.lock_key = None
        self._ticks = Ticks(scheduler, everything=True) if self._enters_ticks else None
        self._apply_entry = scheduler.apply_entry
        self._apply_async = scheduler.apply_async
        scheduler.apply_entry = self._entry_is_due
        scheduler.apply_async = self._publish_if_leading

    def __getattr__(self, name: str) -> Any:
        if name == "_inner":
            raise AttributeError(name)
        return getattr(self._inner, name)

    @property
    def leads(self) -> bool:
        """Whether this beat's lease is certain: nobody else may publish."""
        return self._lock.held

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Publish what is due, or stand by; return the seconds until the next call."""
        if not self._seek() and self._shared:
            return self._pause
        wait: float | None = self._inner.tick(*args, **kwargs)
        # Also as the leader: to notice that it is none any more, and to ask again.
        return self._pause if wait is None else min(self._pause, wait)

    def close(self) -> None:
        """Let another beat lead, and close the scheduler."""
        try:
            self._inner.close()
        finally:
            self._stand_down()

    # -- leading --------------------------------------------------------------------------------------------------

    def _seek(self) -> bool:
        if self.leads:
            return True
        if self._was_leading:
            self._was_leading = False
            log.warning("beat: leads no longer: %s", self._lock)
        self._stand_down()
        try:
            refused = self._lock._acquire(0.0)
        except StoreUnavailable as error:
            log.warning("beat: nobody can lead: %s", error)
            self._silent_since = self._silent_since or time.monotonic()
            return False
        self._heard_of_the_store()
        if refused is not None:
            self._led_by(refused[1])
            return False
        log.info("beat: leads from now on")
        self._was_leading, self._stands_by = True, False
        if self._shared:
            # What the last leader has noted is in its database.
            self._inner.close()
            self._take(self._make())
        for owed in self._owed_now():
            self._pay(owed, blindly=True)
        return True

    def _led_by(self, leader: Holder | None) -> None:
        """Notice who leads; if it is another one than before, it may not know what the last one owed."""
        fence = leader.get("fence", 0) if leader is not None else 0
        before, self._leader = self._leader, fence or self._leader
        if before and before != self._leader:
            for owed in self._owed_now():
                self._pay(owed, blindly=False)

    def _stand_down(self) -> None:
        if self._lock.owner is None:
            return
        try:
            self._lock.release()
        except LockLost as error:
            log.debug("beat: %s", error)

    def _owed_now(self) -> Iterator[_Owed]:
        owed, self._owed = self._owed, {}
        yield from sorted(chain.from_iterable(owed.values()), key=lambda one: one.since)

    def _owe(self, entry: Any) -> None:
        now = time.monotonic()
        before = self._owed.get(entry.name, ())
        # A leader that has died owes what became due until another one leads; after a longer silence once is enough.
        noticed = self._store.freed_after(self._ttl) + self._pause
        recent = [one for one in before if one.since > now - noticed]
        if not self._stands_by:
            self._stands_by = True
            log.info("beat: stands by, and remembers what becomes due")
        self._owed[entry.name] = [*recent, _Owed(Tick.of(self._app, entry), entry, now)]

    def _heard_of_the_store(self) -> None:
        """After a silence in which nobody can have led, owe each entry once."""
        since, self._silent_since = self._silent_since, None
        if since is not None and time.monotonic() > since + self._ttl:
            self._owed = {name: owed[-1:] for name, owed in self._owed.items()}

    def _pay(self, owed: _Owed, *, blindly: bool) -> None:
        assert self._ticks is not None
        try:
            producer = self._inner.producer
            self._ticks.once(owed.tick, owed.entry, advance=False, blindly=blindly, producer=producer)
        except Exception:
            log.exception("beat: entry %s could not be published", owed.entry.name)

    # -- what the scheduler calls -----------------------------------------------------------------------------------

    def _entry_is_due(self, entry: Any, producer: Any = None) -> None:
        if self.leads:
            self._apply_entry(entry, producer=producer)
        else:
            self._publish_if_leading(entry, advance=False)

    def _publish_if_leading(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        if self.leads:
            return self._apply_async(entry, producer=producer, advance=advance, **kwargs)
        if self._enters_ticks:
            self._owe(entry)
        if advance:
            self._inner.reserve(entry)
        return None


def attend(service: Any) -> None:
    """Have the scheduler of a beat that starts look for ``beat_unique_tick``, and count what it skips."""
    if not isinstance(service.scheduler, LeaderScheduler):
        Ticks(service.scheduler)
