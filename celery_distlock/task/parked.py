"""What the executor tells the main process when it ends an attempt that is to go on later.

Both are :class:`Parked`: a copy of a running task, which waits for that one's end, and a task that waits for its turn.
"""

from __future__ import annotations

from dataclasses import dataclass

from celery.exceptions import Ignore

from celery_distlock.lease import Claim, Holder

__all__ = ["WAITING", "Parked", "Wish"]

#: The state of a parked task's result.
WAITING = "WAITING"


@dataclass
class Wish:
    """What a parked task waits for.

    Attributes:
        claim: with the owner that the main process gave this attempt.
        number: of the ticket it had before, if any.
        since: wall-clock time of its first attempt.
        holder: who holds the key, if known.
    """

    claim: Claim
    number: int | None
    since: float
    holder: Holder | None


class Parked(Ignore):  # type: ignore[misc]  # Celery has no type hints
    """Raised in the executor: the main process keeps the unacknowledged message.

    Arguments:
        reason: for people.
        wish: what it waits for; None for a copy of a running task, which waits for that one's end.
    """

    def __init__(self, reason: str, wish: Wish | None = None) -> None:
        super().__init__(reason, wish)
        self.wish = wish
