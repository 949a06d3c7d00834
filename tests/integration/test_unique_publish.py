"""Publishing unique tasks: how many messages there are in the broker, and what the callers are told."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from kombu.exceptions import EncodeError

from celery_distlock import DuplicateTask, LockedTask, LockKeyError, StoreUnavailable, unique_send_task
from celery_distlock.signals import unique_duplicate
from celery_distlock.stores.memory import MemoryStore
from celery_distlock.stores.of_app import forget_store, use_store
from celery_distlock.tokens import Duplicate, Token


class Store(MemoryStore):
    """Counts the questions, and may refuse to answer."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(uuid.uuid4().hex, clock=clock)
        self.asked: list[str] = []
        self.down = False

    def _note(self, what: str) -> None:
        if self.down:
            raise StoreUnavailable(self.name, "it is down")
        self.asked.append(what)

    def reserve(self, token: Token) -> Any:
        self._note("reserve")
        return super().reserve(token)

    def cancel(self, token: Token, *, window: bool) -> None:
        self._note("cancel")
        super().cancel(token, window=window)


class Shop:
    """An app with a broker and a store of its own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.store = Store(lambda: self.now)
        self.app = Celery(
            "shop", set_as_current=False, broker=f"memory://{uuid.uuid4().hex}", backend="cache+memory://"
        )
        self.app.conf.task_default_queue = uuid.uuid4().hex
        use_store(self.app, self.store)

    def task(self, **options: Any) -> Any:
        name = options.pop("name", "sync")

        def sync(order: int = 0, note: str = "") -> None:
            """Do nothing."""

        defaults = {"unique_key": "sync:{order}"} if "unique_key" not in options else {}
        options = {"base": LockedTask, **defaults, **options}
        return self.app.task(shared=False, name=name, **options)(sync)._get_current_object()

    def messages(self) -> list[dict[str, Any]]:
        """Take every message out of the broker, and return their headers."""
        found = []
        with self.app.connection_for_read() as connection, closing(connection.channel()) as channel:
            queue = self.app.amqp.queues[self.app.conf.task_default_queue](channel)
            queue.declare()
            while (message := queue.get(no_ack=True)) is not None:
                found.append(message.headers)
        return found

    def other(self, key: str = "sync:7", **options: Any) -> Any:
        """Ask as another publisher would."""
        return MemoryStore.reserve(self.store, Token(key, "other", 1.0, **options))


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()
    with shop.app:
        yield shop
    forget_store(shop.app)
    shop.store.drop()


class TestReturn:
    def test_a_second_call_is_given_the_result_of_the_first(self, shop: Shop) -> None:
        task = shop.task(unique_while="queued")
        first, second = task.delay(7), task.delay(7)
        assert (first.duplicate, second.duplicate) == (False, True)
        assert second.id == first.id
        assert [message["id"] for message in shop.messages()] == [first.id]

    def test_other_arguments_are_another_task_and_ignored_ones_are_not(self, shop: Shop) -> None:
        task = shop.task(unique_while="queued")
        results = [task.delay(7), task.delay(8), task.delay(7, note="again"), task.apply_async((), {"order": 8})]
        assert [result.duplicate for result in results] == [False, False, True, True]
        assert results[3].id == results[1].id

    def test_without_a_unique_key_the_locks_counts(self, shop: Shop) -> None:
        task = shop.task(unique_while="queued", unique_key=None, lock_key=("order",))
        assert [task.delay(7, note=note).duplicate for note in "ab"] == [False, True]

    def test_a_key_of_none_makes_it_an_ordinary_task(self, shop: Shop) -> None:
        task = shop.task(unique_while="queued", unique_key=lambda order, note="": f"{order}" if order else None)
        assert [task.delay(0).duplicate, task.delay(0).duplicate, len(shop.messages())] == [False, False, 2]

    def test_publishing_costs_one_question_to_the_store(self, shop: Shop) -> None:
        for options in (
            {"unique_while": "queued"},
            {"unique_while": "queued_or_running"},
            {"unique_for": 5},
            {"unique_while": "queued", "on_duplicate": "replace"},
            {"unique_while": "queued_or_running", "on_duplicate": "rerun"},
        ):
            task = shop.task(name=str(options), unique_key=f"{options}".translate({123: None, 125: None}), **options)
            for _ in range(2):
                task.delay(7)
                assert shop.store.asked == ["reserve"], options
                shop.store.asked.clear()

    def test_a_task_that_is_not_unique_asks_nothing(self, shop: Shop) -> None:
        task = shop.task(unique_key=None)
        assert not hasattr(task.delay(7), "duplicate")
        assert shop.store.asked == []

    def test_it_is_said_in_the_log_and_by_a_signal(self, shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "celery_distlock")
        told: list[Any] = []

        def tell(sender: Any, task_id: str, key: str, policy: str, **_: Any) -> None:
            told.append((sender.name, task_id, key, policy))

        unique_duplicate.connect(tell)
        first = shop.task(unique_while="queued").delay(7)
        shop.app.tasks["sync"].delay(7)
        assert told == [("sync", first.id, "sync:7", "return")]
        (record,) = caplog.records
        assert record.levelno == logging.INFO
        assert first.id in record.message
        assert "'sync:7'" in record.message


def test_a_task_may_be_a_class(shop: Shop) -> None:
    class Sync(LockedTask):
        name = "class"
        unique_while = "queued"

        def run(self, order: int) -> None:
            """Do nothing."""

    task = shop.app.register_task(Sync())
    assert [task.delay(7).duplicate, task.delay(order=7).duplicate] == [False, True]


def test_raise_names_the_other_one(shop: Shop) -> None:
    task = shop.task(unique_while="queued", on_duplicate="raise")
    first = task.delay(7)
    with pytest.raises(DuplicateTask) as caught:
        task.delay(7)
    assert (caught.value.key, caught.value.id) == ("sync:7", first.id)
    assert str(caught.value) == f"not published: task [{first.id}] is the one of 'sync:7'"
    assert len(shop.messages()) == 1


class TestForATime:
    def test_no_second_one_is_accepted_before_it_is_over(self, shop: Shop) -> None:
        task = shop.task(unique_for=60)
        first = task.delay(7)
        shop.now += 59.9
        assert task.delay(7).id == first.id
        shop.now += 0.2
        assert not task.delay(7).duplicate

    def test_together_with_queued_the_longer_one_counts(self, shop: Shop) -> None:
        task = shop.task(unique_for=60, unique_while="queued", unique_ttl=500)
        task.delay(7)
        shop.now += 61
        assert task.delay(7).duplicate
        shop.now += 440
        assert not task.delay(7).duplicate

    def test_a_call_may_choose_another(self, shop: Shop) -> None:
        task = shop.task(unique_for=60)
        task.delay(7)
        assert not task.apply_async((7,), lock={"unique_for": None}).duplicate
        assert task.apply_async((7,), lock={"unique_for": 1}).duplicate
        assert not task.apply_async((7,), lock={"unique_for": 1, "unique_key": "else"}).duplicate


class TestReplace:
    @pytest.mark.parametrize("policy", ["replace", "rerun"])
    def test_every_call_is_published_and_the_newest_has_the_place(self, shop: Shop, policy: str) -> None:
        task = shop.task(unique_while="queued_or_running", on_duplicate=policy)
        results = [task.delay(7, note=note) for note in "abc"]
        assert not any(result.duplicate for result in results)
        assert len({result.id for result in results}) == 3
        assert shop.other() == Duplicate(results[2].id)

    def test_a_publisher_that_dies_in_between_has_replaced_nothing(self, shop: Shop) -> None:
        task = shop.task(unique_while="queued", on_duplicate="replace")
        first = task.delay(7)
        shop.store.reserve = dying  # type: ignore[method-assign]
        with pytest.raises(SystemExit):
            task.delay(7)
        assert len(shop.messages()) == 2
        assert shop.other() == Duplicate(first.id)

    def test_one_that_cannot_be_published_has_replaced_nothing(self, shop: Shop) -> None:
        task = shop.task(unique_while="queued", on_duplicate="replace", serializer="json")
        first = task.delay(7)
        with pytest.raises(EncodeError):
            task.delay(7, note=object())
        assert shop.other() == Duplicate(first.id)


def dying(*_: Any) -> Any:
    raise SystemExit


class TestTheTtl:
    @pytest.mark.parametrize(
        ("options", "seconds"),
        [
            ({}, 100.0),
            ({"countdown": 50}, 150.0),
            ({"eta": timedelta(seconds=50)}, 150.0),
            ({"eta": timedelta(seconds=50), "countdown": 0}, 150.0),
            ({"expires": 20}, 20.0),
            ({"expires": timedelta(seconds=20)}, 20.0),
            ({"expires": 2000}, 100.0),
            ({"lock": {"unique_ttl": 5}}, 5.0),
        ],
    )
    def test_is_how_long_the_message_may_take_to_start(
        self, shop: Shop, options: dict[str, Any], seconds: float
    ) -> None:
        now = datetime.now(timezone.utc)
        options = {name: now + value if isinstance(value, timedelta) else value for name, value in options.items()}
        shop.task(unique_while="queued", unique_ttl=100).apply_async((7,), **options)
        shop.now += seconds - 6 if seconds > 6 else 1
        assert isinstance(shop.other(), Duplicate)
        shop.now += 12
        assert not isinstance(shop.other(), Duplicate)

    def test_a_task_that_expires_by_definition_frees_its_place_then(self, shop: Shop) -> None:
        shop.task(unique_while="queued", expires=20).delay(7)
        shop.now += 20.1
        assert not isinstance(shop.other(), Duplicate)


class TestWhatIsNotPublished:
    def test_arguments_that_cannot_be_encoded(self, shop: Shop) -> None:
        task = shop.task(unique_while="queued", unique_for=60, serializer="json")
        with pytest.raises(EncodeError):
            task.delay(7, note=object())
        assert not isinstance(shop.other(window=60.0), Duplicate)

    def test_arguments_that_do_not_fit(self, shop: Shop) -> None:
        task = shop.task(unique_while="queued")
        with pytest.raises(TypeError):
            task.delay(7, nobody=1)
        assert shop.store.asked == []

    def test_a_broker_that_is_down(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise ConnectionError("refused")

        task = shop.task(unique_while="queued", unique_for=60)
        with monkeypatch.context() as patched:
            patched.setattr(shop.app, "send_task", refuse)
            with pytest.raises(ConnectionError):
                task.delay(7)
        assert not task.delay(7).duplicate

    @pytest.mark.parametrize("method", ["delay_on_commit", "apply_async_on_commit"])
    def test_a_transaction_that_is_rolled_back_leaves_nothing(self, shop: Shop, database: Any, method: str) -> None:
        task = shop.task(unique_while="queued", base=_django_task())
        arguments = (7,) if method == "delay_on_commit" else ((7,),)
        with contextlib.suppress(ZeroDivisionError), database.atomic():
            getattr(task, method)(*arguments)
            raise ZeroDivisionError
        assert (shop.store.asked, shop.messages()) == ([], [])
        with database.atomic():
            getattr(task, method)(*arguments)
            getattr(task, method)(*arguments)
            assert shop.store.asked == []
        assert len(shop.messages()) == 1
        assert task.delay(7).duplicate


def _django_task() -> Any:
    from celery.contrib.django.task import DjangoTask

    class DjangoLockedTask(LockedTask, DjangoTask):  # type: ignore[misc]
        abstract = True

    return DjangoLockedTask


@pytest.fixture(scope="module")
def database() -> Any:
    """Django's transactions, on a database in memory."""
    import django
    from django.conf import settings
    from django.db import transaction

    if not settings.configured:
        settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}})
        django.setup()
    return transaction


