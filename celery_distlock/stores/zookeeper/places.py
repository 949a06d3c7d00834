"""The places in lines that this process keeps.

Authority
    ZooKeeper knows who stands where, and believes a waiter for as long as its process's session lives. That one of a
    living process's waiters has died, or does not answer, only this process can know: so it gives up the places of
    those who are silent itself.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field

from celery_distlock.lease import Claim
from celery_distlock.stores.zookeeper.layout import Contender
from celery_distlock.stores.zookeeper.session import Answer

__all__ = ["Place", "Places"]


@dataclass(eq=False, slots=True)
class Place:
    """One waiter's place.

    Attributes:
        claim: what is waited for.
        contender: its node.
        path: of the node.
        number: of its ticket.
        listener: who is told of an offer; empty: nobody.
        fence: what its node was called before it was moved here from another session; 0 if it was not.
        patience: seconds for which it may be silent, and for which an offer is kept for it.
        heard: monotonic time of its last sign of life.
        offered: monotonic time from which it is known to have been offered the place.
        confirming: whether it is just being turned into a lease.
        armed: whether an event will tell when to look again.
        seen: the answer in which it was seen to have the place, right after another one's node had gone.
    """

    claim: Claim
    contender: Contender
    path: str
    number: int
    listener: str
    fence: int
    patience: float
    heard: float = field(default_factory=time.monotonic)
    offered: float | None = None
    confirming: bool = False
    armed: bool = False
    seen: Answer | None = None

    @property
    def due(self) -> float:
        """Monotonic time at which it is given up."""
        if self.confirming:
            return math.inf
        return (self.heard if self.offered is None else self.offered) + self.patience

    def no_offer(self) -> None:
        """Note that there is none."""
        self.offered = None
        self.armed = False

    def offer(self) -> float:
        """Note that there is an offer, and return since when this is known."""
        if self.offered is None:
            self.offered = time.monotonic()
        return self.offered


class Places:
    """All places of one process, by key and owner. Its mutex guards what is done with them in several steps."""

    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self._places: dict[tuple[str, str], Place] = {}

    def __len__(self) -> int:
        return len(self._places)

    def find(self, key: str, owner: str) -> Place | None:
        """Return a place, if there is one."""
        return self._places.get((key, owner))

    def all(self) -> list[Place]:
        """Return all places."""
        with self.mutex:
            return list(self._places.values())

    def keep(self, place: Place) -> None:
        """Remember a place."""
        with self.mutex:
            self._places[place.claim.key, place.claim.owner] = place

    def drop(self, key: str, owner: str) -> Place | None:
        """Forget a place, and return it."""
        with self.mutex:
            return self._places.pop((key, owner), None)

    def clear(self) -> None:
        """Forget all places."""
        with self.mutex:
            self._places.clear()

    def next_due(self) -> float:
        """Return when the next one is to be given up; infinite if there is none."""
        if not self._places:
            return math.inf
        with self.mutex:
            return min((place.due for place in self._places.values()), default=math.inf)

    def take_overdue(self, now: float) -> list[Place]:
        """Forget those who were silent for too long, and return them."""
        with self.mutex:
            overdue = [place for place in self._places.values() if place.due <= now]
            for place in overdue:
                del self._places[place.claim.key, place.claim.owner]
            return overdue
