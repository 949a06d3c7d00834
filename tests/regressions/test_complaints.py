"""What users of other libraries complain of most, each as the test that would have kept it from them.

The numbers are those of the project's survey of such complaints. Of number 16 only TLS is here; Sentinel and Cluster
are not supported yet. Numbers 1 to 4 and 17, about crashes, redelivery and renewal, stand beside the tests of the
worker's main process, 7 and 12, and what is said of publishing, beside those of unique tasks, and 11 beside those of
waiting in line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, states
from celery.beat import ScheduleEntry, Scheduler
from celery.exceptions import TaskRevokedError
from celery.schedules import schedule
from kombu.exceptions import OperationalError

from celery_distlock import Lock
from celery_distlock.stores import open_store
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer, executable
from tests.support.servers import fresh_databases, missing
from tests.support.waiting import eventually
from tests.worker.shared import PATIENCE, Shared, shared_workers

pytestmark = pytest.mark.xdist_group("complaints")

APP = "tests.worker.apps.contention_complaints"


@pytest.fixture(scope="module")
def store(redis_server: RedisServer) -> Iterator[Proxy]:
    """What stands between the worker and its store."""
    proxy = Proxy(redis_server.host, redis_server.port)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer, store: Proxy) -> Iterator[Shared]:
    locks = store.url(fresh_databases(redis_server).locks)
    folder = tmp_path_factory.mktemp("complaints")
    with shared_workers(folder, redis_server, APP, locks=locks, may_log=[r"StoreUnavailable"]) as shared:
        yield shared


@pytest.fixture
def key() -> str:
    return f"key-{uuid.uuid4().hex[:8]}"


def test_5_a_tasks_own_retry_is_not_blocked_by_its_own_lock(shared: Shared, key: str) -> None:
    result = shared.tasks.once.delay(key, 4)
    assert result.get(timeout=PATIENCE) == "done"
    assert len(shared.journal.runs(key)) == 5
    assert shared.journal.entries("skipped", key=key) == []


class Test6:
    """``send_task`` and beat bypass the lock."""

    def test_a_task_sent_by_name_is_locked(self, shared: Shared, key: str) -> None:
        with shared.held_by_a_task(key):
            result = shared.tasks.app.send_task(shared.tasks.once.name, (key,))
            assert result.get(timeout=PATIENCE) == "skipped"

    def test_a_task_sent_by_beat_is_locked(self, shared: Shared, key: str) -> None:
        app = shared.tasks.app
        entry = ScheduleEntry("every second", shared.tasks.once.name, schedule=schedule(1), args=(key,), app=app)
        scheduler = Scheduler(app=app, lazy=True)
        with shared.held_by_a_task(key):
            assert scheduler.apply_async(entry, advance=False).get(timeout=PATIENCE) == "skipped"
        shared.wait_until_free(key)
        assert scheduler.apply_async(entry, advance=False).get(timeout=PATIENCE) == "done"

    def test_a_task_unknown_to_the_sender_is_locked(self, shared: Shared, key: str) -> None:
        from celery import Celery

        sender = Celery("sender", broker=shared.settings.broker, backend=shared.settings.results, set_as_current=False)
        with shared.held_by_a_task(key):
            assert sender.send_task(shared.tasks.once.name, (key,)).get(timeout=PATIENCE) == "skipped"
        sender.close()


class Test8:
    """A duplicate inside a chain or chord loses the rest."""

    def test_nobody_waits_for_ever_behind_a_duplicate_in_a_chain(self, shared: Shared, key: str) -> None:
        with shared.held_by_a_task(key) as holder:
            last = chain(shared.tasks.once.s(key), shared.tasks.add.s("1"), shared.tasks.add.s("2")).apply_async()
            with pytest.raises(TaskRevokedError, match=holder.id):
                last.get(timeout=PATIENCE)
            assert isinstance(last.parent.get(timeout=PATIENCE, propagate=False), TaskRevokedError)
            assert last.parent.state == last.state == states.REVOKED

    def test_a_duplicate_in_a_chords_header_does_not_keep_its_body_from_running(self, shared: Shared, key: str) -> None:
        with shared.held_by_a_task(key):
            header = [shared.tasks.once.s(key), shared.tasks.once.s(f"{key}-other")]
            result = chord(header, shared.tasks.add.s("body")).apply_async()
            assert result.get(timeout=PATIENCE) == "['skipped', 'done']+body"

    def test_a_duplicate_that_is_retried_loses_nothing(self, shared: Shared, key: str) -> None:
        with shared.lock(key):
            link = shared.tasks.once.s(key).set(lock={"on_contention": "retry", "skip_result": None})
            last = chain(link, shared.tasks.add.s("1")).apply_async()
            eventually(lambda: last.parent.state == states.RETRY, PATIENCE, "the state RETRY")
        assert last.get(timeout=PATIENCE) == "done+1"


def test_9_a_dropped_duplicate_is_seen_in_its_state_the_log_and_a_signal(shared: Shared, key: str) -> None:
    with shared.held_by_a_task(key) as holder:
        result = shared.tasks.once.delay(key)
        assert result.get(timeout=PATIENCE) == "skipped"
        assert result.state == states.SUCCESS
        (told,) = shared.journal.wait_for("skipped", id=result.id)
        assert told["holder"] == holder.id
        shared.worker.wait_for_log(rf"\[{result.id}\] skipped: lock '{key}' is held by .*\[{holder.id}\]")


@dataclasses.dataclass
class Order:
    number: int


class Test10:
    """Surprising keys."""

    def test_defaults_keywords_and_positions_make_no_difference(self, shared: Shared) -> None:
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
            ((1,), {}),
            ((1, 2), {}),
            ((1,), {"second": 2}),
            ((), {"first": 1}),
            ((), {"second": 2, "first": 1, "third": None}),
        ]
        task = shared.tasks.keyed
        keys = {task.apply_async(*call).get(timeout=PATIENCE) for call in calls}
        keys |= {task.apply(*call).get() for call in calls}
        keys |= {task(*args, **kwargs) for args, kwargs in calls}
        assert len(keys) == 1
        assert task(1, 3) not in keys
        assert task("1") not in keys

    @pytest.mark.parametrize(
        "value",
        [
            uuid.UUID(int=7),
            Decimal("1.10"),
            datetime(2026, 11, 20, 9, tzinfo=timezone.utc),
            {"b": [1, (2, 3)], "a": {1: None}},
            (1, 2),
            "ü",
            1.5,
        ],
        ids=repr,
    )
    def test_a_value_has_one_key_before_and_after_the_wire(self, shared: Shared, value: Any) -> None:
        task = shared.tasks.keyed
        keys = {task.delay(value).get(timeout=PATIENCE), task.apply((value,)).get(), task(value)}
        assert len(keys) == 1
        assert task("another") not in keys

    def test_a_bound_tasks_self_does_not_count(self, shared: Shared) -> None:
        without_self = shared.tasks.keyed_without_self
        assert without_self.delay(1).get(timeout=PATIENCE) == without_self(1, 2) != without_self(2)

    def test_an_object_that_is_no_value_is_refused_and_not_keyed_by_its_address(self, shared: Shared) -> None:
        from celery_distlock import LockKeyError

        with pytest.raises(LockKeyError, match="first"):
            shared.tasks.keyed(object())
        assert shared.tasks.keyed(Order(7)) == shared.tasks.keyed(Order(7)) != shared.tasks.keyed(Order(8))


def test_13_a_skipped_duplicate_does_not_free_the_owners_lock(shared: Shared, key: str) -> None:
    with shared.held_by_a_task(key) as holder:
        for _ in range(5):
            assert shared.tasks.once.delay(key).get(timeout=PATIENCE) == "skipped"
        (now,) = shared.lock(key).holders()
        assert now["id"] == holder.id
    assert shared.journal.overlaps(key) == []


def test_14_a_publication_that_fails_leaves_no_lock(shared: Shared, key: str) -> None:
    at_once = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
    connect = shared.tasks.app.connection_for_write
    nowhere = connect(f"pyamqp://127.0.0.1:{free_port()}//", transport_options=at_once)
    with nowhere, pytest.raises(OperationalError):
        shared.tasks.once.apply_async((key,), connection=nowhere, retry=False)
    assert not shared.lock(key).locked()
    assert shared.tasks.once.delay(key).get(timeout=PATIENCE) == "done"


@pytest.mark.parametrize("way", ["direct", "eager"])
def test_15_a_direct_call_releases_its_lock(shared: Shared, key: str, way: str) -> None:
    held = shared.tasks.keyed(key) if way == "direct" else shared.tasks.keyed.apply((key,)).get()
    assert not shared.lock(held).locked()
    with pytest.raises(ZeroDivisionError):
        _ = shared.tasks.divide(1, 0) if way == "direct" else shared.tasks.divide.apply((1, 0)).get()
    assert not shared.lock("division").locked()


class Test16:
    """Encrypted connections. Sentinel and Cluster are not supported yet."""

    @pytest.fixture
    def tls(self, tmp_path: Path) -> Iterator[str]:
        """The address of a server that speaks TLS only."""
        program, openssl = executable(), shutil.which("openssl")
        if program is None or openssl is None:
            missing("redis-server" if program is None else "openssl")
        certificate, private = tmp_path / "cert.pem", tmp_path / "key.pem"
        subprocess.run(
            [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
             "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(private), "-out", str(certificate)],
            check=True, capture_output=True,
        )  # fmt: skip
        port = free_port()
        server = Process(
            [program, "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", "",
             "--dir", str(tmp_path), "--tls-cert-file", str(certificate), "--tls-key-file", str(private),
             "--tls-auth-clients", "no", "--tls-ca-cert-file", str(certificate)],
            name="redis-server with TLS", log=tmp_path / "redis.log",
        )  # fmt: skip
        server.wait_for_log("Ready to accept connections", 10)
        yield f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}"
        server.end()

    def test_locks_live_behind_tls(self, tls: str) -> None:
        with Lock("k", url=tls) as lock:
            assert not Lock("k", url=tls).acquire(blocking=False)
            lock.check()
        assert not lock.locked()

    def test_a_server_that_cannot_prove_who_it_is_is_not_trusted(self, tls: str) -> None:
        from celery_distlock import StoreUnavailable

        with pytest.raises(StoreUnavailable, match=r"(?i)certificate"):
            Lock("k", url=tls.partition("?")[0]).acquire()


class Test18:
    """A store outage is taken for "somebody has it", and the task does nothing without a word."""

    @contextlib.contextmanager
    def down(self, store: Proxy) -> Iterator[None]:
        store.refuse()
        store.cut()
        try:
            yield
        finally:
            store.accept()

    def test_a_task_that_skips_when_contended_is_not_skipped(self, shared: Shared, store: Proxy, key: str) -> None:
        with self.down(store):
            result = shared.tasks.once.delay(key)
            eventually(lambda: result.state == states.RETRY, PATIENCE, "the state RETRY")
            assert shared.journal.entries(key=key) == []
        assert result.get(timeout=PATIENCE) == "done"
        assert shared.journal.entries("skipped", key=key) == []

    def test_asking_a_store_that_is_down_is_an_error_for_everybody(self) -> None:
        from celery_distlock import StoreUnavailable

        url = f"redis://127.0.0.1:{free_port()}/0"
        lock = Lock("k", url=url)
        for ask in (lock.acquire, lambda: lock.acquire(blocking=False), lock.locked, open_store(url).holders):
            with pytest.raises(StoreUnavailable):
                ask()
