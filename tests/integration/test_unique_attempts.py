"""What an executor does about the token of its message, traced in this process, with a store that may be broken."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, states
from celery.app.trace import build_tracer
from celery.exceptions import Ignore

from celery_distlock import LockedTask, StoreUnavailable
from celery_distlock.lease import Claim, Lease, new_owner
from celery_distlock.stores.memory import MemoryStore
from celery_distlock.stores.of_app import forget_store, use_store
from celery_distlock.task.message import UNIQUE_HEADER, header_of
from celery_distlock.tokens import Begun, Reserved, Token, running_key

KEY = "sync:7"


class Store(MemoryStore):
    """May refuse to answer questions about places, but not those about locks."""

    down = False

    def reserve(self, token: Token) -> Any:
        if self.down:
            raise StoreUnavailable(self.name, "it is down")
        return super().reserve(token)


class Shop:
    """An app and its store, and the executor of its tasks."""

    def __init__(self) -> None:
        self.app = Celery("shop", set_as_current=False, broker="memory://", backend="cache+memory://")
        self.store = Store(uuid.uuid4().hex)
        use_store(self.app, self.store)
        self.ran: list[Any] = []

    def task(self, **options: Any) -> Any:
        def sync(order: int) -> None:
            self.ran.append(self.store.holders(running_key(KEY)))

        options = {"base": LockedTask, "unique_key": "sync:{order}", "unique_while": "queued_or_running", **options}
        return self.app.task(shared=False, name="sync", **options)(sync)._get_current_object()

    def execute(self, task: Any, token: Token, **request: Any) -> Any:
        """Run a message as a worker's executor does; return its result."""
        known = {"id": token.id, UNIQUE_HEADER: header_of(token), "delivery_info": {}, **request}
        build_tracer(task.name, task, app=self.app)(token.id, (7,), {}, known)
        return task.AsyncResult(token.id)

    def queued(self, task_id: str = "mine", **options: Any) -> Token:
        """Reserve a place as a publisher does."""
        token = Token(KEY, task_id, 60.0, **{"running": True, **options})
        assert isinstance(self.store.reserve(token), Reserved)
        return token


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()
    with shop.app:
        yield shop
    forget_store(shop.app)
    shop.store.drop()


def lease_of(store: Any, key: str, **record: Any) -> Lease:
    answer = store.acquire(Claim(key, new_owner(), 30.0, record=record))
    assert isinstance(answer, Lease)
    return answer


def test_a_place_that_cannot_be_kept_is_no_reason_to_run_beside_the_holder(shop: Shop) -> None:
    task = shop.task(lock_on_store_error="run", lock_on_contention="fail", lock_key="k")
    token = shop.queued()
    lease_of(shop.store, "k")
    shop.store.down = True
    # The store could be asked for the lock, and has said who has it.
    assert shop.execute(task, token).state == states.FAILURE
    assert shop.ran == []


def fail() -> None:
    raise ValueError("on purpose")


def ignore() -> None:
    raise Ignore


@pytest.mark.parametrize("end", [fail, ignore])
def test_a_task_that_ends_before_its_call_frees_its_place(shop: Shop, end: Callable[[], None]) -> None:
    class Starting(LockedTask):
        abstract = True

        def before_start(self, *_: Any) -> None:
            end()

    shop.execute(shop.task(base=Starting), shop.queued())
    assert shop.ran == []
    assert shop.store.reserve(Token(KEY, "next", 60.0)) == Reserved()


class TestItsPredecessor:
    """A run that is about to end is in nobody's way: what it has published counts from its own start."""

    def begun(self, shop: Shop, task_id: str) -> Lease:
        claim = Claim(running_key(KEY), new_owner(), 30.0, record={"id": task_id, "retries": 0})
        begun = shop.store.begin(Token(KEY, task_id, 60.0), claim)
        assert isinstance(begun, Begun)
        return Lease(claim.key, claim.owner, begun.fence, claim.ttl, 0.0)

    @pytest.fixture
    def patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have it wait for longer than any machine is busy."""
        monkeypatch.setattr("celery_distlock.task.unique.PREDECESSOR_PATIENCE", 20.0)

    def release_soon(self, shop: Shop, lease: Lease) -> None:
        timer = threading.Timer(0.2, shop.store.release, [[lease]])
        timer.start()

    @pytest.mark.usefixtures("patience")
    @pytest.mark.parametrize("request_of", [{"id": "mine", "retries": 1}, {"id": "next", "parent_id": "mine"}])
    def test_one_that_has_no_lock_waits_for_its_end(self, shop: Shop, request_of: dict[str, Any]) -> None:
        task = shop.task(lock_key=lambda order: None)
        before = self.begun(shop, "mine")
        self.release_soon(shop, before)
        shop.execute(task, Token(KEY, request_of["id"], 60.0, queued=False, running=True), **request_of)
        ((holder,),) = shop.ran
        assert (holder["id"], holder["owner"] != before.owner) == (request_of["id"], True)

    def test_but_not_for_long(self, shop: Shop) -> None:
        task = shop.task(lock_key=lambda order: None)
        self.begun(shop, "mine")
        began = time.monotonic()
        shop.execute(task, Token(KEY, "mine", 60.0, running=True), retries=1)
        assert 0.9 < time.monotonic() - began < 3.0
        assert len(shop.ran) == 1

    @pytest.mark.usefixtures("patience")
    def test_and_for_nobody_else(self, shop: Shop) -> None:
        task = shop.task(lock_key=lambda order: None)
        self.begun(shop, "mine")
        began = time.monotonic()
        shop.execute(task, Token(KEY, "stranger", 60.0, running=True))
        assert time.monotonic() - began < 5.0
        assert len(shop.ran) == 1
