"""A lease that waits for its executor: the offer is confirmed while the task is on its way to a pool process.

The executor would ask, and wait for the answer, when it is there; the way there takes longer than the answer. So the
question is sent before, and the answer put into the request's cell. Nothing depends on it: without a gift in its cell
the executor asks, and gets the same lease, for it asks in the same name.

A lease lasts longer than an offer, and a pool process that was idle can be slow all the same: frozen, or just being
started. So what nobody has come for within a second is given back. An executor that comes later than that finds its
cell in another name, and asks in that; refused, it is parked with the number that it had.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from celery_distlock.cells import fits, late
from celery_distlock.lease import Claim
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
        #: For whom was asked in which name, and since when (monotonic); the oldest first.
        self._asked: deque[tuple[float, Any, Claim]] = deque()
        self._looks = False

    def ask(self, parked: ParkedRequest) -> Callable[[], None]:
        """Ask for the lease of one that is about to be handed to an idle process; return what passes it on then."""
        claim = parked.claim
        if claim.completion is not None or not parked.wants_a_lease_only:
            # Its executor looks for more.
            return _nothing
        if not fits(claim.key) or self._warden.arena.full:
            # There will be no cell, and nobody could tell whether its executor has come.
            return _nothing
        # It is not known yet which process is going to run it.
        record = {name: value for name, value in claim.record.items() if name != "pid"}
        claim = replace(claim, record={**record, "since": time.time()}, draws=False)
        confirmed = parked.line.queue.confirming(claim)
        if confirmed is None:
            return _nothing

        # From now on, for whatever comes next: a worker that is shut down in this very moment, in a signal's handler,
        # may never return here.
        self._asked.append((time.monotonic(), parked.request, claim))
        if not self._looks:
            self._looks = True
            self._warden.keeper.call_after(_PATIENCE, self._look)

        def give() -> None:
            lease = confirmed()
            supervised = _admitted(parked.request, claim)
            if lease is not None and supervised is not None and supervised.cell is not None:
                supervised.cell.give(lease)

        return give

    def _look(self) -> None:
        """Give back what nobody has come for. In the keeper's thread."""
        too_early = time.monotonic() - _PATIENCE
        while self._asked and self._asked[0][0] <= too_early:
            _, request, claim = self._asked.popleft()
            supervised = _admitted(request, claim)
            if supervised is not None and not supervised.begun:
                if self._warden.take_back(supervised) and supervised.cell is not None:
                    supervised.asks_as = late(supervised.owner)
                    # Last: from now on its executor may ask.
                    supervised.cell.rename(supervised.asks_as)
            # Read once: the consumer's thread takes it away when it hands the task to the pool.
            elif (waited := request.waited) is not None and waited.called is not None:
                # Not even handed to the pool.
                self._warden.give_up_place(request, claim)
        self._looks = False
        if self._asked:
            self._looks = True
            self._warden.keeper.call_after(self._asked[0][0] - too_early, self._look)


def _admitted(request: Any, claim: Claim) -> Supervised | None:
    """Return what was made of a request in this name; None before it was admitted, and when it has ended."""
    supervised: Supervised | None = request.supervised
    return supervised if supervised is not None and supervised.owner == claim.owner else None


def _nothing() -> None:
    pass
