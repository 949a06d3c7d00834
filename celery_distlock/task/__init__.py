"""Tasks that run only while they hold a lock: the base class, and one attempt at running it."""

from celery_distlock.stores.of_app import forget_store, store_of
from celery_distlock.task.base import LockedTask
from celery_distlock.task.contention import Contention

__all__ = ["Contention", "LockedTask", "forget_store", "store_of"]
