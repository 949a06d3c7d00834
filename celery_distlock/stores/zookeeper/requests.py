"""What is asked of the server. Each function returns a :data:`~celery_distlock.stores.zookeeper.session.Request`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery_distlock.stores.zookeeper.session import Request

__all__ = [
    "Request",
    "children",
    "create",
    "delete",
    "ensure",
    "enter",
    "found",
    "get",
    "put",
    "replace",
    "sync",
    "vanish",
    "with_record",
]


def sync(path: str) -> Request:
    """Have the server catch up with its leader, which must know of our session, before it answers what follows."""
    return lambda client: client.sync_async(path)


def children(path: str) -> Request:
    """Ask for the names of a node's children."""
    return lambda client: client.get_children_async(path)


def get(path: str, watch: Callable[[Any], None] | None = None) -> Request:
    """Ask for a node's data and stat; ``watch`` is called once when it is written or deleted, if it exists now."""
    return lambda client: client.get_async(path, watch=watch)


def enter(path: str, data: bytes) -> Request:
    """Create an ephemeral node with a sequence number; the answer is its path and its stat."""
    return lambda client: client.create_async(path, data, ephemeral=True, sequence=True, include_data=True)


def found(path: str, first: str, data: bytes) -> Request:
    """Create a node and its first child, ephemeral, in one step; the answer has the step's number.

    The former is removed by the servers if nobody does so after its last child has gone: that one's session may end.
    """

    def send(client: Any) -> Any:
        transaction = client.transaction()
        transaction.create(path)
        client.first_container(transaction)
        transaction.create(first, data, ephemeral=True)
        return client.commit(transaction)

    return send


def vanish(path: str, last: str) -> Request:
    """Delete a node and its last child, in one step; nothing is deleted if there are others."""

    def send(client: Any) -> Any:
        transaction = client.transaction()
        transaction.delete(last)
        transaction.delete(path)
        return transaction.commit_async()

    return send


def create(path: str, data: bytes = b"") -> Request:
    """Create a node that stays."""
    return lambda client: client.create_async(path, data)


def ensure(path: str) -> Request:
    """Create a node that stays, and those above it, unless they exist."""
    return lambda client: client.ensure_path_async(path)


def put(path: str, data: bytes, version: int = -1) -> Request:
    """Write a node; the answer is its stat."""
    return lambda client: client.set_async(path, data, version=version)


def delete(path: str) -> Request:
    """Delete a node that has no children."""
    return lambda client: client.delete_async(path)


def replace(old: str, version: int, new: str, data: bytes) -> Request:
    """Put one ephemeral node, of this session, in the place of another one, in one step."""

    def send(client: Any) -> Any:
        transaction = client.transaction()
        transaction.delete(old, version)
        transaction.create(new, data, ephemeral=True)
        return transaction.commit_async()

    return send


def with_record(path: str, record: str, data: bytes) -> Request:
    """Delete a node and create another one that stays, in one step."""

    def send(client: Any) -> Any:
        transaction = client.transaction()
        transaction.delete(path)
        transaction.create(record, data)
        return transaction.commit_async()

    return send
