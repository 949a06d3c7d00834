"""One sale: put the tickets on the shelf, let the buyers in, count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery import group

from examples.flash_sale.tasks import shop

__all__ = ["BUYERS", "TICKETS", "Sale", "hold_sale"]

TICKETS = 5
BUYERS = 20


@dataclass(frozen=True)
class Sale:
    """What a sale came to."""

    sold: int
    sold_out: int

    @property
    def exact(self) -> bool:
        """Whether every ticket was sold once, and every other buyer was told so."""
        return self.sold == TICKETS and self.sold_out == BUYERS - TICKETS


def hold_sale(buy: Any, event: str) -> Sale:
    """Let all buyers buy at once, and return what was sold when the last of them was answered.

    Arguments:
        buy: one of the two tasks.
        event: what the tickets are for.
    """
    shop.delete(f"{event}:sold")
    shop.set(f"{event}:left", TICKETS)
    answers = group(buy.s(event, f"buyer {n}") for n in range(1, BUYERS + 1)).apply_async().get(timeout=60)
    return Sale(sold=int(shop.llen(f"{event}:sold")), sold_out=answers.count("sold out"))