class Interrupted(BaseException):
    """What a signal's handler raises."""


@contextlib.contextmanager
def interrupted_in_the_question(shop: Shop) -> Iterator[None]:
    def reserve(token: Token) -> Any:
        MemoryStore.reserve(shop.store, token)
        raise Interrupted

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shop.store, "reserve", reserve)
        with contextlib.suppress(Interrupted):
            yield
            raise AssertionError("it was not interrupted")


class TestInterrupted:
    def test_in_the_question_it_leaves_no_place(self, shop: Shop) -> None:
        task = shop.task(unique_while="queued", unique_for=60)
        with interrupted_in_the_question(shop):
            task.delay(7)
        assert not isinstance(shop.other(window=60.0), Duplicate)

    def test_in_the_question_of_a_retry_it_leaves_no_place(self, shop: Shop) -> None:
        task = shop.task(unique_while="queued")
        first = task.delay(7)
        (message,) = shop.messages()
        shop.store.begin(Token("sync:7", first.id, 60.0), None)
        with interrupted_in_the_question(shop):
            retry(task, message)
        assert not isinstance(shop.other(), Duplicate)


def retry(task: Any, message: dict[str, Any], **options: Any) -> Any:
    """Publish a message again as a task's own retry does."""
    headers = {name: value for name, value in message.items() if name.startswith("distlock")}
    return task.apply_async((7,), task_id=message["id"], headers=headers, retries=1, **options)


