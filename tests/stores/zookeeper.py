"""What tests do behind the back of a ZooKeeper store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kazoo.exceptions import NoNodeError

from celery_distlock.stores.base import LockStore
from celery_distlock.stores.zookeeper import ZooKeeperStore
from tests.support.waiting import eventually
from tests.support.zookeeper_ensemble import ZooKeeperEnsemble
from tests.support.zookeeper_server import ZooKeeperServer

__all__ = ["SHORT_SESSION", "Behind", "client_of", "expire_session"]

#: Seconds. The shortest session time-out that the tests' servers grant is two ticks, 0.4 s.
SHORT_SESSION = 0.6


class Behind:
    """The nodes of a chroot: what tests look at and tamper with.

    Arguments:
        client: of kazoo's, with that chroot.
    """

    def __init__(self, client: Any) -> None:
        self.client = client

    def names(self, path: str) -> list[str]:
        self.client.sync(path)
        try:
            return sorted(self.client.get_children(path))
        except NoNodeError:
            return []

    def keys(self) -> list[str]:
        return self.names("/distlock/locks")

    def contenders(self, key: str = "k") -> list[str]:
        """Return paths, in order."""
        names = self.names(f"/distlock/locks/{key}")
        return [f"/distlock/locks/{key}/{name}" for name in sorted(names, key=lambda name: name[-10:])]

    def told(self, path: str) -> Mapping[str, Any]:
        data: Mapping[str, Any] = json.loads(self.client.get(path)[0])
        return data

    def session_of(self, path: str) -> int:
        return int(self.client.get(path)[1].ephemeralOwner)


def client_of(store: LockStore) -> Any:
    """Return the kazoo client of a store that is connected."""
    assert isinstance(store, ZooKeeperStore)
    client = store._ours.session._client
    assert client is not None
    return client


def expire_session(server: ZooKeeperServer | ZooKeeperEnsemble, store: LockStore) -> None:
    """End a store's session, as the server does when its time is over, and wait until the client knows."""
    client = client_of(store)
    old = client.client_id[0]

    def is_another() -> bool:
        if client.client_id is None or client.client_id[0] == old:
            return False
        return bool(client.client_id[0])

    server.expire(client)
    eventually(is_another, 6, "another session")
