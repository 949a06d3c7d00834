"""The store contract, on every store there is."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from celery_distlock.lease import Lease
from celery_distlock.stores import open_store
from celery_distlock.stores.base import LockStore
from celery_distlock.stores.memory import MemoryStore
from celery_distlock.testing import PassingOnContract, QueueingContract, StoreContract, UniquenessContract
from tests.stores.zookeeper import SHORT_SESSION, expire_session
from tests.support.proxy import Proxy
from tests.support.zookeeper_ensemble import ZooKeeperEnsemble
from tests.support.zookeeper_server import ZooKeeperServer

StartProxy = Callable[[ZooKeeperServer], Proxy]

#: The test that waits until a holder's session has expired by itself.
OF_SILENCE = StoreContract.test_a_silent_holders_key_is_granted_after_its_deadline_and_within_ttl_and_slack.__name__


#: Seconds of silence after which who waits loses its place, where that is the subject: half of them must not pass
#: unnoticed between two of a test's steps.
CLAIM_TTL = 2.0


class TestMemoryStore(QueueingContract, UniquenessContract, PassingOnContract):
    claim_ttl = CLAIM_TTL

    @pytest.fixture
    def store(self) -> Iterator[LockStore]:
        store = MemoryStore(f"contract-{uuid.uuid4()}")
        yield store
        store.drop()

    @pytest.fixture
    def other_store(self, store: MemoryStore) -> LockStore:
        return MemoryStore.from_url(store.name)


class TestRedisStore(QueueingContract, UniquenessContract, PassingOnContract):
    claim_ttl = CLAIM_TTL

    @pytest.fixture
    def store(self, redis_url: str) -> Iterator[LockStore]:
        with closing(open_store(redis_url, prefix="contract")) as store:
            yield store

    @pytest.fixture
    def other_store(self, redis_url: str) -> Iterator[LockStore]:
        with closing(open_store(redis_url, prefix="contract")) as store:
            yield store


class InZooKeeper(QueueingContract, UniquenessContract, PassingOnContract):
    """What both kinds of servers have in common. The client whose leases expire talks through a proxy."""

    sessions = True
    keeps_tickets = False
    claim_ttl = CLAIM_TTL

    @pytest.fixture
    def store(self, url: str) -> Iterator[LockStore]:
        with closing(open_store(url, prefix="contract")) as store:
            yield store

    @pytest.fixture
    def other_store(self, url: str) -> Iterator[LockStore]:
        with closing(open_store(url, prefix="contract")) as store:
            yield store

    @pytest.fixture
    def mortal_store(
        self, request: pytest.FixtureRequest, server: ZooKeeperServer, url: str, proxy: StartProxy
    ) -> Iterator[LockStore]:
        self.server, self.proxy = server, proxy(server)
        chroot = url.rpartition("/")[2]
        # All others' sessions are ended by force, and must last until then.
        is_left_to_expire = request.function.__name__ == OF_SILENCE
        options = f"?session_timeout={SHORT_SESSION}" if is_left_to_expire else ""
        address = f"zookeeper://{self.proxy.host}:{self.proxy.port}/{chroot}{options}"
        with closing(open_store(address, prefix="contract")) as store:
            self.mortal = store
            yield store

    def expire(self, *leases: Lease, meanwhile: Callable[[], object] = lambda: None) -> None:
        meanwhile()
        expire_session(self.server, self.mortal)

    def fall_silent(self, lease: Lease) -> None:
        self.proxy.refuse()
        self.proxy.cut()


class TestZooKeeperStore(InZooKeeper):
    @pytest.fixture
    def server(self, zookeeper_server: ZooKeeperServer) -> ZooKeeperServer:
        return zookeeper_server

    @pytest.fixture
    def url(self, zookeeper_url: str) -> str:
        return zookeeper_url


class TestZooKeeperStoreOnAnEnsemble(InZooKeeper):
    @pytest.fixture
    def server(self, ensemble: ZooKeeperEnsemble) -> ZooKeeperServer:
        return ensemble.followers()[0]

    @pytest.fixture
    def url(self, ensemble_url: str) -> str:
        return ensemble_url


@pytest.mark.slow
class TestZooKeeperStoreWhileItsEnsembleLosesLeaders(InZooKeeper):
    """Again and again the leader is killed and comes back: commands take longer, and answers are the same."""

    # An election starts the time of all sessions anew, and those who wait are silent meanwhile.
    slack = 15.0
    claim_ttl = 4.0
    # While leaders are elected a thousand enter more slowly than their places last.
    test_a_thousand_waiters_are_served_in_order = None

    @pytest.fixture(autouse=True)
    def losing_leaders(self, ensemble: ZooKeeperEnsemble) -> Iterator[None]:
        with ensemble.losing_leaders():
            yield

    @pytest.fixture
    def url(self, ensemble_url: str) -> str:
        return f"{ensemble_url}?timeout=30"

    @pytest.fixture
    def mortal_store(self, ensemble: ZooKeeperEnsemble, url: str, proxy: StartProxy) -> Iterator[LockStore]:
        self.ensemble = ensemble
        self.proxies = [proxy(server) for server in ensemble.servers]
        hosts = ",".join(f"{each.host}:{each.port}" for each in self.proxies)
        address = f"zookeeper://{hosts}/{url.rpartition('/')[2]}&session_timeout={SHORT_SESSION}"
        with closing(open_store(address, prefix="contract")) as store:
            self.mortal = store
            yield store

    def expire(self, *leases: Lease, meanwhile: Callable[[], object] = lambda: None) -> None:
        meanwhile()
        expire_session(self.ensemble, self.mortal)

    def fall_silent(self, lease: Lease) -> None:
        for each in self.proxies:
            each.refuse()
            each.cut()