class TestRetries:
    def test_a_task_that_retries_itself_is_queued_again(self, shop: Shop) -> None:
        task = shop.task(unique_while="queued")
        first = task.delay(7)
        (message,) = shop.messages()
        shop.store.begin(Token("sync:7", first.id, 60.0), None)
        retry(task, message, countdown=5)
        assert task.delay(7).id == first.id

    def test_also_if_only_this_call_is_unique(self, shop: Shop) -> None:
        task, lock = shop.task(unique_key=None, lock_key="sync:{order}"), {"unique_while": "queued"}
        first = task.apply_async((7,), lock=lock)
        (message,) = shop.messages()
        shop.store.begin(Token("sync:7", first.id, 60.0), None)
        retry(task, message, countdown=5)
        assert task.apply_async((7,), lock=lock).id == first.id


class TestAStoreThatIsDown:
    def test_the_task_is_published_and_the_lock_decides(self, shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
        shop.store.down = True
        for policy in ("return", "replace"):
            task = shop.task(name=policy, unique_while="queued", on_duplicate=policy)
            assert not task.delay(7).duplicate
        assert len(shop.messages()) == 2
        assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]

    def test_unless_the_task_wants_to_fail(self, shop: Shop) -> None:
        shop.store.down = True
        with pytest.raises(StoreUnavailable):
            shop.task(unique_while="queued", lock_on_store_error="fail").delay(7)
        assert shop.messages() == []

    def test_what_replaces_another_is_published_by_then(self, shop: Shop) -> None:
        task = shop.task(unique_while="queued", on_duplicate="replace", lock_on_store_error="fail")
        shop.store.down = True
        assert not task.delay(7).duplicate
        assert len(shop.messages()) == 1


