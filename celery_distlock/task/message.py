"""The token of a unique message: the header that carries it, and what ends it from outside of its run."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from celery_distlock.errors import LockConfigError, StoreUnavailable
from celery_distlock.keepalive import Keeper, keeper
from celery_distlock.stores.base import LockStore, Uniqueness
from celery_distlock.tokens import Token

__all__ = ["UNIQUE_HEADER", "cancel", "cancel_later", "header_of", "token_of", "tokens_of"]

log = logging.getLogger(__name__)

#: The message header of a task that was published as the only one of its unique key.
UNIQUE_HEADER = "distlock_unique"

_PAUSE = 1.0


def header_of(token: Token) -> dict[str, Any]:
    """Return what the message tells of its token; the id is the task's."""
    return {
        "key": token.key,
        "ttl": token.ttl,
        "queued": token.queued,
        "running": token.running,
        "replaces": token.replaces,
    }


def token_of(headers: Mapping[str, Any], task_id: str) -> Token | None:
    """Return the token of a message, None if it has none that makes sense: a message can come from anywhere."""
    told = headers.get(UNIQUE_HEADER)
    if not isinstance(told, Mapping):
        return None
    key, ttl = told.get("key"), told.get("ttl")
    if not isinstance(key, str) or not isinstance(ttl, (int, float)) or not ttl > 0:
        return None
    flags = (told.get(name) is True for name in ("queued", "running", "replaces"))
    return Token(key, task_id, float(ttl), *flags)


def tokens_of(task: Any) -> Uniqueness:
    """Return the store of the task's tokens.

    Raises:
        LockConfigError: its store knows nothing of tokens.
    """
    store = task._lock_store
    if not isinstance(store, Uniqueness):
        raise LockConfigError(
            f"task {task.name}: unique_while and unique_for need a store that keeps tokens, which {store.name} does not"
        )
    return store


def cancel(store: Uniqueness, token: Token, *, window: bool) -> None:
    """Free the place of a message that will not start; in the background if the store gives no answer now."""
    try:
        store.cancel(token, window=window)
    except StoreUnavailable as error:
        log.warning("The place of task [%s] under %r will be freed later: %s", token.id, token.key, error)
        cancel_later(keeper(), store, token, window=window, delay=_PAUSE)


def cancel_later(
    thread: Keeper, store: LockStore | Uniqueness, token: Token, *, window: bool, delay: float = 0.0
) -> None:
    """Free it in the background, by the end of its ttl at the latest; then the store has forgotten it."""
    until = time.monotonic() + token.ttl

    def attempt() -> None:
        assert isinstance(store, Uniqueness)
        try:
            store.cancel(token, window=window)
        except StoreUnavailable:
            if time.monotonic() < until:
                thread.call_after(_PAUSE, attempt)

    if delay:
        thread.call_after(delay, attempt)
    else:
        thread.call(attempt)
