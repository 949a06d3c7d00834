"""What a worker makes of offers to its parked tasks, which are heard of in two threads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from celery_distlock.lease import Claim, Completion, Lease
from celery_distlock.worker.parking import Parking


class Line:
    """Grants what it is asked for, and keeps what is to be done later."""

    def __init__(self) -> None:
        self.confirmed = 0
        self.calls: list[Any] = []

    def confirm(self, waiters: list[Any]) -> list[Lease]:
        self.confirmed += len(waiters)
        return [Lease(one.claim.key, one.claim.owner, 1, 30.0, 0.0) for one in waiters]

    def call(self, function: Any) -> None:
        self.calls.append(function)

    def call_after(self, delay: float, function: Any) -> None: ...

    def forget(self, waiter: Any) -> None: ...


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def parking() -> Parking:
    calls: list[Any] = []
    pool = SimpleNamespace(num_processes=2)
    warden: Any = SimpleNamespace(
        worker=SimpleNamespace(pool=pool, semaphore=None), loop=SimpleNamespace(call=calls.append), shelf=None
    )
    return Parking(warden)


@pytest.fixture
def parked(parking: Parking, line: Line) -> Any:
    claim = Claim("k", "owner", 30.0, 1, {}, Completion("k", "run", 1.0))
    one = SimpleNamespace(claim=claim, owner="owner", line=line, store="store", group=("store", "k"))
    one.claim_now = lambda: claim
    one.granted = one.aside = one.asking = False
    parking._parked["owner"] = one  # type: ignore[assignment]
    return one


def test_an_offer_heard_of_is_confirmed_at_once(parking: Parking, parked: Any, line: Line) -> None:
    parking.offered(parked, here=True)
    assert line.confirmed == 1
    assert list(parking._handed) == ["owner"]


def test_an_offer_found_by_a_poll_is_left_to_the_lines_thread(parking: Parking, parked: Any, line: Line) -> None:
    parking.offered(parked)
    assert line.confirmed == 0
    [confirm] = line.calls
    confirm()
    assert list(parking._handed) == ["owner"]


def test_an_offer_heard_of_twice_is_handed_over_once(parking: Parking, parked: Any, line: Line) -> None:
    parking.offered(parked, here=True)
    # The consumer takes what is handed over, and is about to take the request off the shelf.
    parking._handed.pop("owner")
    parking.offered(parked, here=True)
    assert parking._handed == {}, "it would be released under the task that runs by then"


def test_who_has_been_sent_aside_confirms_nothing(parking: Parking, parked: Any, line: Line) -> None:
    parked.aside = True
    parking.offered(parked, here=True)
    assert line.confirmed == 0
