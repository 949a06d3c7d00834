"""What a worker makes of offers to its parked tasks, which are heard of in two threads."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from celery_distlock.errors import StoreUnavailable
from celery_distlock.lease import Claim, Completion, Lease, Ticket
from celery_distlock.worker.parking import Parking


class Line:
    """Answers as it is told to, and keeps what is to be done later."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.polling = False
        self.left: list[Any] = []
        self.calls: list[Callable[[], None]] = []
        self.later: list[Callable[[], None]] = []

    def enqueue(self, parked: Any, ticket: int | None) -> Any:
        parked.asking = True
        answer = self.answer()
        parked.asking = isinstance(answer, Lease)
        return answer

    def take(self, parked: Any) -> bool:
        return not self.polling

    def leave(self, parked: Any) -> None:
        self.left.append(parked)

    def call(self, function: Callable[[], None]) -> None:
        self.calls.append(function)

    def call_after(self, delay: float, function: Callable[[], None]) -> None:
        self.later.append(function)

    def make_calls(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def pool() -> Any:
    return SimpleNamespace(num_processes=2, ending=0)


@pytest.fixture
def parking(pool: Any) -> Parking:
    calls: list[Any] = []
    loop = SimpleNamespace(call=calls.append, call_first=calls.append)
    warden: Any = SimpleNamespace(worker=SimpleNamespace(pool=pool, semaphore=None), loop=loop, shelf=None)
    warden.ending = lambda: pool.ending
    return Parking(warden)


def park(parking: Parking, line: Line, owner: str) -> Any:
    """Park a task for the key ``k``."""
    claim = Claim("k", owner, 30.0, 1, {}, Completion("k", "run", 1.0))
    one = SimpleNamespace(claim=claim, owner=owner, line=line, store="store", group=("store", "k"), number=1)
    one.request = SimpleNamespace(name="work", id=owner)
    one.look_for_completion = lambda: None
    one.called = one.aside = one.asking = one.hinted = False
    parking._parked[owner] = one  # type: ignore[assignment]
    return one


@pytest.fixture
def parked(parking: Parking, line: Line) -> Any:
    return park(parking, line, "owner")


def test_who_is_offered_its_place_is_called_up_at_once(parking: Parking, parked: Any) -> None:
    parking.offered(parked)
    assert list(parking._called) == ["owner"]


def test_an_offer_heard_of_twice_calls_once(parking: Parking, parked: Any) -> None:
    parking.offered(parked)
    # The consumer has heard, and is about to take the request off the shelf.
    parking._called.pop("owner")
    parking.offered(parked)
    assert parking._called == {}, "it would be called up, and declined, under the task that asks by then"


def test_who_has_been_sent_aside_is_not_called(parking: Parking, parked: Any) -> None:
    parked.aside = True
    parking.offered(parked)
    assert parking._called == {}


def test_no_more_are_called_than_there_are_slots(parking: Parking, parked: Any, line: Line, pool: Any) -> None:
    pool.num_processes = 1
    other = park(parking, line, "other")
    parking.offered(parked)
    parking.offered(other)
    assert list(parking._called) == ["owner"]
    [decline] = line.calls
    assert "_decline" in repr(decline)


def test_a_slot_is_free_as_soon_as_its_executor_has_released_its_lock(
    parking: Parking, parked: Any, line: Line, pool: Any
) -> None:
    # Its end is not heard of so far: the pool has no slot, as far as it knows.
    pool.num_processes, pool.ending = 0, 1
    other = park(parking, line, "other")
    parking.offered(parked)
    parking.offered(other)
    assert list(parking._called) == ["owner"]


def test_a_poll_that_is_under_way_is_over_before_anybody_is_called(parking: Parking, parked: Any, line: Line) -> None:
    line.polling = True
    parking.offered(parked)
    assert parking._called == {}, "the poll may enter it again behind the back of its executor"
    line.polling = False
    line.make_calls()
    assert list(parking._called) == ["owner"]


def test_a_hint_that_is_quicker_than_the_ticket_calls_when_that_is_there(
    parking: Parking, parked: Any, line: Line
) -> None:
    def answer() -> Ticket:
        parking.offered(parked)
        assert parking._called == {}, "a question is under way in its name"
        return Ticket(parked.claim, 7, 0)

    line.answer = answer
    parking._enqueue(parked)
    assert list(parking._called) == ["owner"]


def test_a_hint_without_an_answer_calls_nobody_before_the_store_was_asked_again(
    parking: Parking, parked: Any, line: Line
) -> None:
    def no_answer() -> Ticket:
        parking.offered(parked)
        raise StoreUnavailable("store", "silent")

    line.answer = no_answer
    parking._enqueue(parked)
    parked.asking = True
    assert parking._called == {}
    assert line.calls == []
    line.answer = lambda: Lease("k", "owner", 1, 30.0, 0.0)
    [again] = line.later
    again()
    assert list(parking._called) == ["owner"]


def test_who_is_granted_the_key_while_it_joins_the_line_is_called_up(parking: Parking, parked: Any, line: Line) -> None:
    line.answer = lambda: Lease("k", "owner", 1, 30.0, 0.0)
    parking._enqueue(parked)
    assert list(parking._called) == ["owner"]
    assert parked.asking, "leaving now would leave its lease behind"
