"""Publishing a unique task: one question to the store, and one message or none.

``return`` and ``raise`` ask before they publish; a message that could not be published gives its place back.
``replace`` and ``rerun`` publish first: whoever dies between the two steps has published one message too many, which
the lock keeps from running beside another, rather than revoked one for the sake of another that never came.

Left alone are messages whose id was chosen before: those of a canvas, where somebody waits for this very id, and
retries. They are not refused, but they count while they run, and retries keep their place.

Authority
    The lock, when the task runs. What is decided here saves work.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

from celery.utils import uuid
from celery.utils.time import maybe_iso8601, maybe_make_aware

from celery_distlock.errors import DuplicateTask, StoreUnavailable
from celery_distlock.keepalive import keeper
from celery_distlock.options import LockOptions
from celery_distlock.signals import unique_duplicate
from celery_distlock.stores.base import Uniqueness
from celery_distlock.task.message import UNIQUE_HEADER, cancel, cancel_later, header_of, token_of, tokens_of
from celery_distlock.task.run import ATTEMPT_HEADER, OPTIONS_HEADER
from celery_distlock.tokens import Duplicate, Token

__all__ = ["publish"]

log = logging.getLogger(__name__)

#: What may follow ``args`` and ``kwargs`` without a name.
_POSITIONAL = ("task_id", "producer", "link", "link_error", "shadow")


def publish(
    task: Any, send: Callable[..., Any], args: Any, kwargs: Any, more: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """Publish a task, if it is unique only unless there is another one.

    Arguments:
        task: the :class:`~celery_distlock.LockedTask`.
        send: Celery's own ``apply_async``.
        args, kwargs, more, options: its arguments.

    Raises:
        LockConfigError: the store keeps no tokens.
        LockKeyError: the arguments make no key.
        DuplicateTask: there is another one, and the task wants to be told so.
        StoreUnavailable: the store was not to be asked, and ``lock_on_store_error="fail"``.
    """
    options.update(zip(_POSITIONAL, more, strict=False))
    headers = options.get("headers") or {}
    chosen = task._lock_checked_options_of(_Headers(headers)) if OPTIONS_HEADER in headers else task._lock_options
    if not chosen.unique or task._get_app().conf.task_always_eager:
        return _accepted(send(args, kwargs, **options))
    store = tokens_of(task)
    if task.typing:
        # Celery's own check comes first, and its own error.
        task.__header__(*(args or ()), **(kwargs or {}))
    key = task._lock_unique_key_of(chosen, args or (), kwargs or {})
    if key is None:
        return _accepted(send(args, kwargs, **options))
    if options.get("task_id"):
        return _accepted(_publish_known(task, send, args, kwargs, options, chosen, store, key))
    token = _token(task, key, uuid(), chosen, options)
    options["task_id"] = token.id
    if token.queued or token.window > token.ttl:
        options["headers"] = {**headers, UNIQUE_HEADER: header_of(token)}
    if token.replaces:
        return _publish_first(task, send, args, kwargs, options, chosen, store, token)
    return _ask_first(task, send, args, kwargs, options, chosen, store, token)


def _ask_first(
    task: Any,
    send: Callable[..., Any],
    args: Any,
    kwargs: Any,
    options: dict[str, Any],
    chosen: LockOptions,
    store: Uniqueness,
    token: Token,
) -> Any:
    try:
        answer = store.reserve(token)
    except StoreUnavailable as error:
        if chosen.on_store_error == "fail":
            # It may have been entered all the same.
            cancel_later(keeper(), store, token, window=True)
            raise
        log.warning("Task %s[%s] is published without asking for others: %s", task.name, token.id, error)
    else:
        if isinstance(answer, Duplicate):
            return _duplicate(task, chosen, token, answer)
    try:
        return _accepted(send(args, kwargs, **options))
    except BaseException:
        cancel(store, token, window=True)
        raise


def _publish_first(
    task: Any,
    send: Callable[..., Any],
    args: Any,
    kwargs: Any,
    options: dict[str, Any],
    chosen: LockOptions,
    store: Uniqueness,
    token: Token,
) -> Any:
    result = _accepted(send(args, kwargs, **options))
    try:
        answer = store.reserve(token)
    except StoreUnavailable as error:
        log.warning("Task %s[%s] does not replace what may be queued: %s", task.name, token.id, error)
        return result
    return _duplicate(task, chosen, token, answer) if isinstance(answer, Duplicate) else result


def _publish_known(
    task: Any,
    send: Callable[..., Any],
    args: Any,
    kwargs: Any,
    options: dict[str, Any],
    chosen: LockOptions,
    store: Uniqueness,
    key: str,
) -> Any:
    """Publish a message whose id was chosen before."""
    headers = options.get("headers") or {}
    if UNIQUE_HEADER not in headers:
        if chosen.unique_while == "queued_or_running":
            # Part of a canvas. It has no place while it is queued; while it runs, it counts.
            token = dataclasses.replace(_token(task, key, options["task_id"], chosen, options), replaces=False)
            options["headers"] = {**headers, UNIQUE_HEADER: header_of(token)}
        return send(args, kwargs, **options)
    retried = token_of(headers, options["task_id"])
    if retried is None or not retried.queued or ATTEMPT_HEADER in headers:
        # A lock retry has its place still.
        return send(args, kwargs, **options)
    place = dataclasses.replace(retried, ttl=_patience(task, chosen, options), running=False, replaces=False)
    try:
        store.reserve(place)
    except StoreUnavailable as error:
        log.debug("Task %s[%s] is retried without its place: %s", task.name, place.id, error)
    try:
        return send(args, kwargs, **options)
    except BaseException:
        cancel(store, place, window=False)
        raise


def _token(task: Any, key: str, task_id: str, chosen: LockOptions, options: dict[str, Any]) -> Token:
    return Token(
        key,
        task_id,
        _patience(task, chosen, options),
        queued=chosen.unique_while is not None,
        # One that is to run again does not mind that it runs.
        running=chosen.unique_while == "queued_or_running" and chosen.on_duplicate != "rerun",
        replaces=chosen.on_duplicate in ("replace", "rerun"),
        window=chosen.unique_for or 0.0,
    )


def _patience(task: Any, chosen: LockOptions, options: dict[str, Any]) -> float:
    """Return in how many seconds the message must have started."""
    given = options.get("countdown")
    wait = float(given) if isinstance(given, (int, float)) else _until(task, options.get("eta")) or 0.0
    patience = max(0.0, wait) + chosen.unique_ttl
    expires = options.get("expires", task.expires)
    left = float(expires) if isinstance(expires, (int, float)) else _until(task, expires)
    return patience if left is None else min(patience, max(left, 0.001))


def _until(task: Any, moment: Any) -> float | None:
    if isinstance(moment, str):
        moment = maybe_iso8601(moment)
    if not isinstance(moment, datetime):
        return None
    app = task._get_app()
    return float((maybe_make_aware(moment, app.timezone) - app.now()).total_seconds())


def _accepted(result: Any) -> Any:
    result.duplicate = False
    return result


def _duplicate(task: Any, chosen: LockOptions, token: Token, answer: Duplicate) -> Any:
    log.info(
        "Task %s was not published: task [%s] is the one of %r",
        task.name,
        answer.id,
        token.key,
        extra={"key": token.key, "task_id": answer.id},
    )
    unique_duplicate.send(sender=task, task_id=answer.id, key=token.key, policy=chosen.on_duplicate)
    if chosen.on_duplicate == "raise":
        raise DuplicateTask(token.key, answer.id)
    result = task.AsyncResult(answer.id)
    result.duplicate = True
    return result


class _Headers:
    """The headers of a message to be, read like Celery's context."""

    def __init__(self, headers: dict[str, Any]) -> None:
        self.headers = headers
