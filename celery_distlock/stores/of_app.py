"""Which store an app's locks live in: one per app, made on first use."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from celery_distlock.options import store_settings
from celery_distlock.stores import open_store
from celery_distlock.stores.base import LockStore

__all__ = ["close_stores", "forget_store", "store_of", "use_store"]

_stores: weakref.WeakKeyDictionary[Any, LockStore] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def store_of(app: Any) -> LockStore:
    """Return the store named by ``app.conf`` (``distlock_url`` and what stands in for it).

    Arguments:
        app: a Celery app.

    Raises:
        LockConfigError: no store is configured, or the settings are wrong.
    """
    store = _stores.get(app)
    if store is None:
        with _lock:
            store = _stores.get(app)
            if store is None:
                settings = store_settings(app.conf)
                assert settings.url is not None
                store = open_store(settings.url, prefix=settings.prefix, options=settings.options)
                _stores[app] = store
    return store


def close_stores() -> None:
    """Close the stores that this process has used; for a process that ends without calling what others do then."""
    for store in list(_stores.values()):
        store.close()


def use_store(app: Any, store: LockStore) -> None:
    """Make ``store`` the app's, whatever its configuration says, until :func:`forget_store`. For tests."""
    forget_store(app)
    with _lock:
        _stores[app] = store


def forget_store(app: Any) -> None:
    """Close the app's store; the next use reads the configuration anew. For tests and reconfiguration."""
    with _lock:
        store = _stores.pop(app, None)
    if store is not None:
        store.close()
