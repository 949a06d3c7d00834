"""What a store of locks holds, seen from behind its back: in Redis as in ZooKeeper, by its URL."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import redis
from kazoo.exceptions import NoNodeError

from celery_distlock.stores.zookeeper.layout import Line
from tests.support.waiting import eventually
from tests.support.zookeeper_server import connected

__all__ = [
    "RECORDS",
    "TOMBSTONES",
    "Behind",
    "assert_nothing_left",
    "behind",
    "left_in",
    "records_in",
]

#: What may stay for its time: that a place was given away, and that a run has done its work.
TOMBSTONES, RECORDS = "tombstones", "records"


class Behind(Protocol):
    """One store."""

    def left(self, but: Sequence[str]) -> list[str]:
        """Return what there is, but for what is there always and for what belongs to these kinds."""

    def records(self) -> list[str]:
        """Return the keys of the completion records."""

    def held(self) -> list[str]:
        """Return the keys that somebody holds, or has held lately."""

    def about(self, key: str) -> list[str]:
        """Return what there is of a key, its lock's and its unique messages'."""

    def waiting(self, key: str) -> int:
        """Return how many stand in line for a key."""

    def listening(self) -> int:
        """Return how many connections there are on which offers are heard of, if those are others than the store's."""


_IN_REDIS = {TOMBSTONES: "}:t:", RECORDS: "}:c:"}


class _InRedis:
    def __init__(self, client: Any) -> None:
        self._client = client

    def left(self, but: Sequence[str]) -> list[str]:
        names = [str(name) for name in self._client.scan_iter(count=1000)]
        # One for each shard.
        left = [name for name in names if not name.endswith("}:meta")]
        assert all(self._client.ttl(name) != -1 for name in left), f"never expires: {left}"
        return [name for name in left if not any(_IN_REDIS[kind] in name for kind in but)]

    def records(self) -> list[str]:
        names = [str(name).partition(":c:")[2].partition(":") for name in self._client.scan_iter("*:c:*", count=1000)]
        return sorted(rest[: int(length)] for length, _, rest in names)

    def held(self) -> list[str]:
        return sorted(str(name).rpartition(":h:")[2] for name in self._client.scan_iter("*:h:*", count=1000))

    def about(self, key: str) -> list[str]:
        return [str(name) for name in self._client.scan_iter(f"*{key}*", count=1000)]

    def waiting(self, key: str) -> int:
        return sum(int(self._client.zcard(name)) for name in self._client.scan_iter(f"*:w:{key}"))

    def listening(self) -> int:
        database = str(self._client.get_connection_kwargs()["db"])
        return sum(one["db"] == database for one in self._client.client_list(_type="pubsub"))


class _InZooKeeper:
    def __init__(self, client: Any) -> None:
        self._client = client

    def _names(self, path: str) -> list[str]:
        with contextlib.suppress(NoNodeError):
            return sorted(f"{path}/{name}" for name in self._client.get_children(f"/distlock/{path}"))
        return []

    def _data(self, path: str) -> bytes:
        """Return what a node tells; nothing, if it has just gone."""
        with contextlib.suppress(NoNodeError):
            return bytes(self._client.get(f"/distlock/{path}")[0])
        return b""

    def left(self, but: Sequence[str]) -> list[str]:
        self._client.sync("/")
        # The servers remove the node of a key whose last contender's session has ended.
        keys = [contender for key in self._names("locks") for contender in self._names(key)]
        records = [] if RECORDS in but else self._names("done")
        return [*keys, *self._names("unique"), *self._names("kept"), *records]

    def records(self) -> list[str]:
        told = [data for path in self._names("done") if (data := self._data(path))]
        return sorted(json.loads(data)["key"] for data in told)

    def held(self) -> list[str]:
        return [unquote(key.partition("/")[2]) for key in self._names("locks") if self._names(key)]

    def about(self, key: str) -> list[str]:
        stays = [path for kind in ("unique", "kept", "done") for path in self._names(kind)]
        told = [path for path in stays if key.encode() in self._data(path)]
        return [*(path for path in self._names("locks") if key in path), *told]

    def waiting(self, key: str) -> int:
        line = Line(name.rpartition("/")[2] for name in self._names(f"locks/{key}"))
        return len(line.contenders) - line.placed

    def listening(self) -> int:
        return 0


@contextlib.contextmanager
def behind(url: str) -> Iterator[Behind]:
    """Look behind the store of this URL."""
    if url.startswith("zookeeper:"):
        parts = urlsplit(url)
        with connected(f"{parts.netloc}{parts.path}") as client:
            yield _InZooKeeper(client)
    else:
        with redis.Redis.from_url(url, decode_responses=True) as client:
            yield _InRedis(client)


def left_in(url: str, *, but: Sequence[str] = ()) -> list[str]:
    """Return what is left in a store of locks.

    Arguments:
        url: which one.
        but: the kinds of what may stay for its time.
    """
    with behind(url) as store:
        return store.left(but)


def assert_nothing_left(url: str, *, but: Sequence[str] = (), within: float = 3.0) -> None:
    """Fail unless the store holds nothing, now or within so many seconds."""
    with behind(url) as store:
        eventually(lambda: not store.left(but), within, f"an empty lock store: {store.left(but)}")


def records_in(url: str) -> list[str]:
    """Return the keys of the completion records in a store of locks."""
    with behind(url) as store:
        return store.records()
