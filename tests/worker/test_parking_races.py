"""Races between the consumer's thread and the line's, with the consumer's thread played by the test."""

from __future__ import annotations

import math
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError

from celery_distlock.cells import Arena
from celery_distlock.keepalive import Keeper, keeper
from celery_distlock.lease import Claim, Completed, Contended, Lease, Offer, Ticket, new_owner
from celery_distlock.options import LockOptions
from celery_distlock.stores.memory import MemoryStore
from celery_distlock.task.parked import Wish
from celery_distlock.task.run import label_of
from celery_distlock.worker.parked_request import Waited
from celery_distlock.worker.parking import Parking
from celery_distlock.worker.request import _supervised_execution
from celery_distlock.worker.warden import Warden
from tests.support.waiting import eventually

OPTIONS = LockOptions(on_contention="wait", limit=2)


class SlowStore(MemoryStore):
    """A store whose answers can be held up on their way."""

    def __init__(self) -> None:
        super().__init__(uuid.uuid4().hex)
        self.on_its_way = threading.Event()
        self.arrives = threading.Event()
        self.arrives.set()
        self.polls_wait = False
        self.polling, self.poll_arrives = threading.Event(), threading.Event()

    def enqueue(
        self, claim: Claim, *, listener: str = "", ticket: int | None = None
    ) -> Lease | Ticket | Contended | Completed:
        answer = super().enqueue(claim, listener=listener, ticket=ticket)
        self.on_its_way.set()
        assert self.arrives.wait(10)
        return answer

    def poll(self, places: Sequence[Ticket | Offer], *, listener: str = "") -> list[Ticket | Offer | None]:
        if not self.polls_wait:
            return super().poll(places, listener=listener)
        self.polling.set()
        assert self.poll_arrives.wait(10)
        return super().poll(places, listener=listener)

    def hold(self) -> Lease:
        answer = self.acquire(Claim("a", new_owner(), 30.0, limit=2))
        assert isinstance(answer, Lease)
        return answer

    def draw(self) -> int:
        """Return a number, as for one who is refused."""
        self.acquire(Claim("taken", "somebody", 30.0))
        answer = self.acquire(Claim("taken", new_owner(), 30.0, draws=True))
        assert isinstance(answer, Contended)
        assert answer.number is not None
        return answer.number

    def has(self, owner: str) -> bool:
        return owner in [holder["owner"] for holder in self.holders("a")]


class Consumer:
    """The consumer's thread, shelf and pool, as far as parking sees them."""

    static = False

    def __init__(self) -> None:
        self.calls: deque[Callable[[], None]] = deque()
        self.later: list[Callable[[], None]] = []
        self.ran: list[Any] = []
        self.pool = SimpleNamespace(num_processes=0)
        self.semaphore = None
        self.call = self.call_first = self.calls.append

    def call_after(self, delay: float, function: Callable[[], None]) -> None:
        """Do it when the test makes the next calls."""
        if delay < 1.0:
            self.later.append(function)

    def make_calls(self) -> None:
        later, self.later = self.later, []
        self.calls.extend(later)
        while self.calls:
            self.calls.popleft()()

    def put(self, request: Any) -> bool:
        return True

    def take(self, request: Any) -> None: ...

    def run(self, request: Any) -> None:
        self.ran.append(request)


class Task(SimpleNamespace):
    """What signals are sent by: they look it up in a dict."""

    __hash__ = object.__hash__


class Request:
    """A message in the worker."""

    name = "work"
    expires = None
    generation = 0
    exposed = False
    exposed_from = math.inf
    waited: Any = None
    supervised: Any = None
    is_revoked = False
    acknowledged = False

    def __init__(self, store: MemoryStore) -> None:
        self.id = uuid.uuid4().hex
        app = SimpleNamespace(conf={"distlock_url": "memory://"})
        self.task = Task(_lock_store=store, _get_app=lambda: app, acks_late=True)
        self.task._lock_options_of = lambda request: OPTIONS
        self.request_dict: dict[str, Any] = {}
        self.delivery_info: dict[str, Any] = {}
        self.message = SimpleNamespace(channel=None, delivery_tag=self.id)

    def revoked(self) -> bool:
        return self.is_revoked

    def send_event(self, *_: Any, **__: Any) -> None: ...


@pytest.fixture
def consumer() -> Consumer:
    return Consumer()


@pytest.fixture
def store() -> SlowStore:
    return SlowStore()


@pytest.fixture
def parking(consumer: Consumer) -> Iterator[Parking]:
    warden: Any = SimpleNamespace(
        worker=consumer,
        loop=consumer,
        shelf=consumer,
        generation=0,
        keeper=Keeper("distlock-test"),
        ending=lambda: 0,
        children_die_alone=True,
        arena=Arena(1),
    )
    parking = Parking(warden)
    yield parking
    parking.close()
    warden.keeper.stop()


def park(parking: Parking, consumer: Consumer, store: SlowStore) -> Request:
    """Park a task that was refused, and nothing else."""
    request = Request(store)
    others = list(consumer.calls)
    consumer.calls.clear()
    parking.park(request, Wish(Claim("a", new_owner(), 30.0, limit=2), store.draw(), 0.0, None), OPTIONS)
    consumer.make_calls()
    consumer.calls.extend(others)
    return request


def wait_for_the_keeper() -> None:
    """Wait until all that was to be given back has been."""
    for _ in range(2):
        done = threading.Event()
        keeper().call(done.set)
        assert done.wait(10)


