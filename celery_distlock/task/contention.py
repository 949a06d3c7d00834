"""What happens to a task that did not get its lock.

Every outcome goes through Celery's own tracer, so it leaves a result state, events and callbacks as any other
outcome does:

==========  ==================================================================================================
``retry``   the message is published again, later, and the state is RETRY meanwhile. The task's own ``retries``,
            id, chain, chord, links and expiry are carried; they do not notice.
``wait``    the worker's main process keeps the message and stands in line (``parking``); the state is WAITING meanwhile
``skip``    SUCCESS with ``lock_skip_result``; what stands behind it in its chain does not run and is REVOKED, or, with
            ``lock_skip_chain="continue"``, goes on with that result
``fail``    FAILURE with :class:`~celery_distlock.LockContended`, error callbacks run
==========  ==================================================================================================

Eager tasks and direct calls have no message to publish: for them ``retry`` and ``wait`` wait in place.
"""

from __future__ import annotations

import logging
import random
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from celery.app.task import Context
from celery.exceptions import Reject, Retry

from celery_distlock.errors import DistLockError, LockConfigError, LockContended, LockTimeout, describe
from celery_distlock.lease import Holder
from celery_distlock.options import CONTENTION_POLICIES, LockOptions
from celery_distlock.signals import lock_contended, lock_skipped
from celery_distlock.task.redelivery import ignores_result
from celery_distlock.task.run import ATTEMPT_HEADER, SINCE_HEADER, TICKET_HEADER, Run

