"""Where parked requests lie: messages that are neither acknowledged nor executed, and occupy no pool slot.

What they wait for is known to :mod:`.copies` and :mod:`.parking`. All of it belongs to the consumer's thread.
"""

from __future__ import annotations

import contextlib
from typing import Any

from celery.utils.quorum_queues import detect_quorum_queues
from celery.worker import state

from celery_distlock.worker.loop import ConsumerThread

__all__ = ["Shelf", "put_aside"]


class Shelf:
    """Makes room for parked messages in the worker's prefetch limit, and brings them back to its pool."""

    def __init__(self, loop: ConsumerThread) -> None:
        self._loop = loop
        self._consumer: Any = None
        self._updating = False
        #: For how many the limit was raised.
        self._counted = 0
        #: Whether the broker ignores changes of the prefetch limit (quorum queues): parked messages would starve us.
        self.static = False

    def connected(self, consumer: Any) -> None:
        """Note a new connection: what was parked on the old one is delivered again by the broker."""
        self._consumer = consumer
        self._counted = 0
        self.static = bool(
            consumer.app.conf.worker_detect_quorum_queues
            and detect_quorum_queues(consumer.app, consumer.connection.transport.driver_type)[0]
        )

    def put(self, request: Any) -> bool:
        """Have the broker send one message more in its place; False if it must not (``worker_eta_task_limit``)."""
        qos = self._consumer.qos
        before = qos.value
        if before == 0:
            # No limit, and it does not change.
            return True
        # What is not on the shelf must get through as ever. But at its own limit Celery does not raise this one for a
        # message with an ETA, and lowers it for that nevertheless: so it may have become too small meanwhile.
        least = self._consumer.initial_prefetch_count + self._counted
        most = getattr(qos, "max_prefetch", None)
        room = most is None or least < most
        # One that is above it, as a limit below what the worker begins with makes it, would be lowered for good.
        full = most is not None and before >= most
        after = before if full else qos.increment_eventually(max(room, least + room - before))
        request.counted = bool(room and after > before)
        self._counted += request.counted
        self._update()
        return bool(request.counted)

    def take(self, request: Any) -> None:
        """Take back what :meth:`put` did."""
        if request.counted:
            request.counted = False
            self._lower()

    def run(self, request: Any) -> None:
        """Take the request off the shelf, and hand it to the pool, behind whatever waits for a slot there."""
        # The broker can wait, until after the hand-over; by then the request may be here again.
        counted, request.counted = request.counted, False
        state.task_reserved(request)
        self._consumer.on_task_request(request)
        self._write_jobs()
        if counted:
            self._lower()

    def _lower(self) -> None:
        self._counted -= 1
        self._consumer.qos.decrement_eventually()
        self._update()

    def _write_jobs(self) -> None:
        """Have a prefork pool send its processes what it has for them.

        It would do so when the event loop has polled again, and has seen to whatever that has brought, above all to the
        task that has just released the lock. Where Celery's inner parts are others, it still does.
        """
        write = getattr(self._consumer.hub, "consolidate_callback", None)
        inqueues = getattr(getattr(self._consumer.pool, "_pool", None), "_all_inqueues", None)
        if write is not None and inqueues:
            # Of a process that has died the pool hears in another way, and it knows what it has sent there.
            with contextlib.suppress(OSError):
                write(list(inqueues))

    def _update(self) -> None:
        # The event loop would apply it after its next poll, and parks would come a second apart. Where there is none, a
        # greenlet of its own reads the connection and applies it; nobody else may wait for an answer there.
        if not self._updating and self._loop.has_hub:
            self._updating = True
            self._loop.call(self._apply)

    def _apply(self) -> None:
        self._updating = False
        qos = self._consumer.qos
        if qos.prev != qos.value:
            # A lost connection is the event loop's to find out, and to mend.
            with contextlib.suppress(*self._consumer.connection_errors):
                qos.update()


def put_aside(request: Any) -> None:
    """Undo what the worker noted when it received the request and when its executor began."""
    state.active_requests.discard(request)
    state.reserved_requests.discard(request)
    # Or revoking it later would kill whatever runs by then in the child in which it was refused.
    request.time_start = request.worker_pid = request._apply_result = request._terminate_on_ack = None
