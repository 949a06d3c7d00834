"""What is asked of the server. Each function returns a :data:`~celery_distlock.stores.zookeeper.session.Request`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kazoo.protocol.serialization import CheckVersion, Delete, SetData

from celery_distlock.stores.zookeeper.client import Client
from celery_distlock.stores.zookeeper.session import Request

__all__ = [
    "Operation",
    "Request",
    "absent",
    "children",
    "create",
    "delete",
    "deleted",
    "ensure",
    "enter",
    "exists",
    "get",
    "made",
    "put",
    "rewritten",
    "sealed",
    "sync",
    "there",
    "together",
    "unsealed",
    "written",
]

#: Returns what is to be done in a transaction, as kazoo writes it. Our paths need none of its care: they are complete.
Operation = Callable[[Client], Any]


def sync(path: str) -> Request:
    """Have the server catch up with its leader before it answers what follows.

    To a session that is over, or elsewhere, a leader refuses it; a follower does not tell what its leader said of that.
    """
    return lambda client: client.sync_async(path)


def children(path: str) -> Request:
    """Ask for the names of a node's children."""
    return lambda client: client.get_children_async(path)


def get(path: str, watch: Callable[[Any], None] | None = None) -> Request:
    """Ask for a node's data and stat; ``watch`` is called once when it is written or deleted, if it exists now."""
    return lambda client: client.get_async(path, watch=watch)


def exists(path: str) -> Request:
    """Ask for a node's stat; the answer is None if it is not there."""
    return lambda client: client.exists_async(path)


def enter(path: str, data: bytes) -> Request:
    """Create an ephemeral node with a sequence number; the answer is its path and its stat."""
    return lambda client: client.create_async(path, data, ephemeral=True, sequence=True, include_data=True)


def create(path: str, data: bytes = b"") -> Request:
    """Create a node that stays."""
    return lambda client: client.create_async(path, data)


def ensure(path: str) -> Request:
    """Create a node that stays, and those above it, unless they exist."""
    return lambda client: client.ensure_path_async(path)


def put(path: str, data: bytes, version: int = -1) -> Request:
    """Write a node; the answer is its stat."""
    return lambda client: client.set_async(path, data, version=version)


def delete(path: str, version: int = -1) -> Request:
    """Delete a node that has no children."""
    return lambda client: client.delete_async(path, version=version)


# -- several in one step ----------------------------------------------------------------------------------------------


def together(*operations: Operation) -> Request:
    """Do all of this in one step, or nothing of it; the answer has the step's number."""
    return lambda client: client.commit([operation(client) for operation in operations])


def made(path: str, data: bytes = b"", *, ephemeral: bool = False, container: bool = False) -> Operation:
    """Create a node.

    Arguments:
        path: its path.
        data: what it tells.
        ephemeral: it ends with our session.
        container: it is removed by the servers some time after its last child has gone.
    """
    return lambda client: client.creation(path, data, ephemeral=ephemeral, container=container)


def written(path: str, data: bytes, version: int) -> Operation:
    """Write a node."""
    return lambda client: SetData(path, data, version)


def deleted(path: str, version: int = -1) -> Operation:
    """Delete a node that has no children."""
    return lambda client: Delete(path, version)


def there(path: str, version: int = -1) -> Operation:
    """See that a node is there."""
    return lambda client: CheckVersion(path, version)


def absent(path: str) -> tuple[Operation, ...]:
    """See that a node is not there; the one above it must be."""
    return made(path), deleted(path)


# A version number begins anew when a node is deleted and made again. Where that must be told apart, a node has a seal:
# one child, whose name is used once.


def sealed(path: str, data: bytes, seal: str) -> tuple[Operation, ...]:
    """Create a node and its seal."""
    return made(path, data), made(f"{path}/{seal}")


def rewritten(path: str, data: bytes, seal: str, version: int) -> tuple[Operation, ...]:
    """Write the very node that had this seal and this version."""
    return there(f"{path}/{seal}"), written(path, data, version)


def unsealed(path: str, seal: str, version: int = -1) -> tuple[Operation, ...]:
    """Delete the very node that had this seal and this version."""
    return deleted(f"{path}/{seal}"), deleted(path, version)
