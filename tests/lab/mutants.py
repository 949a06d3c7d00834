"""Our own code, broken on purpose: each mutant is a mistake that some lock library has made, or might well make.

They are patches, made in every process of a run before it does anything (:mod:`.setting`); the product knows nothing of
them. A checker that does not refuse what they do proves nothing.
"""

from __future__ import annotations

import functools
import hashlib
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from celery import signals

from celery_distlock import held, keepalive, lock
from celery_distlock.lease import Lease
from celery_distlock.stores.redis import scripts
from celery_distlock.worker import warden

__all__ = ["MUTANTS"]

MUTANTS: dict[str, Callable[[], None]] = {}


def mutant(function: Callable[[], None]) -> Callable[[], None]:
    """Enter a patch among the mutants."""
    MUTANTS[function.__name__] = function
    return function


def _rewrite(script: scripts.Script, old: str, new: str) -> None:
    assert script.body.count(old.encode()) == 1, f"{script.name}.lua has changed: {old!r}"
    script.body = script.body.replace(old.encode(), new.encode())
    script.sha = hashlib.sha1(script.body, usedforsecurity=False).hexdigest().encode()
    script.load = scripts.command(b"SCRIPT", b"LOAD", script.body)
    script._heads.clear()


@mutant
def release_without_owner_check() -> None:
    """Whoever releases frees the key, whosever it is by now: ``DEL key``."""
    _rewrite(
        scripts.RELEASE,
        "local known = is_listed(fence)\n",
        "local known = is_listed(fence)\nredis.call('DEL', holders, records)\n",
    )


@mutant
def no_trust_deadline() -> None:
    """A lease is believed until somebody says that it is lost."""

    def deadline_of(sent: float, ttl: float) -> float:
        return sent + 1e5

    for name, module in list(sys.modules.items()):
        if name.startswith("celery_distlock") and hasattr(module, "deadline_of"):
            module.deadline_of = deadline_of  # type: ignore[attr-defined]


@mutant
def owner_is_task_id() -> None:
    """Two deliveries of one message are one owner."""
    admit = warden.Warden.admit

    @functools.wraps(admit)
    def admit_by_id(self: Any, request: Any, label: str) -> Any:
        warden.new_owner = lambda: request.id.replace("-", "")  # type: ignore[attr-defined]
        return admit(self, request, label)

    warden.Warden.admit = admit_by_id  # type: ignore[method-assign]


@mutant
def acquire_is_not_idempotent() -> None:
    """Whoever asks again, since the first answer was lost, is contended by itself: ``SET key NX``."""
    _rewrite(
        scripts.ACQUIRE,
        "purge()\nlocal fence = held()\nif fence then\n  return fence\nend\n",
        "purge()\nlocal fence\n",
    )


@mutant
def release_on_task_revoked() -> None:
    """The lock is given back when Celery says that the task was revoked, which is before its process is dead."""

    def release(request: Any, **_: Any) -> None:
        main = warden.Warden.current
        for supervised in list(main._table.values()) if main is not None else ():
            lease = supervised.lease()
            if supervised.request.id == request.id and lease is not None:
                supervised.warden.keeper.give_back(supervised.store, lease)

    signals.task_revoked.connect(release, weak=False)


@mutant
def renewal_goes_on_after_release() -> None:
    """Nobody tells the renewing thread, and its command brings the lease back: ``SET key token PX``."""
    _rewrite(scripts.RENEW, "if is_listed(fence) then", "if true then")

    def lease(self: Any) -> Lease | None:
        return None if self._lease is None else replace(self._lease, deadline=self.deadline)

    held.SelfKept.end = lambda self: None  # type: ignore[method-assign]
    held.SelfKept.lease = lease  # type: ignore[method-assign]
    keepalive.Keeper.drop = lambda self, kept: None  # type: ignore[method-assign]


@mutant
def fence_from_the_clock() -> None:
    """The fence is the holder's own time."""

    def fence(self: Any) -> int:
        if getattr(self, "_held", None) is None:
            return 0
        known: dict[str, int] = self.__dict__.setdefault("_fences", {})
        return known.setdefault(self.owner, time.time_ns() // 1000)

    lock.Lock.fence = property(fence)  # type: ignore[assignment]


@mutant
def newcomers_overtake() -> None:
    """A free key is granted to whoever asks, though others have been waiting."""
    _rewrite(
        scripts.ACQUIRE,
        "if redis.call('EXISTS', waiters) == 1 then\n  -- Places go",
        "if false then\n  -- Places go",
    )
    # Else the release itself gives the place to those who wait, before anybody can come.
    _rewrite(scripts.RELEASE, "purge()\nsettle(nil, known and string.match(known, '^%d+ 1 '))\n", "")