class TestWhereAnIdIsAwaited:
    def test_members_of_a_canvas_are_all_published(self, shop: Shop) -> None:
        task = shop.task(unique_while="queued")
        group(task.si(7), task.si(7)).apply_async()
        chain(task.si(7), task.si(7)).apply_async()
        chord([task.si(7), task.si(7)], task.si(7)).apply_async()
        assert len(shop.messages()) == 2 + 1 + 2
        assert shop.store.asked == []

    def test_an_id_of_the_callers_own_is_published(self, shop: Shop) -> None:
        task = shop.task(unique_while="queued")
        task.delay(7)
        assert task.apply_async((7,), task_id="mine").id == "mine"
        assert task.apply_async((7,), None, "mine too").id == "mine too"
        assert len(shop.messages()) == 3

    def test_they_count_while_they_run(self, shop: Shop) -> None:
        task = shop.task(unique_while="queued_or_running")
        group(task.si(7), task.si(8)).apply_async()
        assert [message["distlock_unique"]["running"] for message in shop.messages()] == [True, True]

    def test_they_have_no_place_that_a_newer_call_could_take(self, shop: Shop) -> None:
        task = shop.task(unique_while="queued_or_running", on_duplicate="rerun")
        chain(task.si(7), task.si(7)).apply_async()
        (message,) = shop.messages()
        told = message["distlock_unique"]
        assert (told["queued"], told["replaces"]) == (False, False)

    @pytest.mark.parametrize("policy", ["return", "raise", "replace", "rerun"])
    def test_a_call_that_something_is_linked_to_is_published(self, shop: Shop, policy: str) -> None:
        task = shop.task(unique_while="queued", on_duplicate=policy)
        first = task.delay(7)
        linked = task.apply_async((7,), link=task.si(8))
        assert (linked.duplicate, linked.id == first.id) == (False, False)
        assert len(shop.messages()) == 2
        assert shop.other() == Duplicate(first.id)

    def test_a_link_of_which_no_key_can_be_made_is_published_and_fails_by_itself(
        self, shop: Shop, caplog: pytest.LogCaptureFixture
    ) -> None:
        # It is published by the task before it, which would lose its own result.
        task = shop.task(unique_while="queued", unique_key=lambda order, note="": str(order["id"]))
        assert task.apply_async((7,), task_id="link").id == "link"
        (record,) = caplog.records
        assert "raised TypeError" in record.getMessage()
        assert len(shop.messages()) == 1
        with pytest.raises(LockKeyError):
            task.delay(7)

    def test_a_plain_signature_is_a_call(self, shop: Shop) -> None:
        task = shop.task(unique_while="queued")
        assert [task.s(7).delay().duplicate, task.s(7).apply_async().duplicate] == [False, True]

    def test_eager_tasks_are_not_published(self, shop: Shop) -> None:
        shop.app.conf.task_always_eager = True
        task = shop.task(unique_while="queued_or_running")
        assert not task.delay(7).duplicate
        assert shop.store.asked == []


