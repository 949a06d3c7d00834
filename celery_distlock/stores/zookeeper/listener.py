"""Who is told of offers in this process. Whoever watches a place tells its listener; see ``queueing.py``."""

from __future__ import annotations

import os
from collections.abc import Callable

from celery_distlock.lease import new_owner
from celery_distlock.stores.base import Listener
from celery_distlock.stores.zookeeper.session import Session

__all__ = ["ZooKeeperListener", "listener_named", "listeners_of"]


class ZooKeeperListener(Listener):
    """Hears of offers, in kazoo's thread.

    Arguments:
        session: at whose gaps hints may be lost.
        on_offer, on_gap: see :meth:`Queueing.listen`.
    """

    def __init__(self, session: Session, on_offer: Callable[[str, str], None], on_gap: Callable[[], None]) -> None:
        self.name = new_owner()
        self.session = session
        self.on_offer = on_offer
        self.on_gap = on_gap
        _listening[self.name] = self

    @property
    def closed(self) -> bool:
        """Whether it will never hear anything again."""
        return self.name not in _listening

    def close(self) -> None:
        """Hear nothing more."""
        _listening.pop(self.name, None)


def listener_named(name: str) -> ZooKeeperListener | None:
    """Return the listener of this name, if it still listens."""
    return _listening.get(name)


def listeners_of(session: Session) -> list[ZooKeeperListener]:
    """Return those who listen to a session."""
    return [listener for listener in list(_listening.values()) if listener.session is session]


_listening: dict[str, ZooKeeperListener] = {}

os.register_at_fork(after_in_child=_listening.clear)
