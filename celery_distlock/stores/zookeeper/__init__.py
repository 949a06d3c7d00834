"""Locks in ZooKeeper. Needs ``pip install "celery-distlock[zookeeper]"``."""

from __future__ import annotations

from celery_distlock.stores.zookeeper.store import ZooKeeperStore

__all__ = ["ZooKeeperStore"]
