"""A lease that waits for its executor: the offer is confirmed while the task is on its way to a pool process.

The executor would ask, and wait for the answer, when it is there; the way there takes longer than the answer. So the
question is sent before, and the answer put into the request's cell. Nothing depends on it: without a gift in its cell
the executor asks, and gets the same lease, for it asks in the same name.

A lease lasts longer than an offer, and a pool process that was idle can be slow all the same: frozen, or just being
started. So what nobody has come for within a second is given back. An executor that comes later than that finds its
cell in other hands, and asks in another name; refused, it is parked with the number that it had.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from celery_distlock.worker.parked_request import ParkedRequest

if TYPE_CHECKING:
    from celery_distlock.worker.supervised import Supervised
    from celery_distlock.worker.warden import Warden

__all__ = ["Ahead"]

#: Seconds for which a lease waits for its executor.
_PATIENCE = 1.0


class Ahead:
    """Asks for what executors are about to ask for. Runs in the consumer's thread, but for what looks after it."""

    def __init__(self, warden: Warden) -> None:
        self._warden = warden
        #: Whose leases wait, and since when (monotonic); the oldest first.
        self._given: deque[tuple[float, Supervised]] = deque()
        self._looks = False

    def ask(self, parked: ParkedRequest) -> Callable[[], None]:
        """Ask for the lease of one that is about to be handed to an idle process; return what passes it on then."""
        claim = parked.claim
        if claim.completion is not None or not parked.wants_a_lease_only:
            # Its executor looks for more.
            return _nothing
        # It is not known yet which process is going to run it.
        claim = replace(claim, record={**claim.record, "pid": os.getpid(), "since": time.time()}, draws=False)
        confirmed = parked.line.queue.confirming(claim)
        if confirmed is None:
            return _nothing

        def give() -> None:
            lease = confirmed()
            supervised: Supervised | None = parked.request.supervised
            if lease is None or supervised is None or supervised.cell is None:
                return
            supervised.cell.give(lease)
            self._given.append((time.monotonic(), supervised))
            if not self._looks:
                self._looks = True
                self._warden.keeper.call_after(_PATIENCE, self._look)

        return give

    def _look(self) -> None:
        """Give back what nobody has come for. In the keeper's thread."""
        too_early = time.monotonic() - _PATIENCE
        while self._given and self._given[0][0] <= too_early:
            _, supervised = self._given.popleft()
            if not supervised.begun:
                self._warden.take_back(supervised)
        self._looks = False
        if self._given:
            self._looks = True
            self._warden.keeper.call_after(self._given[0][0] - too_early, self._look)


def _nothing() -> None:
    pass
