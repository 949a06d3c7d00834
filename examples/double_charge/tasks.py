"""Charging an order: look whether it is paid, ask the bank, write it down. Without and with a lock."""

from __future__ import annotations

import os
import tempfile
import time

from celery import Celery

from celery_distlock import LockedTask
from examples.double_charge.ledger import Ledger
from examples.support.address import REDIS_URL

app = Celery("double_charge", broker=REDIS_URL, backend=REDIS_URL)
app.conf.update(
    task_default_queue="double_charge",
    # A message that is not acknowledged for two seconds is delivered again. Usually that is an hour, and the charge
    # that takes longer than it is rarer, but it comes.
    broker_transport_options={"visibility_timeout": 2},
)
# Acknowledged after the work, and delivered again if the process that does it dies: no charge is forgotten.
app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True)

ledger = Ledger(os.environ.get("LEDGER") or os.path.join(tempfile.gettempdir(), "double_charge.sqlite"))


def charge(order_id: str, bank_seconds: float, look_first: bool) -> str:
    """Charge an order, in the way that is right as long as nobody else does the same at the same time."""
    ledger.note_beginning(order_id)
    if look_first and ledger.times_charged(order_id):
        return "was paid already"
    time.sleep(bank_seconds)
    ledger.charge(order_id)
    return "charged"


@app.task
def charge_unlocked(order_id: str, bank_seconds: float = 0.2, look_first: bool = True) -> str:
    """Charge an order."""
    return charge(order_id, bank_seconds, look_first)


@app.task(base=LockedTask, lock_key="order:{order_id}", lock_retry_delay=0.2)
def charge_locked(order_id: str, bank_seconds: float = 0.2, look_first: bool = True) -> str:
    """Charge an order while nobody else does."""
    return charge(order_id, bank_seconds, look_first)