__all__ = ["Contention", "decide", "give_up_if_late", "retry_later", "skip"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contention:
    """What a callable ``lock_on_contention`` is told.

    Attributes:
        key: the contended key.
        holder: who holds it; None if unknown.
        attempt: how often this run was refused before.
        waited: seconds since it was first refused (0.0 the first time).
    """

    key: str
    holder: Holder | None
    attempt: int
    waited: float


def decide(task: Any, task_id: str | None, options: LockOptions, contention: Contention) -> str:
    """Return the policy for this contention and tell everybody about it.

    Arguments:
        task_id: None for a direct call.

    Raises:
        LockConfigError: the callable returned something else than a policy.
    """
    policy = options.on_contention
    if callable(policy):
        policy = policy(task, contention)
        if policy not in CONTENTION_POLICIES:
            raise LockConfigError(
                f"task {task.name}: lock_on_contention returned {policy!r}; allowed: {', '.join(CONTENTION_POLICIES)}"
            )
    lock_contended.send(sender=task, task_id=task_id, key=contention.key, holder=contention.holder, policy=policy)
    return policy


def skip(task: Any, request: Any, options: LockOptions, contention: Contention) -> Any:
    """End the task as a success that did nothing; nothing that stands behind it runs, unless that is asked for.

    Arguments:
        request: the traced request; None for a direct call.
    """
    log.info(
        "Task %s[%s] skipped: lock %r is held by %s",
        task.name,
        request.id if request else None,
        contention.key,
        describe(contention.holder),
        extra={"key": contention.key, "holder": contention.holder},
    )
    if request is not None and options.skip_chain == "stop":
        _stop_chain(task, request, LockContended(contention.key, contention.holder))
    lock_skipped.send(
        sender=task, task_id=request.id if request else None, key=contention.key, holder=contention.holder
    )
    return options.skip_result


def retry_later(
    task: Any,
    options: LockOptions,
    run: Run,
    key: str,
    error: DistLockError,
    holder: Holder | None = None,
    ticket: int | None = None,
) -> NoReturn:
    """Publish the task again and end this attempt.

    Arguments:
        ticket: the number of its place in the key's line.

    Raises:
        Retry: always, once the message is out.
        LockTimeout: ``lock_timeout`` has passed since the first attempt.
        Reject: the broker did not take the new message; the old one goes back to it (``acks_late``).
    """
    request = task.request_stack.top
    since = give_up_if_late(request, options, key, error, holder)
    left = float("inf") if options.timeout is None else max(0.0, since + options.timeout - time.time())
    delay = min(left, _back_off(options, run.attempt))
    headers = {**(request.headers or {}), ATTEMPT_HEADER: run.attempt + 1, SINCE_HEADER: since}
    if ticket is not None:
        headers[TICKET_HEADER] = ticket
    # Not self.retry(): that would count against the task's own max_retries, or change them for good.
    signature = task.signature_from_request(request, countdown=delay, retries=request.retries, headers=headers)
    retry = Retry(exc=error, when=delay, is_eager=False, sig=signature)
    stored = _store_state(task, request, retry)
    try:
        signature.apply_async(add_to_parent=False)
    except Exception as publish_error:
        if task.acks_late:
            log.error("Task %s[%s]: could not be published again: %r", task.name, run.id, publish_error)
            raise Reject(publish_error, requeue=True) from publish_error
        raise
    if stored:
        # The tracer would store it once more, perhaps over the state in which the next attempt has ended by then.
        request.ignore_result = True
    raise retry


def _store_state(task: Any, request: Any, retry: Retry) -> bool:
    """Store RETRY before the next attempt can be there; return whether the tracer need not."""
    if ignores_result(task, request) or task.store_errors_even_if_ignored:
        return False
    told = "".join(traceback.format_exception(retry))
    try:
        task.backend.mark_as_retry(request.id, retry.exc, told, request=request)
    except Exception as error:
        # What matters is that the task goes on; whether it waits or fails is not known then.
        log.warning("Task %s[%s]: that it is retried could not be stored: %r", task.name, request.id, error)
        return False
    return True


def give_up_if_late(
    request: Any, options: LockOptions, key: str, error: DistLockError, holder: Holder | None = None
) -> float:
    """Return since when the task has tried to get its lock (wall clock), unless that is too long.

    Raises:
        LockTimeout: ``lock_timeout`` has passed since the first attempt.
    """
    now = time.time()
    since = float((request.headers or {}).get(SINCE_HEADER, now))
    if options.timeout is not None and now >= since + options.timeout:
        raise LockTimeout(key, now - since, holder) from error
    return since


def _back_off(options: LockOptions, attempt: int) -> float:
    # 2 ** 64 seconds are enough; a larger exponent would overflow before min() sees it.
    delay = min(options.retry_backoff_max, options.retry_delay * 2.0 ** min(attempt, 64))
    # Half fixed, half random: contenders that were refused together do not come back together.
    return delay * random.uniform(0.5, 1.0) if options.retry_jitter else delay


def _stop_chain(task: Any, request: Any, reason: LockContended) -> None:
    """Let nothing that stands behind the task run, and give all of it a terminal state, so that no ``get()`` hangs."""
    behind = [*(request.chain or ()), *(request.callbacks or ())]
    # The tracer publishes what it finds here after the task returned.
    request.chain = request.callbacks = None
    if request.is_eager:
        return
    sentence = f"not run: task {task.name}[{request.id}] before it was skipped; {reason}"
    for options in (options for signature in behind for options in _links(signature)):
        # A link that stands in a chord's header counts down the chord, or its body would wait for ever.
        link = Context(
            id=options["task_id"],
            task=None,
            group=options.get("group_id"),
            group_index=options.get("group_index"),
            chord=options.get("chord"),
            delivery_info={},
            # Where the rpc back end sends the result.
            reply_to=request.reply_to,
            correlation_id=options["task_id"],
        )
        task.backend.mark_as_revoked(options["task_id"], sentence, request=link, store_result=True)


def _links(signature: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the options of every task in a signature that somebody may be waiting for."""
    options = signature.get("options") or {}
    if options.get("task_id"):
        yield options
    kwargs = signature.get("kwargs") or {}
    for name in ("tasks", "header", "body"):
        part = kwargs.get(name)
        if isinstance(part, Mapping):
            yield from _links(part)
        elif part:
            for member in part:
                yield from _links(member)
    for callback in options.get("link") or ():
        yield from _links(callback)
