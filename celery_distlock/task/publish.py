"""Publishing a unique task: one question to the store, and one message or none.

``return`` and ``raise`` ask before they publish; a message that could not be published gives its place back.
``replace`` and ``rerun`` publish first: whoever dies between the two steps has published one message too many, which
the lock keeps from running beside another, rather than revoked one for the sake of another that never came.

Left alone are messages whose id was chosen before, and those that something is linked to: parts of a canvas, where
somebody waits for this very message, and retries. They are neither refused nor replaced, but they count while they run,
and retries keep their place.

Authority
    The lock, when the task runs. What is decided here saves work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from celery.utils import uuid

from celery_distlock.errors import DuplicateTask, LockKeyError, StoreUnavailable
from celery_distlock.keepalive import keeper
from celery_distlock.options import LockOptions
from celery_distlock.signals import unique_duplicate
from celery_distlock.stores.base import Uniqueness
from celery_distlock.task.message import UNIQUE_HEADER, cancel, cancel_later, header_of, token_of, tokens_of
from celery_distlock.task.moments import seconds_until
from celery_distlock.task.run import ATTEMPT_HEADER
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
    chosen: LockOptions = task._lock_checked_options_of(options.get("headers"))
    if not chosen.unique or task._get_app().conf.task_always_eager:
        return _accepted(send(args, kwargs, **options))
    call = _Call(task, chosen, send, args or (), kwargs or {}, options, tokens_of(task))
    header = getattr(task, "__header__", None)
    if task.typing and header is not None:
        # Celery's own check comes first, and its own error.
        header(*call.args, **call.kwargs)
    awaited = options.get("task_id") or options.get("link")
    try:
        key = task._lock_unique_key_of(chosen, call.args, call.kwargs)
    except LockKeyError as error:
        if not awaited:
            raise
        # Raised here it would hit the task that publishes this one as its next link, and which has done its work.
        log.warning("Task %s is published without asking for others: %s", task.name, error)
        key = None
    if key is None:
        return call.publish()
    if awaited:
        return call.publish_known(key)
    token = call.named(key)
    return call.publish_first(token) if token.replaces else call.ask_first(token)


@dataclass
class _Call:
    """One call of ``apply_async`` of a unique task."""

    task: Any
    chosen: LockOptions
    send: Callable[..., Any]
    args: Any
    kwargs: Any
    #: What else is given to Celery.
    options: dict[str, Any]
    store: Uniqueness

    def publish(self) -> Any:
        return _accepted(self.send(self.args, self.kwargs, **self.options))

    def named(self, key: str) -> Token:
        """Choose the message's id, and have it carry its place along."""
        token = self._token(key, uuid())
        self.options["task_id"] = token.id
        if token.queued or token.window > token.ttl:
            self._carry(token)
        return token

    def ask_first(self, token: Token) -> Any:
        """Publish unless there is another one."""
        answer: Any = None
        with self._unless_interrupted(token, window=True):
            try:
                answer = self.store.reserve(token)
            except StoreUnavailable as error:
                if self.chosen.on_store_error == "fail":
                    raise
                log.warning("Task %s[%s] is published without asking for others: %s", self.task.name, token.id, error)
            if not isinstance(answer, Duplicate):
                return self.publish()
        return self._duplicate(token, answer)

    def publish_first(self, token: Token) -> Any:
        """Publish in the place of another one."""
        result = self.publish()
        try:
            answer = self.store.reserve(token)
        except StoreUnavailable as error:
            log.warning("Task %s[%s] does not replace what may be queued: %s", self.task.name, token.id, error)
            return result
        return self._duplicate(token, answer) if isinstance(answer, Duplicate) else result

    def publish_known(self, key: str) -> Any:
        """Publish a message that somebody waits for, or one that was published before."""
        headers = self.options.get("headers") or {}
        task_id = self.options["task_id"] = self.options.get("task_id") or uuid()
        if UNIQUE_HEADER not in headers:
            if self.chosen.unique_while == "queued_or_running":
                # While it is queued it has no place, which a newer one could take; while it runs, it counts.
                self._carry(dataclasses.replace(self._token(key, task_id), queued=False, replaces=False))
            return self.publish()
        retried = token_of(headers, task_id)
        if retried is None or not retried.queued or ATTEMPT_HEADER in headers:
            # A lock retry has its place still.
            return self.publish()
        place = dataclasses.replace(retried, ttl=self._patience(), running=False, replaces=False)
        with self._unless_interrupted(place, window=False):
            try:
                self.store.reserve(place)
            except StoreUnavailable as error:
                log.warning("Task %s[%s] is retried without its place: %s", self.task.name, place.id, error)
            return self.publish()

    @contextlib.contextmanager
    def _unless_interrupted(self, token: Token, *, window: bool) -> Iterator[None]:
        """Free the place of a message that is not published after all: that fails, or a signal strikes on the way."""
        try:
            yield
        except StoreUnavailable:
            # It may have been entered all the same.
            cancel_later(keeper(), self.store, token, window=window)
            raise
        except BaseException:
            cancel(self.store, token, window=window)
            raise

    def _carry(self, token: Token) -> None:
        self.options["headers"] = {**(self.options.get("headers") or {}), UNIQUE_HEADER: header_of(token)}

    def _token(self, key: str, task_id: str) -> Token:
        chosen = self.chosen
        return Token(
            key,
            task_id,
            self._patience(),
            queued=chosen.unique_while is not None,
            # One that is to run again does not mind that it runs.
            running=chosen.unique_while == "queued_or_running" and chosen.on_duplicate != "rerun",
            replaces=chosen.on_duplicate in ("replace", "rerun"),
            window=chosen.unique_for or 0.0,
        )

    def _patience(self) -> float:
        """Return in how many seconds the message must have started."""
        given = self.options.get("countdown")
        # As Celery does: a countdown of 0 is none.
        wait = float(given) if given else seconds_until(self.options.get("eta")) or 0.0
        patience = max(0.0, wait) + self.chosen.unique_ttl
        expires = self.options.get("expires", self.task.expires)
        left = float(expires) if isinstance(expires, (int, float)) else seconds_until(expires)
        return patience if left is None else min(patience, max(left, 0.001))

    def _duplicate(self, token: Token, answer: Duplicate) -> Any:
        log.info(
            "Task %s was not published: task [%s] is the one of %r",
            self.task.name,
            answer.id,
            token.key,
            extra={"key": token.key, "task_id": answer.id},
        )
        policy = self.chosen.on_duplicate
        unique_duplicate.send(sender=self.task, task_id=answer.id, key=token.key, policy=policy)
        if policy == "raise":
            raise DuplicateTask(token.key, answer.id)
        result = self.task.AsyncResult(answer.id)
        result.duplicate = True
        return result


def _accepted(result: Any) -> Any:
    result.duplicate = False
    return result
