"""Celery applications of tests: made from the environment, the same in the worker and in the test.

A module below ``tests/worker/apps`` says ``app = make_app(__name__)`` and defines tasks. A worker imports it with the
environment that :class:`~tests.support.workers.Settings` made; the test gets a copy of its own, with the same settings,
from :func:`load_app`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import celery.signals
from celery import Celery
from celery.utils.dispatch import Signal
from kombu import pools

import celery_distlock.signals
from celery_distlock.stores.of_app import forget_store
from tests.support.old_kombu import look_every_second

__all__ = ["close_app", "load_app", "make_app"]


class _App(Celery):
    """An application whose tasks are its own: by default Celery also enters them into every application made later."""

    def task(self, *args: Any, **options: Any) -> Any:
        return super().task(*args, **{"shared": False, **options})


def make_app(name: str, **conf: Any) -> Celery:
    """Return a Celery application configured by the environment.

    ``BROKER_URL``, ``RESULT_BACKEND`` and ``DISTLOCK_URL`` are used where they are set; ``CELERY_TEST_CONF`` is a JSON
    object of further settings, which win over ``conf``.

    Arguments:
        name: the module's ``__name__``.
        conf: the module's own settings.
    """
    look_every_second()
    app = _App(name, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        # Redelivery is looked for every second instead of every hundred.
        broker_transport_options={"unacked_restore_interval": 1, "unacked_restore_throttle": 1},
        worker_redirect_stdouts=False,
    )
    app.conf.update(conf)
    settings = {"BROKER_URL": "broker_url", "RESULT_BACKEND": "result_backend", "DISTLOCK_URL": "distlock_url"}
    app.conf.update({setting: os.environ[var] for var, setting in settings.items() if os.environ.get(var)})
    app.conf.update(json.loads(os.environ.get("CELERY_TEST_CONF", "{}")))
    return app


def close_app(app: Celery) -> None:
    """Close all that the test's copy of an application has opened, rather than leave it to the garbage collector."""
    pool = app._pool
    app.close()
    if pool is not None:
        _forget_pool(pool)
    forget_store(app)
    consumer = getattr(app.backend, "result_consumer", None)
    if consumer is not None:
        consumer.stop()
        # Results that the test still has would open a new connection to unsubscribe, when they are collected.
        consumer.cancel_for = lambda task_id: None
    client = vars(app.backend).get("client")
    if client is not None and hasattr(client, "connection_pool"):
        client.connection_pool.disconnect()


@contextmanager
def _environment(env: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _disconnect(module: str) -> None:
    """Take a module's receivers off all signals: they write to a journal that only workers have, for ever."""
    known = [*vars(celery.signals).values(), *vars(celery_distlock.signals).values()]
    for signal in [each for each in known if isinstance(each, Signal)]:
        signal.receivers = [each for each in signal.receivers if getattr(each[1], "__module__", None) != module]
        signal.sender_receivers_cache.clear()


def load_app(module: str, env: Mapping[str, str]) -> ModuleType:
    """Execute an application's module anew, under this environment, and return it.

    It is not the module that an ``import`` statement returns: each test has an application with connections of its own.
    """
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"no module {module}"
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    with _environment(env):
        # Dataclasses and pickles look their module up by name.
        sys.modules[module] = loaded
        spec.loader.exec_module(loaded)
        _disconnect(module)
        _ = loaded.app.conf.broker_url  # the configuration is read now, in this environment
        loaded.app.finalize()
    return loaded


def _forget_pool(pool: Any) -> None:
    """Close a pool of connections that kombu would keep, by its address, for the next application that has the same."""
    for group in (pools.producers, pools.connections):
        for address, known in list(group.items()):
            if pool in (known, getattr(known, "connections", None)):
                dict.__delitem__(group, address)
    pool.force_close_all()
