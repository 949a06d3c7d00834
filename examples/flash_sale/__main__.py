"""Hold the sale twice, on two real workers."""

from __future__ import annotations

import sys

from examples.flash_sale.sale import BUYERS, TICKETS, hold_sale
from examples.flash_sale.tasks import app, buy_locked, buy_unlocked
from examples.support import Processes


def main() -> int:
    """Return 0 if the locked sale sold exactly what there was."""
    app.control.purge()
    with Processes() as started:
        print("starting two workers …", flush=True)
        started.workers("examples.flash_sale.tasks", 2)
        print(f"{BUYERS} buyers want {TICKETS} tickets")
        unlocked = hold_sale(buy_unlocked, "concert")
        print(f"without the lock: {unlocked.sold} sold")
        locked = hold_sale(buy_locked, "opera")
        print(f"with the lock:    {locked.sold} sold, {locked.sold_out} buyers told that it is sold out")
    return 0 if locked.exact else 1


if __name__ == "__main__":
    sys.exit(main())
