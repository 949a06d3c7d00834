"""What locks are for: a list that is read, changed and written back, by whoever holds the key.

There are three lists for each key. ``plain`` is written by whoever was granted the lock. ``checked`` is written after
one more ``check()``. ``fenced`` is a resource that takes part: reading and writing both name the fence, and it refuses
one that is smaller than the largest it has seen. (Reading, too: a later holder that has read and not yet written must
not be overtaken by an earlier one's write.) They live in a Redis server of their own that no fault touches.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import redis

from tests.lab import history

__all__ = ["RESOURCE", "Kind", "Lists", "Tally", "tally"]

#: The environment variable with the resource's URL.
RESOURCE = "LAB_RESOURCE"

Kind = Literal["plain", "checked", "fenced"]
KINDS: tuple[Kind, ...] = ("plain", "checked", "fenced")

#: KEYS: list, largest fence. ARGV: fence, and what to write, if anything.
_FENCED = """
if tonumber(ARGV[1]) < tonumber(redis.call('GET', KEYS[2]) or 0) then
  return redis.error_reply('REFUSED')
end
redis.call('SET', KEYS[2], ARGV[1])
if ARGV[2] then
  redis.call('SET', KEYS[1], ARGV[2])
end
return redis.call('GET', KEYS[1])
"""

_clients: dict[tuple[int, str], redis.Redis] = {}


def _client() -> redis.Redis:
    where = os.getpid(), os.environ[RESOURCE]
    if where not in _clients:
        _clients[where] = redis.Redis.from_url(where[1], decode_responses=True, socket_timeout=30.0)
    return _clients[where]


class Lists:
    """The three lists of a key, as one holder sees them: made when it begins, written when it ends.

    Arguments:
        key: the lock's key.
        fence: the holder's.
    """

    def __init__(self, key: str, fence: int) -> None:
        self._key = key
        self._fence = fence
        self._token = uuid.uuid4().hex[:12]
        self._found: dict[Kind, list[str]] = {}
        client = _client()
        for kind in KINDS:
            try:
                found: Any = self._fenced() if kind == "fenced" else client.get(f"{kind}:{key}")
            except redis.ResponseError:
                history.note("refused", key=key, fence=fence, step="read")
                continue
            self._found[kind] = json.loads(found or "[]")

    def write(self, kind: Kind) -> bool:
        """Add to one of the lists what this holder has done, and return whether that was accepted."""
        if kind not in self._found:
            return False
        text = json.dumps([*self._found[kind], self._token])
        if kind == "fenced":
            try:
                self._fenced(text)
            except redis.ResponseError:
                history.note("refused", key=self._key, fence=self._fence, step="write")
                return False
        else:
            _client().set(f"{kind}:{self._key}", text)
        history.note("acked", key=self._key, list=kind, token=self._token)
        return True

    def _fenced(self, *text: str) -> Any:
        return _client().eval(_FENCED, 2, f"fenced:{self._key}", f"fence:{self._key}", str(self._fence), *text)


@dataclass(frozen=True)
class Tally:
    """What became of the accepted writes to one kind of list, over all keys."""

    accepted: int
    lost: int
    refused: int = 0

    def __str__(self) -> str:
        refused = f", {self.refused} refused" if self.refused else ""
        return f"{self.lost} of {self.accepted} accepted writes lost{refused}"


def tally(events: Iterable[history.Event], url: str) -> dict[Kind, Tally]:
    """Compare what was accepted with what is there."""
    accepted: dict[tuple[Kind, str], set[str]] = {}
    refused = 0
    for event in events:
        if event["kind"] != "note":
            continue
        if event["event"] == "acked":
            accepted.setdefault((event["list"], event["key"]), set()).add(event["token"])
        refused += event["event"] == "refused"
    result: dict[Kind, Tally] = {}
    with redis.Redis.from_url(url, decode_responses=True) as client:
        for kind in KINDS:
            mine = {key: tokens for (of, key), tokens in accepted.items() if of == kind}
            lost = 0
            for key, tokens in mine.items():
                found: Any = client.get(f"{kind}:{key}")
                lost += len(tokens - set(json.loads(found or "[]")))
            total = sum(map(len, mine.values()))
            result[kind] = Tally(total, lost, refused if kind == "fenced" else 0)
    return result