def test_who_comes_while_others_of_its_key_are_declined_asks_for_nothing_before_they_are_back(
    parking: Parking, consumer: Consumer, store: SlowStore
) -> None:
    holders = [store.hold(), store.hold()]
    first = park(parking, consumer, store)
    eventually(lambda: parking.listed()[0]["position"] == 0, 10, "a place in line")
    # A place is offered, and there is no slot.
    store.release(holders[:1])
    eventually(lambda: consumer.calls, 10, "a call of the line's thread")
    store.release(holders[1:])
    store.on_its_way.clear()
    newcomer = park(parking, consumer, store)
    eventually(lambda: consumer.make_calls() or first in consumer.ran, 10, "the first in the pool's own line")
    assert [one["position"] for one in parking.listed()] == [None]
    assert not store.on_its_way.is_set()
    consumer.pool.num_processes = 9
    parking.climbed(first)
    eventually(lambda: consumer.make_calls() or newcomer in consumer.ran, 10, "the run of the newcomer")
    wait_for_the_keeper()
    assert store.has(newcomer.waited.called.owner)


def test_those_who_are_aside_stay_there_until_the_one_who_has_a_slot_has_asked(
    parking: Parking, consumer: Consumer, store: SlowStore
) -> None:
    holders = [store.hold(), store.hold()]
    first, second = park(parking, consumer, store), park(parking, consumer, store)
    eventually(lambda: [one["position"] for one in parking.listed()] == [0, 1], 10, "a line of two")
    store.release(holders[:1])

    def second_waits(position: int | None) -> bool:
        consumer.make_calls()
        return [(one["id"], one["position"]) for one in parking.listed()] == [(second.id, position)]

    eventually(lambda: second_waits(None) and consumer.ran == [first], 10, "the first in the pool's own line")
    supervised: Any = SimpleNamespace(request=first, is_asking=True)
    parking.has_slot(supervised)
    for _ in range(3):
        consumer.make_calls()
    assert second_waits(None)
    supervised.is_asking = False
    # The place that was declined is nobody's: it is offered at once.
    consumer.pool.num_processes = 9
    eventually(lambda: consumer.make_calls() or consumer.ran == [first, second], 10, "the run of the second")


def test_the_place_of_one_who_is_called_when_the_worker_shuts_down_is_given_back(
    parking: Parking, consumer: Consumer, store: SlowStore
) -> None:
    consumer.pool.num_processes = 9
    request = park(parking, consumer, store)
    eventually(lambda: consumer.calls, 10, "a call")
    (holder,) = store.holders("a")
    parking.close()
    assert not store.has(holder["owner"])
    consumer.make_calls()
    assert request not in consumer.ran


def test_the_place_of_one_who_is_revoked_when_it_is_called_is_given_back(
    parking: Parking, consumer: Consumer, store: SlowStore
) -> None:
    consumer.pool.num_processes = 9
    request = park(parking, consumer, store)
    eventually(lambda: consumer.calls, 10, "a call")
    (holder,) = store.holders("a")
    request.is_revoked = True
    parking._look_for_revoked()
    wait_for_the_keeper()
    assert not store.has(holder["owner"])
    consumer.make_calls()
    assert consumer.ran == []


def test_an_offer_that_is_made_while_a_poll_is_under_way_is_still_there_when_its_executor_asks(
    parking: Parking, consumer: Consumer, store: SlowStore
) -> None:
    consumer.pool.num_processes = 9
    holders = [store.hold(), store.hold()]
    request = park(parking, consumer, store)
    eventually(lambda: parking.listed()[0]["position"] == 0, 10, "a place in line")
    [parked] = parking._all()
    behind = store.enqueue(Claim("a", new_owner(), 30.0, limit=2))
    assert isinstance(behind, Ticket)
    store.polls_wait = True
    assert store.polling.wait(10)
    store.release(holders[:1])
    consumer.make_calls()
    store.polls_wait = False
    store.poll_arrives.set()
    eventually(lambda: consumer.make_calls() or consumer.ran == [request], 10, "the call")
    over = threading.Event()
    parked.line.call(over.set)
    assert over.wait(10)
    assert isinstance(store.acquire(request.waited.called), Lease), "the poll has given its place to the next"


def test_the_place_of_one_who_is_revoked_on_its_way_to_its_executor_passes_on(
    consumer: Consumer, store: SlowStore
) -> None:
    warden = Warden(consumer)
    held = store.hold()
    store.hold()
    claims = [Claim("a", new_owner(), 30.0, limit=2) for _ in range(2)]
    places = [store.enqueue(claim) for claim in claims]
    store.release([held])
    request = Request(store)
    request.waited = Waited(7, claims[0], True)
    request._end = lambda: warden.end(request.supervised)  # type: ignore[attr-defined]

    def execute(self: Any, pool: Any) -> None:
        raise TaskRevokedError

    try:
        with pytest.raises(TaskRevokedError):
            _supervised_execution(execute)(request, None)
    finally:
        warden.stop()
    [_, second] = store.poll([place for place in places if isinstance(place, Ticket)])
    assert isinstance(second, Offer)


def test_a_copy_of_a_running_task_gives_back_what_it_had_waited_for(consumer: Consumer, store: SlowStore) -> None:
    warden = Warden(consumer)
    lease = store.hold()
    copy, original = Request(store), Request(store)
    copy.id = original.id
    copy.request_dict["id"] = copy.id
    copy.delivery_info["redelivered"] = True
    copy.waited = Waited(7, Claim("a", lease.owner, 30.0), True)
    warden._by_label[label_of(copy.request_dict)] = SimpleNamespace(begun=True, request=original)  # type: ignore[assignment]
    try:
        with pytest.raises(TaskRevokedError):
            _supervised_execution(None)(copy, None)
    finally:
        warden.stop()
    assert not store.has(lease.owner)
    assert copy.waited == Waited(7, None, True)
