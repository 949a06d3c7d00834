"""What is played: the two examples' own scenes, on workers that are already up.

Imported when ``REDIS_URL`` and ``LEDGER`` are set: the examples' applications read them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from examples.demo.screen import Row, Screen
from examples.double_charge import accidents
from examples.double_charge.accidents import WORKERS, Accident
from examples.flash_sale.sale import BUYERS, TICKETS, hold_sale
from examples.flash_sale.tasks import buy_locked, buy_unlocked
from examples.support import Process, Processes

__all__ = ["charge_twice", "sell_tickets", "start_workers"]

#: The lease's ttl is 30 s: a key that is free before has been given back for the dead.
_FREE_SOON = 5.0


def start_workers(processes: Processes) -> list[Process]:
    """Start everybody at once, and return the workers of the double charge."""
    apps = ["examples.flash_sale.tasks"] * 2 + ["examples.double_charge.tasks"] * WORKERS
    started = [processes.worker(app, wait=False) for app in apps]
    for worker in started:
        worker.wait_ready(" ready.")
    return started[2:]


def sell_tickets(screen: Screen) -> list[Row]:
    """Play the flash sale."""
    what = f"tickets sold to {BUYERS} buyers"
    with screen.step(what) as notes:
        unlocked = hold_sale(buy_unlocked, "concert")
        locked = hold_sale(buy_locked, "opera")
        notes.append(f"{unlocked.sold} without a lock, {locked.sold} with a lock")
    kept = unlocked.sold > TICKETS and locked.exact
    return [Row(what, TICKETS, unlocked.sold, locked.sold, kept)]


def charge_twice(screen: Screen, workers: Sequence[Process]) -> tuple[list[Row], str]:
    """Play the double charge; return its rows and what is to be said about the killed processes."""
    killed: list[accidents.KilledInMidCharge] = []

    def kill() -> Accident:
        killed.append(accidents.child_killed(5))
        return killed[0]

    rows = [
        _accident(screen, "charges: customers click “buy” twice", accidents.clicked_twice),
        _accident(screen, "charges: message delivered twice", accidents.delivered_again),
        _accident(screen, "charges: process killed in mid-charge", kill, harmless=True),
        _accident(screen, "charges: worker killed before its ack", lambda: accidents.worker_killed(workers)),
    ]
    free, after = killed[0].free_after, killed[0].next_after
    remark = (
        "The processes killed in mid-charge held leases of 30 s. After kill -9\n"
        f"  the key was free within   {_milliseconds(free)}\n"
        f"  the next charge began in  {_milliseconds(after)}  (it asks every 20 ms)"
    )
    if max(free) > _FREE_SOON:
        rows.append(Row(f"keys free within {_FREE_SOON:g} s of the kill", len(free), 0, _soon(free), kept=False))
    return rows, remark


def _accident(screen: Screen, what: str, play: Callable[[], Accident], harmless: bool = False) -> Row:
    """Let it happen.

    Arguments:
        harmless: whether it ends well without a lock, too.
    """
    with screen.step(what) as notes:
        seen = play()
        notes.append(f"{seen.unlocked} without a lock, {seen.locked} with a lock")
    as_said = seen.unlocked == seen.orders if harmless else seen.unlocked > seen.orders
    return Row(what, seen.orders, seen.unlocked, seen.locked, kept=seen.locked_once and as_said)


def _soon(seconds: Sequence[float]) -> int:
    return sum(each <= _FREE_SOON for each in seconds)


def _milliseconds(seconds: Sequence[float]) -> str:
    return ", ".join(f"{1000 * each:.0f}" for each in sorted(seconds)) + " ms"
