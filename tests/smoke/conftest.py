"""The set-up of the smoke tests: pytest-celery with Redis for everything and two workers.

Where no Docker engine answers, :mod:`tests.smoke.local_docker` stands in for it.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import celery._state
import docker
import pytest
from celery import Celery
from pytest_celery import (
    DEFAULT_WORKER_CONTAINER_TIMEOUT,
    DEFAULT_WORKER_VOLUME,
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestSetup,
    CeleryTestWorker,
    CeleryWorkerCluster,
    CeleryWorkerContainer,
    RedisTestBackend,
    RedisTestBroker,
)
from pytest_docker_tools import build, container, fxtr

from tests.smoke import tasks
from tests.smoke.local_docker import LocalDocker
from tests.support import redis_server
from tests.support.servers import missing

ROOT = Path(__file__).parents[2]
#: Seconds after which the messages of a dead worker are delivered again.
VISIBILITY_TIMEOUT = 3


def _engine() -> Any:
    with warnings.catch_warnings():
        # When nobody answers, docker's client forgets to close the socket it tried.
        warnings.simplefilter("ignore", ResourceWarning)
        with contextlib.suppress(docker.errors.DockerException):
            return docker.from_env()
        gc.collect()
    return None


@pytest.fixture(scope="session")
def docker_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The plugin's client: Docker where an engine answers, local processes elsewhere."""
    client = _engine()
    if client is None:
        if redis_server.executable() is None:
            missing("redis-server")
        with pytest.MonkeyPatch.context() as patch:
            # In a container the plugin would expect its own containers beside it.
            patch.setattr("pytest_docker_tools.wrappers.container.tests_inside_container", lambda: False)
            yield LocalDocker(tmp_path_factory.mktemp("docker"))
    else:
        yield client
        client.close()


class SmokeWorkerContainer(CeleryWorkerContainer):
    """A worker with our tasks, in an image with our package."""

    @classmethod
    def tasks_modules(cls) -> set[ModuleType]:
        return {tasks}

    @classmethod
    def command(cls, *args: str, **options: Any) -> list[str]:
        command: list[str] = super().command(
            "--concurrency=2", "--without-mingle", "--without-gossip", *args, **options
        )
        return command


class SmokeWorker(CeleryTestWorker):
    """A node of the set-up."""


class SmokeBroker(RedisTestBroker):
    """The broker of the set-up."""


class SmokeBackend(RedisTestBackend):
    """The result back end of the set-up."""


class SmokeSetup(CeleryTestSetup):
    """Two workers, and quick redelivery."""

    @classmethod
    def update_app_config(cls, app: Celery) -> None:
        app.conf.broker_transport_options = {
            "visibility_timeout": VISIBILITY_TIMEOUT,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        }
        app.conf.broker_connection_retry_on_startup = True


celery_base_worker_image = build(path=str(ROOT), dockerfile="tests/smoke/Dockerfile", tag="celery-distlock/smoke")


def _worker_container() -> Any:
    return container(
        image="{celery_base_worker_image.id}",
        environment=fxtr("default_worker_env"),
        network="{default_pytest_celery_network.name}",
        volumes={"{default_worker_volume.name}": DEFAULT_WORKER_VOLUME},
        wrapper_class=SmokeWorkerContainer,
        timeout=DEFAULT_WORKER_CONTAINER_TIMEOUT,
        command=fxtr("default_worker_command"),
    )


default_worker_container = _worker_container()
second_worker_container = _worker_container()


@pytest.fixture
def default_worker_container_cls() -> type[CeleryWorkerContainer]:
    return SmokeWorkerContainer


@pytest.fixture
def default_worker_cls() -> type[CeleryTestWorker]:
    return SmokeWorker


@pytest.fixture
def celery_worker_cluster(
    default_worker_container: SmokeWorkerContainer,
    second_worker_container: SmokeWorkerContainer,
    celery_setup_app: Celery,
) -> CeleryWorkerCluster:
    containers = (default_worker_container, second_worker_container)
    return CeleryWorkerCluster(*(SmokeWorker(one, celery_setup_app) for one in containers))


@pytest.fixture
def celery_broker_cluster(default_redis_broker: Any) -> Iterator[CeleryBrokerCluster]:
    broker = SmokeBroker(default_redis_broker)
    yield CeleryBrokerCluster(broker)
    broker.teardown()


@pytest.fixture
def celery_backend_cluster(default_redis_backend: Any) -> Iterator[CeleryBackendCluster]:
    backend = SmokeBackend(default_redis_backend)
    yield CeleryBackendCluster(backend)
    backend.teardown()


@pytest.fixture
def celery_setup_cls() -> type[CeleryTestSetup]:
    return SmokeSetup


@pytest.fixture(autouse=True)
def current_app_is_restored() -> Iterator[None]:
    """Undo that the plugin makes its application the current one."""
    before = celery._state._tls.current_app
    yield
    celery._state._set_current_app(before)
