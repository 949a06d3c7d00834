"""Locks in Redis. Needs ``pip install "celery-distlock[redis]"``."""

from __future__ import annotations

from celery_distlock.stores.redis.store import RedisStore

__all__ = ["RedisStore"]
