"""A lock retry whose broker or whose result store refuses."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, states
from celery.app.trace import build_tracer
from celery.signals import after_task_publish
from kombu.exceptions import OperationalError

from celery_distlock import LockedTask
from celery_distlock.lease import Claim, Lease
from celery_distlock.stores.of_app import forget_store, store_of
from tests.support.ports import free_port

Refused = Callable[..., Any]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Where the results are."""
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


@pytest.fixture
def refused(results: Path) -> Iterator[Refused]:
    """Trace a task whose key is taken; return its app and what the tracer said of it."""
    with ExitStack() as stack:

        def trace(broker: str, before: Callable[[], None] = lambda: None, **options: Any) -> tuple[Celery, Any]:
            app = Celery("refused", broker=broker, backend=results.as_uri(), set_as_current=False)
            app.conf.update(distlock_url=f"memory://{uuid.uuid4().hex}", task_publish_retry=False)
            # A broker in memory is one for all tests of the process.
            app.conf.task_default_queue = uuid.uuid4().hex
            app.conf.broker_transport_options = {"max_retries": 1, "interval_start": 0.0, "interval_step": 0.0}
            stack.callback(app.close)
            stack.callback(forget_store, app)

            @app.task(base=LockedTask, shared=False, lock_key="k", **options)
            def subject() -> None:
                raise AssertionError("not while somebody else holds the key")

            with app:
                assert isinstance(store_of(app).acquire(Claim("k", "somebody else", 30.0)), Lease)
                before()
                return app, build_tracer(subject.name, subject, app=app)(
                    "id", (), {}, {"id": "id", "delivery_info": {}}
                )

        yield trace


def messages(app: Celery) -> int:
    with app.connection_for_read() as connection:
        return int(connection.default_channel.queue_declare(app.conf.task_default_queue, passive=True).message_count)


def nobody() -> str:
    return f"amqp://127.0.0.1:{free_port()}//"


def test_it_goes_back_to_a_broker_that_does_not_take_it(refused: Refused, caplog: pytest.LogCaptureFixture) -> None:
    app, traced = refused(nobody(), acks_late=True)
    assert (traced.info.state, traced.info.retval.requeue) == (states.REJECTED, True)
    assert "[id]: could not be published again: " in caplog.text
    assert app.AsyncResult("id").state == states.RETRY


def test_it_fails_if_its_message_is_gone(refused: Refused) -> None:
    app, traced = refused(nobody(), acks_late=False)
    assert traced.info.state == states.FAILURE
    result = app.AsyncResult("id")
    assert result.state == states.FAILURE
    assert isinstance(result.result, OperationalError)


def test_it_is_published_also_if_its_state_cannot_be_stored(
    refused: Refused, results: Path, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = results / "celery-task-meta-id"

    def published(**_: Any) -> None:
        in_the_way.rmdir()

    after_task_publish.connect(published)
    try:
        app, traced = refused(f"memory://{uuid.uuid4().hex}", in_the_way.mkdir)
    finally:
        after_task_publish.disconnect(published)
    assert "[id]: that it is retried could not be stored: " in caplog.text
    assert (messages(app), traced.info.state) == (1, states.RETRY)
    # Then the tracer has done it.
    assert app.AsyncResult("id").state == states.RETRY


@pytest.mark.parametrize("even_if_ignored", [False, True])
def test_a_result_that_is_ignored_is_not_stored(refused: Refused, even_if_ignored: bool) -> None:
    app, traced = refused(
        f"memory://{uuid.uuid4().hex}", ignore_result=True, store_errors_even_if_ignored=even_if_ignored
    )
    assert traced.info.state == states.RETRY
    assert app.AsyncResult("id").state == (states.RETRY if even_if_ignored else states.PENDING)
