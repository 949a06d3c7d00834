"""The time of the servers, as one session knows it.

Authority
    The leader, who stamps each write with the time of its own clock. It is asked by writing a node of no meaning, and
    it tells without being asked when a contender is made.

What is known
    Between the sending of a write and its answer the leader's clock showed the time in the answer. So a difference
    between that clock and ours is known, within bounds as far apart as the answer took. What must not be believed too
    early is compared with the lower bound (:meth:`Clock.is_past`); where the bounds leave it open, the leader is asked,
    and its answer is a lower bound that is exact. Another leader has another clock: with each connection we begin anew.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from kazoo.exceptions import KazooException, NoNodeError

from celery_distlock.stores.zookeeper import requests
from celery_distlock.stores.zookeeper.session import Session

__all__ = ["Clock"]

#: Seconds after which what was learned is too old: clocks drift, and are set.
_FRESH = 60.0
#: Seconds that the bounds may be apart, and after which the leader is asked once more if they are.
_NARROW, _PAUSE = 0.01, 1.0
#: Times are stamped in whole milliseconds.
_GRAIN = 0.001


@dataclass(frozen=True, slots=True)
class _Known:
    """When it was learned (monotonic), and what to add to that clock at least, and at most."""

    learned: float
    least: float
    most: float

    @property
    def good_until(self) -> float:
        """Monotonic time from which the leader is asked again."""
        return self.learned + (_FRESH if self.most - self.least < _NARROW else _PAUSE)


class Clock:
    """The leader's clock.

    Arguments:
        session: how to ask it.
        path: of the node that is written for that.
    """

    def __init__(self, session: Session, path: str) -> None:
        self._session = session
        self._path = path
        self._known: _Known | None = None

    def note(self, sent: float, moment: int) -> _Known:
        """Learn from an answer that has just come.

        Arguments:
            sent: monotonic time before the request was sent.
            moment: when it was executed, in milliseconds since the epoch.
        """
        now, known = time.monotonic(), self._known
        least, most = moment / 1000 - now, moment / 1000 + _GRAIN - sent
        if known is not None and now - known.learned < _FRESH / 2 and known.least <= most and least <= known.most:
            known = _Known(now, max(least, known.least), min(most, known.most))
        else:
            # The first word, or the first after a while, or that clock has been set.
            known = _Known(now, least, most)
        self._known = known
        return known

    def forget(self) -> None:
        """Know nothing: it may be another leader's clock from now on."""
        self._known = None

    def now(self, end: float) -> float:
        """Return the time in seconds since the epoch, or a moment earlier; ask the leader if it is not known.

        Raises:
            KazooException: it cannot be asked; see :meth:`Session.run`.
        """
        known = self._known
        if known is None or time.monotonic() > known.good_until:
            known = self.ask(end)
        return time.monotonic() + known.least

    def ask(self, end: float) -> _Known:
        """Ask the leader."""
        while True:
            answer = self._session.exchange([requests.put(self._path, b"")], end)
            [stat] = answer.replies
            if not isinstance(stat, KazooException):
                return self.note(answer.sent, stat.mtime)
            if isinstance(stat, NoNodeError):
                self._session.exchange([requests.ensure(self._path)], end)

    def is_past(self, moment: float, end: float) -> bool:
        """Tell whether it is later than ``moment`` (seconds since the epoch) for certain; ask if it may be."""
        if self.now(end) >= moment:
            return True
        known = self._known
        if known is not None and time.monotonic() + known.most < moment:
            return False
        least = self.ask(end).least
        return time.monotonic() + least >= moment

    def local(self, moment: float) -> float:
        """Return the monotonic time from which it may be later than ``moment``; now, if nothing is known."""
        known = self._known
        return time.monotonic() if known is None else moment - known.most
