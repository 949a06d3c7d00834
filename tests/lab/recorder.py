"""Has every question that this process puts to a store, and every answer, written into the history.

The product knows nothing of it: the methods of the store's class are wrapped, before any child is forked.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from celery_distlock.lease import Claim, Completed, Contended, Lease, Offer, Renewal, Ticket
from celery_distlock.stores.base import LockStore, Queueing
from tests.lab import history

__all__ = ["install"]

_local = threading.local()


def install() -> None:
    """Record what this process, and all that it forks, asks of stores; without a history's folder, do nothing."""
    if not history.recording():
        return
    from celery_distlock.stores.redis import RedisStore
    from celery_distlock.stores.zookeeper import ZooKeeperStore

    for cls in (RedisStore, ZooKeeperStore):
        for name in ("acquire", "enqueue"):
            _wrap(cls, name, _of_claim)
        _wrap(cls, "confirm", _of_claims)
        _wrap(cls, "withdraw", _of_claims)
        _wrap(cls, "renew", _of_leases)
        _wrap(cls, "release", _of_leases)
        _wrap(cls, "poll", _of_places)
        if hasattr(cls, "pass_on"):
            _wrap(cls, "pass_on", _of_passing)
        if cls.confirming is not Queueing.confirming:
            _wrap_confirming(cls)


#: Items of a batch: what is asked about each. And what to write for each answer.
_Asked = Callable[..., list[dict[str, Any]]]


def _wrap(cls: type[LockStore], name: str, asked: _Asked) -> None:
    original = getattr(cls, name)

    @functools.wraps(original)
    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(_local, "busy", False):
            # A store that uses its own methods asks one question.
            return original(self, *args, **kwargs)
        with ExitStack() as stack:
            _local.busy = True
            stack.callback(setattr, _local, "busy", False)
            calls = [history.invoke(name, **fields) for fields in asked(*args, **kwargs)]
            try:
                result = original(self, *args, **kwargs)
            except BaseException as error:
                for call in calls:
                    call.returns("unknown", error=f"{type(error).__name__}: {error}"[:200])
                raise
            answers = result if isinstance(result, (list, tuple)) else [result] * len(calls)
            if name == "withdraw":
                answers = ["withdrawn"] * len(calls)
            for call, answer in zip(calls, answers, strict=True):
                _answered(call, answer)
            return result

    setattr(cls, name, recorded)


def _wrap_confirming(cls: type[Queueing]) -> None:
    """Record a confirmation that is not waited for: without an answer nobody knows what became of it."""
    original = cls.confirming

    @functools.wraps(original)
    def recorded(self: Any, claim: Claim) -> Callable[[], Lease | None] | None:
        call = history.invoke("confirm", **_of_claim(claim)[0])
        finish = original(self, claim)
        if finish is None:
            call.returns("unknown")
            return None

        def finished() -> Lease | None:
            lease = finish()
            if lease is None:
                call.returns("unknown")
            else:
                _answered(call, lease)
            return lease

        return finished

    cls.confirming = recorded  # type: ignore[method-assign]  # so that the product knows nothing of it


def _of_claim(claim: Claim, **more: Any) -> list[dict[str, Any]]:
    told = {"key": claim.key, "owner": claim.owner, "ttl": claim.ttl, "limit": claim.limit}
    if more.get("ticket") is not None:
        told["ticket"] = more["ticket"]
    return [told]


def _of_claims(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    return [fields for claim in claims for fields in _of_claim(claim)]


def _of_leases(leases: Sequence[Lease], *_: Any) -> list[dict[str, Any]]:
    return [
        {"key": lease.key, "owner": lease.owner, "fence": lease.fence, "ttl": lease.ttl, "limit": lease.limit}
        for lease in leases
    ]


def _of_places(places: Sequence[Ticket | Offer], **_: Any) -> list[dict[str, Any]]:
    return [{"key": place.key, "owner": place.owner, "number": place.number} for place in places]


def _of_passing(lease: Lease, claim: Claim, *_: Any) -> list[dict[str, Any]]:
    return [{**_of_claim(claim)[0], "from": lease.owner}]


def _answered(call: history.Call, answer: Any) -> None:
    match answer:
        case Lease():
            call.returns("ok", answer="lease", fence=answer.fence, ttl=answer.ttl, deadline=answer.deadline)
        case Ticket():
            call.returns("ok", answer="ticket", number=answer.number, ahead=answer.ahead)
        case Offer():
            call.returns("ok", answer="offer", number=answer.number)
        case Contended():
            holders = [[holder["owner"], round(holder["remaining"], 3)] for holder in answer.holders]
            call.returns("fail", answer="contended", holders=holders)
        case Completed():
            call.returns("fail", answer="completed")
        case Renewal():
            call.returns("ok" if answer in (Renewal.HELD, Renewal.REASSERTED) else "fail", answer=answer.name)
        case True:
            call.returns("ok", answer="released")
        case False:
            call.returns("fail", answer="not ours")
        case str():
            call.returns("ok", answer=answer)
        case None:
            call.returns("fail", answer="none")