class TestByName:
    def test_send_task_does_not_ask(self, shop: Shop) -> None:
        shop.task(unique_while="queued")
        for _ in range(2):
            shop.app.send_task("sync", (7,))
        assert len(shop.messages()) == 2

    def test_unless_the_app_is_told_so(self, shop: Shop) -> None:
        shop.task(unique_while="queued")
        for _ in range(2):
            unique_send_task(shop.app)
        first, second = (shop.app.send_task("sync", (7,)) for _ in range(2))
        assert second.duplicate
        assert second.id == first.id
        assert shop.app.tasks["sync"].delay(7).duplicate
        assert len(shop.messages()) == 1

    def test_nor_does_it_matter_how_it_is_called(self, shop: Shop) -> None:
        shop.task(unique_while="queued")
        unique_send_task(shop.app)
        first = shop.app.send_task("sync", (7,), {}, 5)
        second = shop.app.send_task("sync", (7,), {}, 5)
        assert second.id == first.id
        assert [message["eta"] is not None for message in shop.messages()] == [True]

    def test_names_that_nobody_knows_are_published_as_before(self, shop: Shop) -> None:
        unique_send_task(shop.app)
        shop.app.send_task("nobody.knows", (7,))
        assert [message["task"] for message in shop.messages()] == ["nobody.knows"]
