"""What becomes of tokens, for stores that decide it in Python.

There is one operation here for each of :class:`~celery_distlock.stores.base.Uniqueness`; who runs is told by the
caller, who also sees to it that nobody decides at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from celery_distlock.stores.expiring import Expiring
from celery_distlock.tokens import Duplicate, Reserved, Superseded, Token

__all__ = ["Tokens"]

#: Seconds for which a publisher may not have come to reserve what it has published.
_LATE = 60.0


@dataclass
class Tokens:
    """Places by (key, ""), and what is to be remembered of ids by (key, id)."""

    queued: Expiring[str] = field(default_factory=Expiring)
    #: Ids, and until when the window lasts once it has started.
    windows: Expiring[tuple[str, float]] = field(default_factory=Expiring)
    superseded: Expiring[None] = field(default_factory=Expiring)
    #: Which one was queued when they began.
    begun: Expiring[str | None] = field(default_factory=Expiring)

    def purge(self, now: float) -> None:
        """Drop what is due."""
        for memory in (self.queued, self.windows, self.superseded, self.begun):
            memory.purge(now)

    def reserve(self, token: Token, runner: str | None, now: float) -> Reserved | Duplicate | Superseded:
        """Enter a token; ``runner`` is the id of the task that runs under the key, if it is known."""
        place, mine = (token.key, ""), (token.key, token.id)
        first = self.queued.get(place)
        if mine in self.superseded:
            return Superseded(first)
        started, witness = token.replaces and mine in self.begun, self.begun.get(mine)
        self.begun.pop(mine)
        if token.running and not started and runner is not None and runner != token.id:
            if token.replaces:
                self.superseded.put(mine, now + token.ttl, None)
                self._leave(token)
            return Duplicate(runner)
        old = first if first != token.id else None
        if token.queued and old is not None and not token.replaces:
            return Duplicate(old)
        accepted = self.windows.get(place)
        if token.window and accepted is not None and accepted[0] != token.id:
            return Duplicate(accepted[0])
        if started and old != witness:
            # Published after that run began, which may have passed over what this one is about.
            old = None
        if token.replaces and old is not None:
            self.superseded.put((token.key, old), max(self.queued.until(place), now + token.ttl), None)
            self.queued.pop(place)
        if token.queued and not started:
            self.queued.put(place, now + token.ttl, token.id)
        if token.window:
            self.windows.put(place, now + min(token.ttl, token.window), (token.id, now + token.window))
        return Reserved(old if token.replaces else None)

    def begin(self, token: Token, now: float) -> Superseded | None:
        """Start a message; None: it may run."""
        place, mine = (token.key, ""), (token.key, token.id)
        first = self.queued.get(place)
        if mine in self.superseded:
            return Superseded(first)
        if first == token.id:
            self.queued.pop(place)
        elif token.replaces:
            self.begun.put(mine, now + _LATE, first)
        window = self.windows.get(place)
        if window is not None and window[0] == token.id:
            # It was provisional: nothing could have become of the one that was accepted.
            self.windows.put(place, window[1], window)
        return None

    def cancel(self, token: Token, *, window: bool) -> None:
        """Free the places of a message that will not start."""
        place = (token.key, "")
        self._leave(token)
        accepted = self.windows.get(place)
        if window and accepted is not None and accepted[0] == token.id:
            self.windows.pop(place)

    def _leave(self, token: Token) -> None:
        if self.queued.get((token.key, "")) == token.id:
            self.queued.pop((token.key, ""))
