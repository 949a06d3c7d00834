"""Fixtures of all tests; ``tests/support/__init__.py`` explains them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support import process as processes
from tests.support import rabbitmq_server
from tests.support import redis_server as redis_servers
from tests.support import zookeeper_server as zookeeper_servers
from tests.support.apps import close_app, load_app
from tests.support.journal import Journal
from tests.support.proxy import Proxy, Target
from tests.support.rabbitmq_server import RabbitMQServer
from tests.support.redis_server import RedisServer
from tests.support.servers import Databases, fresh_databases, missing, place_locks
from tests.support.workers import LoadApp, Settings, StartWorker, Worker
from tests.support.zookeeper_ensemble import ZooKeeperEnsemble
from tests.support.zookeeper_server import ZooKeeperServer

_LOG_TAIL = 6000
_SHARED_LOG_TAIL = 1500
_before: pytest.StashKey[int] = pytest.StashKey()


# Tests in several processes at once (pytest-xdist). Each process has servers of its own.


def pytest_xdist_auto_num_workers() -> int:
    """Return how many: most tests wait most of their time, for a worker's start or for a ttl to pass."""
    # More than sixteen would have nothing to do before the longest group is through.
    return min(16, 2 * len(os.sched_getaffinity(0)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have one process run all tests of RabbitMQ: its server takes ten seconds to start."""
    for item in items:
        if "rabbitmq" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("rabbitmq"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Report a test of a group under the name by which it can be run again, without the ``@group`` behind it."""
    if hasattr(report, "node") and report.nodeid.rfind("@") > report.nodeid.rfind("]"):
        report.nodeid = report.nodeid.rpartition("@")[0]


# What failures tell.


#: Seconds: the time-out of workers' sessions in ZooKeeper. Half of it is relied upon, which is the ttl in most tests.
_SESSION_TIMEOUT = 2.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--locks", choices=("redis", "zookeeper"), default="redis", help="where the workers' locks live")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("locks_in_redis") and item.config.getoption("--locks") != "redis":
        pytest.skip("of locks in Redis")
    item.stash[_before] = len(processes.known())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach what the test's processes wrote to the report of its failure."""
    report = yield
    if report.failed:
        everything = processes.known()
        mine = everything[item.stash.get(_before, 0) :]
        shared = [process for process in everything if process.alive and process not in mine]
        for tail, group in ((_SHARED_LOG_TAIL, shared), (_LOG_TAIL, mine)):
            for process in group:
                report.sections.append((f"output of {process!r}", process.log[-tail:]))
    return report


@pytest.fixture(scope="session", autouse=True)
def no_process_left_behind() -> Iterator[None]:
    """Fail the run if anything that it started is still alive at its end."""
    yield
    strays = processes.leftovers()
    assert not strays, "left behind: " + "; ".join(strays)


# Servers.


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis server for the whole run: tests use it through :func:`databases` and never stop it."""
    if redis_servers.executable() is None:
        missing("redis-server")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def databases(redis_server: RedisServer) -> Databases:
    """Three empty databases, for broker, results and locks."""
    return fresh_databases(redis_server)


@pytest.fixture
def redis_url(databases: Databases) -> str:
    """The URL of an empty database for locks."""
    return databases.locks


@pytest.fixture
def private_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """A factory of Redis servers that the test may freeze, kill and restart; takes the arguments of RedisServer."""
    if redis_servers.executable() is None:
        missing("redis-server")
    numbers = itertools.count(1)
    with ExitStack() as stack:

        def start(**options: Any) -> RedisServer:
            server = RedisServer(tmp_path / f"redis{next(numbers)}", **options)
            stack.callback(server.kill)
            return server

        yield start


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQServer]:
    """A RabbitMQ server for the whole run, started for the first test that wants it."""
    if rabbitmq_server.executable() is None:
        missing("rabbitmq-server")
    server = RabbitMQServer(tmp_path_factory.mktemp("rabbitmq"))
    yield server
    server.stop()


@pytest.fixture
def rabbitmq_url(rabbitmq: RabbitMQServer) -> str:
    """The URL of an empty virtual host."""
    return rabbitmq.fresh_vhost()


@pytest.fixture(scope="session")
def zookeeper_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZooKeeperServer]:
    """A standalone ZooKeeper server for the whole run: tests use it through :func:`zookeeper_url`, never stop it."""
    if zookeeper_servers.executable() is None:
        missing("zookeeper")
    server = ZooKeeperServer(tmp_path_factory.mktemp("zookeeper"))
    yield server
    server.stop()


@pytest.fixture
def zookeeper_url(zookeeper_server: ZooKeeperServer) -> str:
    """The URL of an empty chroot for locks."""
    return zookeeper_server.fresh_chroot()


@pytest.fixture
def private_zookeeper(tmp_path: Path) -> Iterator[Callable[..., ZooKeeperServer]]:
    """A factory of ZooKeeper servers that the test may freeze, kill and restart; arguments of ZooKeeperServer."""
    if zookeeper_servers.executable() is None:
        missing("zookeeper")
    numbers = itertools.count(1)
    with ExitStack() as stack:

        def start(**options: Any) -> ZooKeeperServer:
            server = ZooKeeperServer(tmp_path / f"zookeeper{next(numbers)}", **options)
            stack.callback(server.kill)
            return server

        yield start


@pytest.fixture(scope="session")
def shared_ensemble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZooKeeperEnsemble]:
    """Three ZooKeeper servers for the whole run: tests use them through :func:`ensemble`."""
    if zookeeper_servers.executable() is None:
        missing("zookeeper")
    three = ZooKeeperEnsemble(tmp_path_factory.mktemp("ensemble"))
    yield three
    three.stop()


@pytest.fixture
def ensemble(shared_ensemble: ZooKeeperEnsemble) -> Iterator[ZooKeeperEnsemble]:
    """A ZooKeeper ensemble of which the test may freeze and kill members: it is whole again for the next test."""
    yield shared_ensemble
    shared_ensemble.restore()


@pytest.fixture
def ensemble_url(ensemble: ZooKeeperEnsemble) -> str:
    """The URL of an empty chroot of the ensemble, for locks."""
    return ensemble.fresh_chroot()


@pytest.fixture
def proxy() -> Iterator[Callable[[Target], Proxy]]:
    """A factory of TCP proxies: ``proxy(redis_server)`` stands between its clients and that server."""
    with ExitStack() as stack:

        def start(server: Target) -> Proxy:
            made = Proxy(server.host, server.port)
            stack.callback(made.close)
            return made

        yield start


# Workers.


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """The journal that the test's workers write."""
    return Journal(tmp_path / "journal.jsonl")


@pytest.fixture(scope="session", autouse=True)
def locks_elsewhere(request: pytest.FixtureRequest, no_process_left_behind: None) -> Iterator[None]:
    """With ``--locks zookeeper``, have the locks of all workers live there."""
    if request.config.getoption("--locks") == "redis":
        yield
        return
    server: ZooKeeperServer = request.getfixturevalue("zookeeper_server")
    place_locks(lambda: f"{server.fresh_chroot()}?session_timeout={_SESSION_TIMEOUT}")
    yield
    place_locks(None)


@pytest.fixture
def settings(databases: Databases, journal: Journal) -> Settings:
    """What the test's applications are told: Redis for everything, and the journal; with ``--locks``, another store."""
    return Settings(databases.broker, databases.results, databases.locks, journal.path)


@pytest.fixture
def worker(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[StartWorker]:
    """A factory of worker processes; see :class:`~tests.support.workers.StartWorker`."""
    started: list[Worker] = []

    def start(
        app_module: str,
        settings: Settings | None = None,
        *,
        name: str | None = None,
        conf: Mapping[str, Any] | None = None,
        wait: bool = True,
        **options: Any,
    ) -> Worker:
        known = settings or request.getfixturevalue("settings")
        name = name or f"worker{len(started) + 1}"
        log = tmp_path / f"{name}.log"
        new = Worker(app_module, known.with_conf(conf), log, name=name, **options)
        started.append(new)
        return new.wait_ready() if wait else new

    # Made now, so that it outlives the workers.
    if "settings" not in request.fixturenames:
        request.getfixturevalue("settings")
    if "proxy" in request.fixturenames:
        # Or a worker that is being ended complains of the connection that it has just lost.
        request.getfixturevalue("proxy")
    yield start
    for one in started:
        one.end()
    complaints = {one.name: one.complaints() for one in started}
    assert not any(complaints.values()), "\n".join(
        f"{name} logged:\n{record}" for name, records in complaints.items() for record in records
    )


@pytest.fixture
def load(request: pytest.FixtureRequest) -> Iterator[LoadApp]:
    """The test's own copy of an application; see :class:`~tests.support.workers.LoadApp`."""
    with ExitStack() as stack:

        def load(app_module: str, settings: Settings | None = None, *, conf: Mapping[str, Any] | None = None) -> Any:
            known = settings or request.getfixturevalue("settings")
            module = load_app(app_module, known.with_conf(conf).env)
            stack.callback(close_app, module.app)
            return module

        yield load
