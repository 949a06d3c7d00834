"""Tokens: what makes a task unique before it runs.

A *token* stands for one message of a task, from its publishing until it starts. There is one per unique key; its owner
is the task's id, so that every delivery and every retry of that message passes. What becomes of it at the start:

::

     reserve                        begin
    ─────────▶ queued (owner: id) ─────────▶ running (owner: the delivery's) ─────▶ free
                 │    │                │      an ordinary lease on running_key()
                 │    │                └────▶ free ("queued")
                 │    └─ ttl: never started
                 └────── cancel: not published, revoked, expired; replaced by a newer one

The *window* (``unique_for``) is the memory that one was accepted; nothing that becomes of the task ends it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Begun", "Duplicate", "Reserved", "Superseded", "Token", "is_running_key", "running_key"]

_RUNNING = "unique:"


def running_key(key: str) -> str:
    """Return the lock's key that a running task holds, as its executor's owner, while it is unique."""
    return _RUNNING + key


def is_running_key(key: str) -> bool:
    """Tell whether a lock's key is that of a running unique task."""
    return key.startswith(_RUNNING)


@dataclass(slots=True, unsafe_hash=True)
class Token:
    """A message that is to be the only one of its key.

    Attributes:
        key: what makes it unique.
        id: the task's id, the owner.
        ttl: seconds after which a message that has not started is believed never to start.
        queued: whether it is unique until it starts; otherwise only the window counts.
        running: whether one that runs counts as well.
        replaces: whether it takes the place of one that is queued.
        window: seconds in which no other one is accepted; 0.0: none.
    """

    key: str
    id: str
    ttl: float
    queued: bool = True
    running: bool = False
    replaces: bool = False
    window: float = 0.0


@dataclass(frozen=True)
class Reserved:
    """The message is the one; ``replaced`` is the id of the queued one whose place it took."""

    replaced: str | None = None


@dataclass(frozen=True)
class Duplicate:
    """There is another one: ``id``."""

    id: str


@dataclass(frozen=True)
class Superseded:
    """The message must not run: a newer one took its place. ``by`` is one that is queued now, if there is any."""

    by: str | None = None


@dataclass(frozen=True)
class Begun:
    """The message has started; ``fence`` is that of its lease on :func:`running_key`, 0 if it was granted none."""

    fence: int = 0
