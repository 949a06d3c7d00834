"""Messages delivered again while their first copy still runs.

On Redis both deliveries share one delivery tag: acknowledging the copy would delete the original's message,
publishing it anew would run the task twice. So the copy is parked: kept unacknowledged in the main process, occupying
no pool slot, and not entered into the worker's state in the original's place.

* A copy of a run in *this* worker waits for that run's end. If the run completed and its message was acknowledged,
  the copy is acknowledged, too; if it was killed, the copy runs.
* A copy of a run in *another* worker is tried again every :data:`RECHECK` seconds. It is then contended again, or
  finds the completion record and ends, or finds the key free because the original died, and runs.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from celery.worker import state

from celery_distlock.signals import lock_parked, lock_woken
from celery_distlock.worker.loop import ConsumerThread
from celery_distlock.worker.shelf import Shelf, put_aside

__all__ = ["Copies"]

log = logging.getLogger(__name__)

#: Seconds between two tries of a copy whose original runs in another worker.
RECHECK = 1.0


class Copies:
    """The parked copies of one worker. Called, and calling, in the consumer's thread (see :meth:`_soon`)."""

    def __init__(self, loop: ConsumerThread, shelf: Shelf) -> None:
        self._loop = loop
        self._shelf = shelf
        self._behind: dict[str, list[Any]] = {}
        self._parked: set[int] = set()
        self._hidden: dict[str, list[Any]] = {}

    def drop_all(self) -> None:
        """Forget everything: the broker delivers what is parked again, somewhere."""
        self._behind.clear()
        self._parked.clear()
        self._hidden.clear()

    def hide(self, request: Any, label: str, original: Any) -> None:
        """Keep a copy that was received just now from hiding the running ``original`` from whoever revokes its id."""
        self._hidden.setdefault(label, []).append(request)
        # The worker enters it once it is made; it may then wait for a free slot as long as the original runs.
        self._soon(self._hide, request, label, original)

    def _hide(self, request: Any, label: str, original: Any) -> None:
        if label in self._hidden and state.requests.get(request.id) is request:
            state.requests[request.id] = original

    def park(self, request: Any, label: str, original: Any | None) -> None:
        """Keep ``request``; ``original`` is the same run in this worker, None if it is elsewhere."""
        put_aside(request)
        # Without removing the original from the worker's state.
        if original is not None:
            state.requests[request.id] = original
        elif state.requests.get(request.id) is request:
            del state.requests[request.id]
        log.info("Task %s[%s] is a copy of a running task; parked until that ends", request.name, request.id)
        lock_parked.send(sender=request.task, task_id=request.id, key=None, reason="redelivered")
        self._parked.add(id(request))
        self._soon(self._shelf.put, request)
        if original is not None:
            self._behind.setdefault(label, []).append(request)
        else:
            self._soon(self._loop.call_after, RECHECK, lambda: self._wake(request))

    def original_ended(self, label: str, completed: bool) -> None:
        """Settle the copies of a run that has ended in this worker."""
        if not self._hidden and not self._behind:
            return
        for request in self._hidden.pop(label, ()):
            state.requests.setdefault(request.id, request)
        for request in self._behind.pop(label, ()):
            self._soon(self._acknowledge if completed else self._wake, request)

    def _soon(self, function: Callable[..., object], *args: Any) -> None:
        # A request ends in the pool's thread on the threads and green pools, and in the warden's when its child died.
        self._loop.call(functools.partial(function, *args))

    def _leave(self, request: Any) -> bool:
        if id(request) not in self._parked:
            return False
        self._parked.discard(id(request))
        self._shelf.take(request)
        return True

    def _acknowledge(self, request: Any) -> None:
        if self._leave(request):
            request.acknowledge()

    def _wake(self, request: Any) -> None:
        if self._leave(request):
            lock_woken.send(sender=request.task, task_id=request.id, key=None)
            self._shelf.run(request)
