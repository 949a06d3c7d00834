"""What the tests of redelivery and of faults look at, and what they do by hand."""

from __future__ import annotations

import json
import os
import re
import signal
import weakref
from collections.abc import Iterable
from typing import Any

import celery
import redis

from tests.support.journal import Journal
from tests.support.waiting import eventually
from tests.support.workers import Worker
from tests.worker.watching import Death

__all__ = [
    "KNOWS_WHO_IS_BUSY",
    "PATIENCE",
    "RedisBroker",
    "kill_child",
    "received",
    "wait_until_accepted",
]

#: Whether the prefork pool knows, after a reconnect, which of its processes are busy; if not, it may hand the next task
#: to one that is, and that task waits although another process is idle.
KNOWS_WHO_IS_BUSY = celery.VERSION >= (5, 7)

#: Seconds that something may take that is not measured.
PATIENCE = 20.0


class RedisBroker:
    """What kombu keeps in Redis, as the test sees it.

    Arguments:
        app: the test's copy of the application.
        queue: the queue whose messages count.
    """

    def __init__(self, app: Any, queue: str = "celery") -> None:
        self._app = app
        self._queue = queue
        self._client = redis.Redis.from_url(app.conf.broker_url, decode_responses=True)
        weakref.finalize(self, self._client.close)

    def unacknowledged(self) -> list[str]:
        """Return the delivery tags of messages that some worker holds."""
        return [str(tag) for tag in self._client.hkeys("unacked")]

    def wait_for_unacknowledged(self, count: int = 1) -> list[str]:
        """Wait until workers hold that many messages."""
        return eventually(
            lambda: tags if len(tags := self.unacknowledged()) == count else [], PATIENCE, f"{count} unacknowledged"
        )

    def deliver_again(self, tag: str) -> None:
        """Give a held message back to its queue, as kombu does when its visibility timeout has passed."""
        with self._app.connection() as connection, connection.channel() as channel:
            channel.qos.restore_by_tag(tag)

    def copy_of_waiting(self) -> str:
        """Return a copy of the message that waits in the queue, marked as kombu marks what it restores."""
        (waiting,) = self._client.lrange(self._queue, 0, -1)
        message = json.loads(waiting)
        message["headers"]["redelivered"] = True
        message["properties"]["delivery_info"]["redelivered"] = True
        return json.dumps(message)

    def deliver(self, message: str) -> None:
        """Put a message into the queue."""
        self._client.lpush(self._queue, message)

    def is_idle(self) -> bool:
        """Return whether no message is waiting, running or unacknowledged."""
        # All at one time: messages move in both directions.
        with self._client.pipeline() as pipe:
            pipe.llen(self._queue).hlen("unacked").zcard("unacked_index")
            return not any(pipe.execute())

    def wait_until_idle(self, timeout: float = PATIENCE) -> None:
        """Wait until no message is waiting, running or unacknowledged."""
        eventually(self.is_idle, timeout, "a broker without messages")

    def listening(self) -> list[str]:
        """Return the connections that wait for a message."""
        waiting = ("brpop", "blmpop", "bzmpop")
        return [str(one["id"]) for one in self._client.client_list() if one["cmd"] in waiting]

    def drop_connections(self) -> None:
        """Cut the connections of everybody else to this database."""
        me, db = self._client.client_id(), self._client.get_connection_kwargs()["db"]
        for client in self._client.client_list():
            if int(client["db"]) == db and int(client["id"]) != me:
                self._client.client_kill_filter(_id=client["id"])


def received(task_id: str, workers: Iterable[Worker]) -> int:
    """Return how often a message with this task id reached one of the workers."""
    return sum(len(re.findall(rf"Task \S+\[{task_id}\] received", worker.log)) for worker in workers)


def wait_until_accepted(app: Any, task_id: str) -> None:
    """Wait until the main process knows that the task has begun; what it does not know, it forgets at a reconnect."""

    def accepted() -> bool:
        nodes = app.control.inspect(timeout=PATIENCE, limit=1).active() or {}
        return any(task["id"] == task_id and task["time_start"] for tasks in nodes.values() for task in tasks)

    eventually(accepted, PATIENCE, f"the acceptance of {task_id}")


def kill_child(pid: int, journal: Journal) -> None:
    """Kill a pool process, and note in the journal when it is dead."""
    death = Death(pid)
    os.kill(pid, signal.SIGKILL)
    death.wait()
    journal.died(pid)
