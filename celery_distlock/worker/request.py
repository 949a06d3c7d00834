"""The task request of a locked task, in the worker's main process.

Celery subclasses a task's ``Request`` for speed and replaces ``execute_using_pool`` and ``on_success`` there without
calling the originals (celery #4526). Our part is therefore wrapped around whatever the subclass defines, when it is
made.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery import states
from celery.exceptions import TaskRevokedError, TimeLimitExceeded
from celery.worker.request import Request

from celery_distlock.errors import LockLost
from celery_distlock.task.parked import Parked, Wish
from celery_distlock.task.run import label_of
from celery_distlock.worker.parked_request import Waited
from celery_distlock.worker.supervised import Supervised
from celery_distlock.worker.warden import Warden

__all__ = ["SupervisedRequest"]

log = logging.getLogger(__name__)


class SupervisedRequest(Request):  # type: ignore[misc]  # Celery has no type hints
    """A request whose executor's lock is supervised by the :class:`~celery_distlock.worker.Warden`."""

    supervised: Supervised | None = None
    #: Whether the broker may have delivered the message again meanwhile; see ``visibility``.
    exposed = False
    #: From when on it may have done so, unless its visibility is refreshed before (monotonic time).
    exposed_from = math.inf
    #: Which broker connection it came on.
    generation = 0
    #: What it brings along from having been parked.
    waited: Waited | None = None
    #: Whether the prefetch limit was raised for it while it is parked.
    counted = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "execute_using_pool" in cls.__dict__:
            cls.execute_using_pool = _supervised_execution(cls.execute_using_pool)
        if "on_success" in cls.__dict__:
            cls.on_success = _supervised_success(cls.on_success)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.received_at = time.monotonic()
        if Warden.current is not None:
            Warden.current.received(self)

    def acknowledge(self) -> None:
        """Acknowledge the message."""
        super().acknowledge()
        if Warden.current is not None:
            Warden.current.visibility.drop(self)

    def reject(self, requeue: bool = False) -> None:
        """Reject the message."""
        super().reject(requeue=requeue)
        if Warden.current is not None:
            Warden.current.visibility.drop(self)

    def _announce_revoked(self, *args: Any, **kwargs: Any) -> None:
        super()._announce_revoked(*args, **kwargs)
        if Warden.current is not None:
            Warden.current.never_starts(self)

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Note which executor has begun."""
        if self.supervised is not None:
            self.supervised.warden.accepted(self.supervised, pid)
        super().on_accepted(pid, time_accepted)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Handle a time limit; on a green pool the executor has ended by now."""
        super().on_timeout(soft, timeout)
        if not soft and self.supervised is not None and self.supervised.child is None:
            self._end()

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """Handle every ending but success: failures, retries, and the pool's report of a dead child."""
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        if isinstance(error, Parked):
            self._park(error.wish)
            return
        aborted = self.supervised.aborted if self.supervised is not None and not return_ok else None
        if aborted is not None:
            exc_info = self._aborted(aborted)
            if exc_info is None:
                self._end()
                return
        try:
            super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
        finally:
            # A time limit is reported before the child is even signalled; the warden waits for its death.
            if return_ok or not isinstance(error, TimeLimitExceeded):
                self._end()

    def _park(self, wish: Wish | None) -> None:
        """Keep the message; a copy's for the further reason that it is the original's, as both share one tag."""
        supervised = self.supervised
        self._end()
        if supervised is None:
            return
        if wish is None:
            supervised.warden.copies.park(self, supervised.label, None)
        else:
            supervised.warden.parking.park(self, wish, supervised.options)

    def _aborted(self, error: LockLost) -> Any:
        """Return what to report for a child that we killed; None if it had stored its success before."""
        if self._stored_success():
            log.warning("Task %s[%s] had succeeded when it was aborted: %s", self.name, self.id, error)
            self.on_success((False, None, None))
            return None
        try:
            raise error
        except LockLost:
            return ExceptionInfo()

    def _stored_success(self) -> bool:
        if self.ignore_result:
            return False
        try:
            return bool(self.task.backend.get_task_meta(self.id)["status"] == states.SUCCESS)
        except Exception:
            return False

    def _end(self) -> None:
        supervised = self.supervised
        if supervised is None:
            return
        self.supervised = None
        supervised.warden.end(supervised)


def _supervised_execution(execute: Any) -> Any:
    @functools.wraps(execute)
    def execute_using_pool(self: SupervisedRequest, pool: Any, **kwargs: Any) -> Any:
        warden = Warden.current
        if warden is None:
            return execute(self, pool, **kwargs)
        label = label_of(self.request_dict)
        try:
            _turn_away_copy(warden, self, label)
        except TaskRevokedError:
            warden.turned_away(self)
            raise
        self.supervised = warden.admit(self, label)
        try:
            return execute(self, pool, **kwargs)
        except BaseException:
            # Revoked or expired, or the pool would not take it: nothing was started.
            self._end()
            raise

    return execute_using_pool


def _turn_away_copy(warden: Warden, request: SupervisedRequest, label: str) -> None:
    """Keep a second delivery of a run that is in this worker's pool from getting there.

    Raises:
        TaskRevokedError: it is one; the worker then gives the pool slot back, and nothing else happens.
    """
    original = warden.running(label)
    if original is None or not _is_copy(request, original.request) or request.revoked():
        return
    if request.task.acks_late:
        warden.copies.park(request, label, original.request)
    else:
        log.info("Task %s[%s]: delivered again while it runs; this copy is dropped", request.name, request.id)
        request.acknowledge()
    raise TaskRevokedError(request.id)


def _is_copy(request: SupervisedRequest, original: Any) -> bool:
    # An id alone makes no copy: users publish one id twice on purpose, perhaps with other arguments.
    same_tag: bool = request.message.delivery_tag == original.message.delivery_tag
    return same_tag or bool(request.delivery_info.get("redelivered"))


def _supervised_success(succeed: Any) -> Any:
    @functools.wraps(succeed)
    def on_success(self: SupervisedRequest, failed__retval__runtime: Any, **kwargs: Any) -> Any:
        try:
            return succeed(self, failed__retval__runtime, **kwargs)
        finally:
            self._end()

    return on_success
