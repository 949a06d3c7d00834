"""What a unique message holds, in the worker's main process: the lease on its running key, or still its place.

The lease has a cell of its own, beside the lock's, and is renewed in the same batch. Losing it harms nobody: one more
message may be published, and the lock keeps the two from running at once.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from celery_distlock import cells
from celery_distlock.keepalive import RENEWALS_PER_TTL, Kept
from celery_distlock.lease import Lease, Renewal
from celery_distlock.task.message import cancel_later, token_of
from celery_distlock.tokens import Token
from celery_distlock.worker.supervised import Supervised

__all__ = ["SupervisedPlace"]

log = logging.getLogger(__name__)


class SupervisedPlace(Kept):
    """The place of one supervised request among the unique ones."""

    def __init__(self, supervised: Supervised, token: Token) -> None:
        self._supervised = supervised
        self._warden = supervised.warden
        self._token = token
        self.store = supervised.store
        self._ended = False
        self._cell = self._warden.arena.take(supervised.owner) if token.running else None
        self.look_at = time.monotonic() + supervised.options.ttl / RENEWALS_PER_TTL
        if self._cell is not None:
            self._warden.keeper.keep(self)

    @classmethod
    def of(cls, supervised: Supervised, request_dict: dict[str, Any]) -> SupervisedPlace | None:
        """Return the place of a request that is about to be handed to the pool, and tell its executor."""
        token = token_of(request_dict, supervised.request.id)
        if token is None:
            return None
        place = cls(supervised, token)
        if place._cell is not None:
            request_dict["properties"]["distlock_unique"] = [place._warden.arena.id, place._cell.index]
        return place

    def lease(self) -> Lease | None:
        """Return the lease on the running key, as the cell says."""
        if self._cell is None or self._ended or self._cell.state != cells.GRANTED:
            return None
        view = self._cell.view()
        return None if view is None or view.lease is None else view.lease

    def ttl(self) -> float:
        """Return the lease's ttl in seconds."""
        return self._supervised.options.ttl

    def on_renewed(self, deadline: float) -> None:
        """Write it down, for this thread: the executor does not ask."""
        if self._cell is not None and not self._ended:
            self._cell.renewed(deadline)

    def on_lost(self, answer: Renewal) -> None:
        """Say so."""
        request = self._supervised.request
        log.warning(
            "Task %s[%s] is not the only one of %r any more: its store gave the place away",
            request.name,
            request.id,
            self._token.key,
        )

    def settle(self) -> None:
        """Give back what an executor that has ended, or is dead, could not; called once."""
        self._ended = True
        cell, child = self._cell, self._supervised.child
        view = None if cell is None else cell.view()
        if child is not None and child.dead and (view is None or view.state <= cells.ASKING):
            # It may have died before it began, and acknowledged its message before that.
            cancel_later(self._warden.keeper, self.store, self._token, window=False)
        if cell is None:
            return
        self._warden.keeper.drop(self)
        if view is not None and view.lease is not None:
            if view.state == cells.ASKING:
                unknown = Lease.unknown(view.lease.key, self._supervised.owner, view.lease.ttl)
                self._warden.keeper.give_back(self.store, unknown)
            elif view.state in (cells.GRANTED, cells.RELEASING, cells.OWED):
                self._warden.keeper.give_back(self.store, view.lease)
        self._warden.arena.give(cell)
