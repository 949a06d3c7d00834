"""Stores of locks, by URL."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, cast

from celery_distlock.errors import LockConfigError
from celery_distlock.stores.base import LockStore

__all__ = ["LockStore", "open_store"]

_GROUP = "celery_distlock.stores"

#: Scheme → where its store is, and the extra that it needs.
_BUILT_IN = {
    "memory": ("celery_distlock.stores.memory:MemoryStore", ""),
    "redis": ("celery_distlock.stores.redis:RedisStore", "redis"),
    "redis+socket": ("celery_distlock.stores.redis:RedisStore", "redis"),
    "rediss": ("celery_distlock.stores.redis:RedisStore", "redis"),
    "zookeeper": ("celery_distlock.stores.zookeeper:ZooKeeperStore", "zookeeper"),
}

#: Extra → the package that it brings.
_PACKAGES = {"redis": "redis", "zookeeper": "kazoo"}


class _StoreClass(Protocol):
    def from_url(self, url: str, *, prefix: str, options: Mapping[str, Any] | None) -> LockStore: ...


def open_store(url: str, *, prefix: str = "distlock", options: Mapping[str, Any] | None = None) -> LockStore:
    """Open the store that a URL names. Nothing is connected yet.

    Third parties register a class with a ``from_url`` like :meth:`RedisStore.from_url` as an entry point of the
    group ``celery_distlock.stores``, named after the scheme.

    Arguments:
        url: the scheme chooses the store.
        prefix: separates applications that share a store.
        options: the store's own.

    Raises:
        LockConfigError: no such store, or it cannot use these settings.
    """
    scheme = url.partition("://")[0].lower() if isinstance(url, str) and "://" in url else ""
    return _store_class(scheme).from_url(url, prefix=prefix, options=options)


def _store_class(scheme: str) -> _StoreClass:
    if scheme in _BUILT_IN:
        path, extra = _BUILT_IN[scheme]
        module, _, name = path.partition(":")
        try:
            return cast(_StoreClass, getattr(import_module(module), name))
        except ModuleNotFoundError as exc:
            if not extra or (exc.name or "").partition(".")[0] != _PACKAGES[extra]:
                raise
            raise LockConfigError(
                f'distlock_url: {scheme}:// needs the package {exc.name!r}: pip install "celery-distlock[{extra}]"'
            ) from exc
    registered: dict[str, EntryPoint] = {point.name.lower(): point for point in entry_points(group=_GROUP)}
    if scheme in registered:
        return cast(_StoreClass, registered[scheme].load())
    # The URL itself stays out of the message: it may contain a password.
    known = ", ".join(f"{name}://" for name in sorted({*_BUILT_IN, *registered}))
    raise LockConfigError(f"distlock_url: the scheme {scheme!r} is none of {known}")
