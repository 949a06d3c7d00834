"""What users of libraries that lock at publish complain of; the numbers are those of the project's survey."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator

import pytest
from celery import chain
from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import schedule
from kombu.exceptions import EncodeError

from celery_distlock import unique_send_task
from celery_distlock.beat import Ticks, skipped
from tests.support.redis_server import RedisServer
from tests.worker.shared import PATIENCE, Shared, shared_workers

pytestmark = pytest.mark.xdist_group("unique complaints")

APP = "tests.worker.apps.unique"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Shared]:
    with shared_workers(tmp_path_factory.mktemp("unique-complaints"), redis_server, APP, concurrency=2) as shared:
        yield shared


@pytest.fixture
def key() -> str:
    return f"key-{uuid.uuid4().hex[:8]}"


def test_6_a_task_sent_by_name_is_not_queued_twice_if_the_app_wants_that(shared: Shared, key: str) -> None:
    unique_send_task(shared.tasks.app)
    first, second = (shared.tasks.app.send_task("queued", (key,), queue="nobody") for _ in range(2))
    assert (first.duplicate, second.duplicate, second.id) == (False, True, first.id)
    assert shared.broker.llen("nobody") == 1
    shared.broker.delete("nobody")


def test_7_beat_skips_a_job_that_has_not_finished_without_an_error(
    shared: Shared, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    scheduler = Scheduler(shared.tasks.app)
    Ticks(scheduler)
    entry = ScheduleEntry(name=key, task="running_too", schedule=schedule(60), args=(key,), app=shared.tasks.app)
    scheduler.apply_entry(entry)
    (start,) = shared.journal.wait_for("start", key=key)
    scheduler.apply_entry(entry)
    scheduler.apply_entry(entry)
    assert skipped[key] == 2
    told = [record for record in caplog.records if record.name.startswith("celery_distlock")]
    assert [record.levelno for record in told] == [logging.INFO] * 2
    assert all(start["id"] in record.getMessage() for record in told)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    shared.open_gate(key)


def test_8_a_duplicate_inside_a_chain_loses_nothing(shared: Shared, key: str) -> None:
    first = shared.tasks.running_too.delay(key)
    shared.journal.wait_for("start", key=key, id=first.id)
    done = chain(shared.tasks.running_too.si(key, note, False) for note in "abc").apply_async()
    shared.journal.wait_for("contended", key=key)
    shared.open_gate(key)
    assert done.get(timeout=PATIENCE) == "c"
    assert [entry["note"] for entry in shared.journal.entries("start", key=key)] == ["", "a", "b", "c"]


def test_12_a_change_that_arrives_during_the_run_is_not_dropped(shared: Shared, key: str) -> None:
    first = shared.tasks.rerun.apply_async((key, "before"))
    shared.journal.wait_for("start", key=key, id=first.id)
    changed = shared.tasks.rerun.apply_async((key, "after", False))
    shared.open_gate(key)
    assert [each.get(timeout=PATIENCE) for each in (first, changed)] == ["before", "after"]


def test_13_a_duplicate_does_not_free_the_place_of_the_first(shared: Shared, key: str) -> None:
    first = shared.tasks.running_too.delay(key)
    shared.journal.wait_for("start", key=key, id=first.id)
    for _ in range(3):
        assert shared.tasks.running_too.delay(key).id == first.id
    shared.open_gate(key)
    first.get(timeout=PATIENCE)


def test_14_a_publication_that_fails_leaves_no_place(shared: Shared, key: str) -> None:
    with pytest.raises(EncodeError):
        shared.tasks.running_too.delay(key, note=object())
    first = shared.tasks.running_too.apply_async((key,), {"gate": False})
    assert not first.duplicate
    first.get(timeout=PATIENCE)
