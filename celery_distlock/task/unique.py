"""A unique message when it runs: what its executor does about the token.

::

    __call__ ─ lock granted ─ begin ─┬─ superseded ─▶ REVOKED, the body does not run
                 │                   └─ begun ──────▶ body ─▶ result ─▶ task_postrun ─▶ running key and lock released
                 └─ contended ─ still queued ─ superseded ─▶ REVOKED

A message whose task ends without having begun (skipped, timed out, a wrong option) gives its place back.

The lease on the running key is kept as the lock's is: by the worker's main process, through a cell of its own, or by
this process where nobody supervises. Losing it is no reason to stop: it is the lock that keeps others out.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import Any, NoReturn

from celery import states
from celery.exceptions import Ignore

from celery_distlock import cells
from celery_distlock.errors import StoreUnavailable
from celery_distlock.held import SelfKept, give_back
from celery_distlock.lease import Claim, Lease, deadline_of, new_owner
from celery_distlock.options import LockOptions
from celery_distlock.signals import unique_superseded
from celery_distlock.stores.base import Uniqueness
from celery_distlock.task.grant import record_of
from celery_distlock.task.message import UNIQUE_HEADER, cancel, token_of, tokens_of
from celery_distlock.task.redelivery import ignores_result
from celery_distlock.task.run import PREDECESSOR_PATIENCE, Run
from celery_distlock.tokens import Begun, Superseded, Token, running_key

__all__ = ["UniqueMessage", "enter", "never_called"]

log = logging.getLogger(__name__)

#: Seconds between two looks whether a predecessor has ended.
_PAUSE = 0.02
#: With these a message is gone.
_GONE = states.READY_STATES | {states.IGNORED}


def enter(task: Any, request: Any) -> None:
    """Note that the message is unique; to be called first, so that whatever ends the task frees its place."""
    token = None if request.is_eager else token_of(request.headers, request.id)
    if token is not None:
        request.distlock_unique = UniqueMessage(task, request, token)
        # Have task_postrun look at this request.
        request.distlock_frame = True


def never_called(task: Any, request: Any, state: str | None) -> None:
    """Free the place of a unique message whose task ended before its ``__call__``: its ``before_start`` raised."""
    if state not in _GONE or not request.headers or UNIQUE_HEADER not in request.headers or request.is_eager:
        return
    token = token_of(request.headers, request.id)
    # A bare task may have been sent the header of another one.
    if token is not None and hasattr(task, "_lock_unique"):
        cancel(tokens_of(task), token, window=False)


class UniqueMessage:
    """One delivery of a unique message, in its executor."""

    def __init__(self, task: Any, request: Any, token: Token) -> None:
        self._task = task
        self._request = request
        self._token = token
        self._begun = False
        self._lease: Lease | None = None
        self._cell: cells.Cell | None = None
        self._kept: SelfKept | None = None

    def still_queued(self) -> None:
        """Keep the place of a message that was refused its lock.

        Raises:
            Ignore: a newer one has taken it.
        """
        if not self._token.queued:
            return
        place = dataclasses.replace(self._token, running=False, replaces=False)
        try:
            answer = tokens_of(self._task).reserve(place)
        except StoreUnavailable as error:
            # Not passed on: it would be taken for silence about the lock, which is known to be another's.
            log.warning("Task %s[%s] waits without its place: %s", self._task.name, self._request.id, error)
            return
        if isinstance(answer, Superseded):
            self._superseded(answer)

    def begin(self, options: LockOptions, run: Run) -> None:
        """Free the place, or pass it on to this execution.

        Raises:
            Ignore: a newer message has taken it.
            StoreUnavailable: the store could not be asked.
        """
        store, token = tokens_of(self._task), self._token
        claim = self._claim(options, run) if token.running else None
        try:
            self._begin(store, token, claim, run)
        except BaseException:
            if claim is not None and self._lease is None:
                give_back(self._task._lock_store, Lease.unknown(claim.key, claim.owner, claim.ttl))
            raise

    def _begin(self, store: Uniqueness, token: Token, claim: Claim | None, run: Run) -> None:
        sent, answer = self._asked(store, token, claim, run)
        if isinstance(answer, Superseded):
            self._refused()
            self._superseded(answer)
        self._begun = True
        if claim is None or not answer.fence:
            self._refused()
            return
        ttl = self._task._lock_store.lease_ttl(claim.ttl)
        lease = Lease(claim.key, claim.owner, answer.fence, ttl, deadline_of(sent, ttl))
        if self._cell is not None:
            self._cell.granted(lease)
        else:
            self._kept = SelfKept(self._task._lock_store, lease)
            self._kept.used_by(self)
        self._lease = lease

    def _asked(
        self, store: Uniqueness, token: Token, claim: Claim | None, run: Run
    ) -> tuple[float, Begun | Superseded]:
        """Return the store's answer, and when it was asked for; wait in place for a predecessor about to end."""
        give_up = time.monotonic() + PREDECESSOR_PATIENCE
        while True:
            sent = time.monotonic()
            answer = store.begin(token, claim)
            if claim is None or isinstance(answer, Superseded) or answer.fence or sent >= give_up:
                return sent, answer
            if not any(run.succeeds(holder) for holder in self._task._lock_store.holders(claim.key)):
                return sent, answer
            time.sleep(_PAUSE)

    def _claim(self, options: LockOptions, run: Run) -> Claim:
        properties = self._request.properties or {}
        supervised, place = properties.get("distlock"), properties.get("distlock_unique")
        owner = supervised[0] if supervised else new_owner()
        key = running_key(self._token.key)
        cell = cells.attach(*place) if place else None
        if cell is not None and cell.asking(key, owner, options.ttl, 1):
            self._cell = cell
        return Claim(key, owner, options.ttl, record=record_of(self._task, run))

    def _refused(self) -> None:
        if self._cell is not None:
            self._cell.refused()
            self._cell = None

    def _superseded(self, answer: Superseded) -> NoReturn:
        task, request = self._task, self._request
        self._begun = True
        by = f", task [{answer.by}] is queued" if answer.by else ""
        reason = f"replaced by a newer call of {self._token.key!r}{by}"
        log.info("Task %s[%s] does not run: %s", task.name, request.id, reason)
        task.backend.mark_as_revoked(
            request.id, reason, request=request, store_result=not ignores_result(task, request)
        )
        unique_superseded.send(sender=task, task_id=request.id, key=self._token.key, by=answer.by)
        raise Ignore(reason)

    # -- the end --------------------------------------------------------------------------------------------------

    def ends(self, state: str | None) -> list[Lease]:
        """Note that the task has ended in ``state``; return what is to be released, before its lock is."""
        if not self._begun and state in states.READY_STATES:
            cancel(tokens_of(self._task), self._token, window=False)
        if self._lease is None:
            return []
        if self._kept is not None:
            self._kept.end()
        if self._cell is not None:
            self._cell.releasing(False)
        return [self._lease]

    def released(self) -> None:
        """Note that it has been."""
        if self._cell is not None:
            self._cell.done()

    def release_later(self) -> None:
        """Have it released by who outlives this process, or in the background."""
        if self._cell is not None:
            self._cell.owed()
        elif self._lease is not None:
            give_back(self._task._lock_store, self._lease)

    def release(self, leases: list[Lease]) -> None:
        """Release what :meth:`ends` returned, where there is no lock to be released with it."""
        if not leases:
            return
        try:
            self._task._lock_store.release(leases)
        except BaseException as error:
            self.release_later()
            if not isinstance(error, StoreUnavailable):
                raise
        else:
            self.released()
