"""What becomes of leases that nobody has come for."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from celery_distlock.keepalive import Keeper
from celery_distlock.lease import Claim
from celery_distlock.worker import ahead
from celery_distlock.worker.ahead import Ahead
from celery_distlock.worker.parked_request import Waited


class HandedOver:
    """A request that the consumer's thread hands to the pool as soon as somebody has looked at it."""

    supervised = None

    def __init__(self, claim: Claim) -> None:
        self._waited: Waited | None = Waited(1, claim, room=True)

    @property
    def waited(self) -> Waited | None:
        waited, self._waited = self._waited, None
        return waited


def test_what_is_handed_over_just_then_does_not_end_the_looking(monkeypatch: Any) -> None:
    monkeypatch.setattr(ahead, "_PATIENCE", 0.01)
    keeper, claims, looked = Keeper("distlock-test"), [Claim("a", name * 32, 30.0) for name in "ab"], threading.Event()

    def give_up_place(request: Any, claim: Claim) -> None:
        if claim.owner == claims[1].owner:
            looked.set()

    arena = SimpleNamespace(full=False)
    warden: Any = SimpleNamespace(keeper=keeper, give_up_place=give_up_place, arena=arena)
    asks = Ahead(warden)
    try:
        for claim in claims:
            queue = SimpleNamespace(confirming=lambda claim: lambda: None)
            parked: Any = SimpleNamespace(
                claim=claim,
                wants_a_lease_only=True,
                line=SimpleNamespace(queue=queue),
                request=HandedOver(claim),
            )
            asks.ask(parked)
        assert looked.wait(5.0)
    finally:
        keeper.stop()


def test_nothing_is_asked_for_that_no_cell_could_tell_of() -> None:
    """Nobody would know whether its executor has come."""
    asked: list[Claim] = []
    arena = SimpleNamespace(full=False)
    keeper = SimpleNamespace(call_after=lambda *args: None)
    warden: Any = SimpleNamespace(keeper=keeper, arena=arena)

    def ask(key: str) -> None:
        line = SimpleNamespace(queue=SimpleNamespace(confirming=asked.append))
        claim = Claim(key, "a" * 32, 30.0)
        parked: Any = SimpleNamespace(claim=claim, wants_a_lease_only=True, line=line, request=None)
        Ahead(warden).ask(parked)

    ask("long" * 200)
    arena.full = True
    ask("short")
    assert asked == []
    arena.full = False
    ask("short")
    assert [claim.key for claim in asked] == ["short"]
