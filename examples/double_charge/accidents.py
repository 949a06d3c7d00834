"""Four ways to charge an order twice. Each happens for real, to a task without a lock and to one with a lock."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis
from celery.result import AsyncResult

from celery_distlock import Lock
from examples.double_charge.ledger import Began
from examples.double_charge.tasks import app, charge_locked, charge_unlocked, ledger
from examples.support import Process, wait_until
from examples.support.address import REDIS_URL

__all__ = [
    "WORKERS",
    "Accident",
    "KilledInMidCharge",
    "child_killed",
    "clicked_twice",
    "delivered_again",
    "worker_killed",
]

#: One more than :func:`worker_killed` can kill.
WORKERS = 3


@dataclass(frozen=True)
class Accident:
    """How often orders were charged.

    Attributes:
        orders: how many orders there were.
        unlocked: how often they were charged together, without a lock.
        locked: the same, with a lock.
        locked_once: whether, with a lock, each of them was charged exactly once.
    """

    orders: int
    unlocked: int
    locked: int
    locked_once: bool


@dataclass(frozen=True)
class KilledInMidCharge(Accident):
    """Also, for each ``kill -9`` of a lock's holder, how it went on.

    Attributes:
        free_after: seconds until the key was free.
        next_after: seconds until the next task began to charge the order.
    """

    free_after: Sequence[float]
    next_after: Sequence[float]


def clicked_twice(orders: int = 4) -> Accident:
    """Let every customer click "buy" twice: two messages, two ids, one order, at the same time."""

    def click(task: Any) -> list[str]:
        ids = [_new_order() for _ in range(orders)]
        for answer in [task.delay(order_id) for order_id in ids for _ in range(2)]:
            answer.get(timeout=60)
        return ids

    return _count(click(charge_unlocked), click(charge_locked))


def delivered_again() -> Accident:
    """Let the bank take longer than the broker waits for an acknowledgement: it delivers the message again."""
    unlocked, locked = _new_order(), _new_order()
    charge_unlocked.delay(unlocked, bank_seconds=5.0)
    answer = charge_locked.delay(locked, bank_seconds=5.0)
    _wait_for_second_charge(unlocked)
    answer.get(timeout=60)
    _wait_until_broker_is_empty()
    return _count([unlocked], [locked])


def child_killed(times: int = 3) -> KilledInMidCharge:
    """Kill pool processes in mid-charge, while a second task for the same order waits for its turn.

    The charge is one transaction, the last thing that the task does: what was killed before it has charged nothing,
    and its message is delivered again. So the ledger shows one charge, with or without a lock. The lock's part is that
    the order is free again once its holder is dead: not before, nor as late as when its lease would have run out.
    """
    unlocked, locked = [_new_order() for _ in range(times)], [_new_order() for _ in range(times)]
    free_after, next_after, answers = [], [], []
    for order_id in unlocked:
        answers.append(charge_unlocked.delay(order_id, bank_seconds=2.0))
        os.kill(_began(order_id).pid, signal.SIGKILL)
    for order_id in locked:
        answers.append(charge_locked.delay(order_id, bank_seconds=2.0))
        holder = _began(order_id)
        # The next one asks every 20 ms; a task usually takes it easier.
        waiting = charge_locked.apply_async((order_id,), lock={"retry_delay": 0.02, "retry_backoff_max": 0.02})
        answers.append(waiting)
        _wait_until_refused(waiting)
        killed_at = time.time()
        os.kill(holder.pid, signal.SIGKILL)
        _wait_until_given_back(order_id, holder)
        free_after.append(time.time() - killed_at)
        next_after.append(_began(order_id, nth=2).at - killed_at)
    for answer in answers:
        answer.get(timeout=60)
    return KilledInMidCharge(**vars(_count(unlocked, locked)), free_after=free_after, next_after=next_after)


def worker_killed(workers: Sequence[Process]) -> Accident:
    """Let a machine lose power after the charge and before the acknowledgement.

    This bank cannot be asked whether an order was charged, and nobody else charges it at the same time: the key is free
    when the message is delivered again. But the lock's release left a record that the work of this message is done.
    """
    unlocked, locked = _new_order(), _new_order()
    answers = [
        charge_unlocked.delay(unlocked, bank_seconds=1.0, look_first=False),
        charge_locked.delay(locked, bank_seconds=1.0, look_first=False),
    ]
    # Acknowledging is the main process's job: stopped while a pool process works, it will not come to it.
    doomed = {_began(order_id).worker for order_id in (unlocked, locked)}
    victims = [worker for worker in workers if worker.pid in doomed]
    for worker in victims:
        worker.freeze_main()
    for answer in answers:
        answer.get(timeout=60)
    lock = Lock(f"order:{locked}", app=app)
    wait_until(lambda: not lock.locked(), "the lock's release")
    for worker in victims:
        worker.kill()
    _wait_for_second_charge(unlocked)
    survivors = [worker for worker in workers if worker not in victims]
    wait_until(
        # Without a lock it has been delivered again by now; both were overdue.
        lambda: len(ledger.beginnings(locked)) > 1 or any("already done its work" in each.log for each in survivors),
        "the locked task's second delivery",
    )
    _wait_until_broker_is_empty()
    return _count([unlocked], [locked])


def _new_order() -> str:
    return uuid.uuid4().hex


def _count(unlocked: Sequence[str], locked: Sequence[str]) -> Accident:
    times = [ledger.times_charged(order_id) for order_id in locked]
    return Accident(
        orders=len(locked),
        unlocked=sum(ledger.times_charged(order_id) for order_id in unlocked),
        locked=sum(times),
        locked_once=all(count == 1 for count in times),
    )


def _began(order_id: str, nth: int = 1) -> Began:
    return wait_until(lambda: ledger.beginnings(order_id)[nth - 1 :], f"beginning {nth} to charge an order")[0]


def _wait_until_refused(answer: AsyncResult) -> None:
    wait_until(lambda: answer.state == "RETRY", "the second charge being told to wait")


def _wait_until_given_back(order_id: str, holder: Began) -> None:
    lock = Lock(f"order:{order_id}", app=app)
    wait_until(
        lambda: all(each.get("pid") != holder.pid for each in lock.holders()), "the lock's release", every=0.0005
    )


def _wait_for_second_charge(order_id: str) -> None:
    def charged_twice() -> bool:
        _deliver_overdue_again()
        return ledger.times_charged(order_id) >= 2

    wait_until(charged_twice, "the second charge of an order without a lock", every=0.1)


def _deliver_overdue_again() -> None:
    """Put back what has been unacknowledged for longer than the visibility timeout.

    Workers call this themselves, but only every hundred seconds.
    """
    with app.connection_for_write() as connection:
        connection.default_channel.qos.restore_visible(interval=1)


def _wait_until_broker_is_empty() -> None:
    """Wait until the broker holds no message any more, neither waiting nor delivered and not acknowledged."""
    broker = redis.Redis.from_url(REDIS_URL)
    wait_until(lambda: not broker.llen("double_charge") and not broker.hlen("unacked"), "the end of all tasks")
