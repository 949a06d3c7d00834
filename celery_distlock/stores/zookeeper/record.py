"""What nodes tell, as JSON.

Of a contender: ``key`` and ``ttl`` are the store's; ``waiting``, for how long an offer is kept for it, stands there
until a waiter has taken its place; ``fence`` only if the node was made anew in another session, for its own creation
tells another number then; ``resting`` of a place that was released before its time; the rest is told by the holder.

Of what stays: ``until`` when it counts, in seconds since the epoch, by the leader's clock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from celery_distlock.lease import Claim, Holder
from celery_distlock.stores.zookeeper.layout import Contender

__all__ = ["Node", "packed", "packed_of", "seal_of", "tells_until", "told_until"]


def packed(claim: Claim, ttl: float, *, waiting: float = 0.0, fence: int = 0) -> bytes:
    """Return what a node shall tell of the owner of a claim."""
    told: dict[str, Any] = {**claim.record, "key": claim.key, "ttl": ttl}
    if waiting:
        told["waiting"] = waiting
    if fence:
        told["fence"] = fence
    return packed_of(told)


def tells_until(until: float, **more: Any) -> bytes:
    """Return what a node tells that counts until then."""
    return packed_of({"until": until, **more})


def told_until(data: bytes) -> float | None:
    """Return until when a node counts; None if it does not tell."""
    try:
        return float(json.loads(data)["until"])
    except (ValueError, TypeError, KeyError):
        return None


def seal_of(data: bytes) -> str | None:
    """Return the name of a node's seal; None if it has none: see :func:`.requests.sealed`."""
    try:
        seal = json.loads(data).get("seal")
    except (ValueError, AttributeError):
        return None
    return seal if isinstance(seal, str) else None


def packed_of(told: Mapping[str, Any]) -> bytes:
    """Return what a node shall tell."""
    return json.dumps(told, separators=(",", ":"), default=str).encode()


@dataclass(frozen=True, slots=True)
class Node:
    """A contender as the server knows it.

    Attributes:
        contender: its name, taken apart.
        path: where it is.
        told: what it tells of itself.
        fence: the number of its grant.
        session: whose end is its end.
        version: 0 until it is written again.
    """

    contender: Contender
    path: str
    told: Mapping[str, Any]
    fence: int
    session: int
    version: int

    @classmethod
    def read(cls, contender: Contender, path: str, data: bytes, stat: Any) -> Node:
        """Make sense of the answer to a ``get``."""
        try:
            told = json.loads(data)
        except ValueError:
            told = None
        if not isinstance(told, dict):
            # Another library's.
            told = {"identifier": data.decode(errors="replace")} if data else {}
        fence = told.get("fence") or stat.czxid
        return cls(contender, path, told, fence, stat.ephemeralOwner, stat.version)

    @property
    def waiting(self) -> bool:
        """Whether the place it may have has not been taken yet."""
        return bool(self.told.get("waiting"))

    def taken(self) -> Node:
        """Return the node as it is to be once the place has been taken."""
        return replace(self, told={name: value for name, value in self.told.items() if name != "waiting"})

    def data(self, ttl: float) -> bytes:
        """Return what the node shall tell when it is written by a session with this ttl."""
        return packed_of({**self.told, "ttl": ttl})

    def as_holder(self, key: str, ttl: float, now: float) -> Holder:
        """Describe a holder, or one who was offered the place.

        Arguments:
            key: the lock's.
            ttl: what is believed of one that does not say how long its session lasts.
            now: the leader's time; counts for one that nobody keeps alive.
        """
        told = {name: value for name, value in self.told.items() if name not in ("ttl", "waiting", "fence")}
        known = {"key": key, "owner": self.contender.owner, "fence": self.fence}
        if self.contender.until:
            known["remaining"] = self.contender.until - now
        else:
            known["remaining"] = self.told.get("waiting") or self.told.get("ttl", ttl)
        return cast(Holder, {**told, **known, **({"offered": True} if self.waiting else {})})
