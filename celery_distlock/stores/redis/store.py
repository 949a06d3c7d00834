"""Locks in one Redis database (a server, or the primary of a replicated one).

Authority
    The server decides, in Lua scripts, one per operation and lock, by its own clock. What is stored where:
    ``layout.py``. Guarantees hold as long as the server keeps its data and its clock does not jump; a fence is what
    remains when it does not (see below).

A holder in the store::

                       ttl passes           a newcomer          grace passes,
      acquire                               wants its place     and it asks again
    ──────────▶ listed ─────────▶ expired ────────────────▶ condemned ───────────▶ tombstone ──▶ nothing
                 │  ▲                │                          │                   (LOST)   (after an hour)
                 │  └── renew: HELD ─┴──────────────────────────┘
                 └─ release ──▶ nothing (GONE)

Why it takes two steps to replace an expired holder
    When the server itself was stopped for longer than the ttl, every lease has expired on its clock, and the renewals
    of the living wait in its sockets beside the acquires of newcomers. Executed in whatever order, an acquire only
    condemns; the renewals that were already waiting speak up within the grace.

When the data are gone
    Fences are server time in µs (or the last one + 1), so they grow across a loss of the counter; ``epoch`` is the
    first fence of the present data. A lease with a fence before the epoch, or above the counter (a replica took over
    without the last writes), was granted in an earlier life of the store: if its place is free, and its owner was not
    released or replaced since, a renewal enters it again (REASSERTED), without what it had told of itself.
"""

from __future__ import annotations

import json
import logging
import time
import weakref
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import redis
from redis.exceptions import NoScriptError, ResponseError

from celery_distlock.errors import LockConfigError, StoreUnavailable
from celery_distlock.lease import Claim, Completed, Completion, Contended, Holder, Lease, Renewal, deadline_of
from celery_distlock.stores.base import LockStore, PassingOn
from celery_distlock.stores.redis import arguments
from celery_distlock.stores.redis.address import client_of, connection_maker, name_of, split_timeout
from celery_distlock.stores.redis.connection import Answer, Connections
from celery_distlock.stores.redis.layout import Layout
from celery_distlock.stores.redis.queueing import RedisQueueing
from celery_distlock.stores.redis.scripts import ACQUIRE, HOLDERS, PASS_ON, RELEASE, RENEW, Script, command
from celery_distlock.stores.redis.uniqueness import RedisUniqueness

__all__ = ["RedisStore"]

logger = logging.getLogger(__name__)

#: The second asking evicts; a third is for holders that expired in between.
_ASKS = 3
#: Seconds that the first operation may take longer because settings are looked at.
_CHECK_TIMEOUT = 0.5
#: The scripts' word for a claim whose completion record is there.
_COMPLETED = 1
_SCAN_COUNT = 1000


class RedisStore(RedisQueueing, RedisUniqueness, PassingOn, LockStore):
    """A store in Redis.

    Arguments:
        client: a ready client, whose options are used; the store makes connections of its own.
        url: instead of a client: ``redis://``, ``rediss://`` or ``redis+socket://``.
        prefix: separates applications that share a database.
        timeout: seconds that one operation takes at most, reconnecting included. (A server that answers every step
            of a handshake just in time can take longer.) ``timeout=`` in the URL has precedence; 2 s by default.
        client_options: for ``redis.Redis.from_url``, where what the URL says has precedence too.

    Raises:
        LockConfigError: one of them cannot be used; the message says which.
    """

    rests = True

    def __init__(
        self,
        client: redis.Redis | None = None,
        *,
        url: str | None = None,
        prefix: str = "distlock",
        timeout: float | None = None,
        **client_options: Any,
    ) -> None:
        if (client is None) == (url is None):
            raise LockConfigError("RedisStore: give either a client or a url")
        if client is not None and client_options:
            raise LockConfigError(f"distlock_store_options: {sorted(client_options)} cannot be combined with client")
        if url is not None:
            url, in_url = split_timeout(url)
            timeout = timeout if in_url is None else _seconds(in_url)
            client = client_of(url, client_options)
        seconds = _seconds(2.0 if timeout is None else timeout)
        make = connection_maker(client)
        self._listeners = weakref.WeakSet()
        assert client is not None
        self.name = name_of(client)
        self.prefix = prefix
        self._layout = Layout(prefix)
        self._timeout = seconds
        self._make = make
        self._connections = Connections(make, timeout=seconds, name=self.name)
        # Inherited by forked children, so that a worker says it once and not once per child.
        self._checked = False

    @classmethod
    def from_url(cls, url: str, *, prefix: str = "distlock", options: Mapping[str, Any] | None = None) -> RedisStore:
        """Open a store by URL; with ``client`` among the options, the URL only names the kind of store.

        Arguments:
            url: ``redis://``, ``rediss://`` or ``redis+socket://``.
            prefix: separates applications that share a database.
            options: ``client``, ``timeout``, and what ``redis.Redis.from_url`` takes.

        Raises:
            LockConfigError: one of them cannot be used.
        """
        known = dict(options or {})
        if known.get("client") is not None:
            return cls(prefix=prefix, **known)
        known.pop("client", None)
        return cls(url=url, prefix=prefix, **known)

    def acquire(self, claim: Claim) -> Lease | Contended | Completed:
        """Try once to get the key; see :meth:`LockStore.acquire`.

        Where an expired holder must be replaced this takes two round trips, 0.1 s apart.

        Raises:
            StoreUnavailable: there was no answer.
        """
        done = claim.completion
        told = arguments.of_claim(claim)
        if claim.draws:
            told = (*told, b"1")
        call = ACQUIRE.call(self._layout.packed(claim.key), told, self._layout.completion_of(done))
        end = time.monotonic() + self._timeout
        answer = self._run(ACQUIRE, [call])
        asked = 1
        while isinstance(answer.replies[0], list) and answer.replies[0][0] and asked < _ASKS:
            # This pause is the protocol: it lets condemned holders speak up that were silent because the server was.
            pause = answer.replies[0][0] / 1e6 + 0.001
            if time.monotonic() + pause >= end:
                break
            time.sleep(pause)
            answer = self._run(ACQUIRE, [call], end)
            asked += 1
        reply = answer.replies[0]
        if isinstance(reply, bytes):
            deadline = deadline_of(answer.sent, claim.ttl)
            return Lease(claim.key, claim.owner, int(reply), claim.ttl, deadline, claim.limit)
        if isinstance(reply, list):
            drawn = int(reply[2]) if reply[2] else None
            return Contended(claim.key, tuple(_holders(claim.key, int(reply[1]), reply[3:])), drawn)
        assert done is not None
        return Completed(claim.key, done.run)

    def renew(self, leases: Sequence[Lease]) -> list[Renewal]:
        """Start the time of these leases anew, in one round trip; see :meth:`LockStore.renew`.

        Raises:
            StoreUnavailable: there was no answer.
        """
        calls = [
            RENEW.call(
                self._layout.packed(lease.key),
                (
                    lease.owner.encode(),
                    arguments.LINGER,
                    b"%d" % lease.fence,
                    b"%d" % round(lease.ttl * 1e6),
                    b"%d" % lease.limit,
                ),
            )
            for lease in leases
        ]
        return [Renewal(reply) for reply in self._run(RENEW, calls).replies]

    def release(self, leases: Sequence[Lease], completions: Sequence[Completion | None] = ()) -> list[bool]:
        """Give these leases back, in one round trip; see :meth:`LockStore.release`.

        A completion record is written whether or not the lease was still ours: the work was done.

        Raises:
            StoreUnavailable: there was no answer.
        """
        calls = [self._release_of(lease, done) for lease, done in zip_longest(leases, completions)]
        answer = self._run(RELEASE, calls)
        # Not listed, and not replaced either (0): if the call was sent twice, the first one has released it.
        twice = answer.attempts > 1
        return [
            reply == 1 or (reply == 0 and twice and lease.fence > 0)
            for lease, reply in zip(leases, answer.replies, strict=True)
        ]

    def pass_on(
        self, lease: Lease, claim: Claim, completion: Completion | None = None, *, unattended: bool = False
    ) -> Lease | Completed | None:
        """Turn a lease into one of another owner; see :meth:`PassingOn.pass_on`.

        Raises:
            StoreUnavailable: there was no answer.
        """
        told = (
            *arguments.of_claim(claim),
            lease.owner.encode(),
            b"%d" % lease.fence,
            b"0" if completion is None else _milliseconds(completion.ttl),
        )
        done = claim.completion
        call = PASS_ON.call(self._layout.packed(claim.key), told, self._layout.completion_of(completion or done))
        answer = self._run(PASS_ON, [call])
        fence = int(answer.replies[0])
        if not fence:
            return None
        if fence == _COMPLETED:
            assert done is not None
            return Completed(claim.key, done.run)
        return Lease(claim.key, claim.owner, fence, claim.ttl, deadline_of(answer.sent, claim.ttl), claim.limit)

    def _release_of(self, lease: Lease, done: Completion | None) -> bytes:
        ttl = b"0" if done is None else _milliseconds(done.ttl)
        told: tuple[bytes, ...] = (lease.owner.encode(), arguments.LINGER, b"%d" % lease.fence, ttl)
        if lease.rest:
            told += (b"%d" % round(lease.rest * 1e6),)
        return RELEASE.call(self._layout.packed(lease.key), told, self._layout.completion_of(done))

    def forget(self, completions: Sequence[Completion]) -> None:
        """Erase completion records, in one round trip.

        Raises:
            StoreUnavailable: there was no answer.
        """
        self._ask([command(b"DEL", self._layout.completion(done.key, done.run)) for done in completions])

    def holders(self, key: str | None = None, *, prefix: str = "") -> list[Holder]:
        """Return who holds ``key``, or every holder of a key that starts with ``prefix``; oldest first per key.

        A listing of many keys walks the whole database with ``SCAN`` and is no snapshot.

        Raises:
            StoreUnavailable: there was no answer.
        """
        if key is not None:
            return self._holders_of([key])
        found: set[str] = set()
        cursor = b"0"
        while True:
            scan = command(b"SCAN", cursor, b"MATCH", self._layout.pattern(prefix), b"COUNT", b"%d" % _SCAN_COUNT)
            cursor, names = self._ask([scan]).replies[0]
            keys = (self._layout.key_of(name) for name in names)
            found.update(name for name in keys if name is not None and name.startswith(prefix))
            if cursor == b"0":
                break
        every = sorted(found)
        parts = (every[i : i + _SCAN_COUNT] for i in range(0, len(every), _SCAN_COUNT))
        return [holder for part in parts for holder in self._holders_of(part)]

    def check(self) -> list[str]:
        """Ask the server for settings that endanger locks, and return a sentence for each.

        The first successful operation of a process does so by itself and logs them, unless this was called before.

        Raises:
            StoreUnavailable: there was no answer.
        """
        return self._warnings()

    def close(self) -> None:
        """Close this process's idle connections, and its listeners for good."""
        for listener in list(self._listeners):
            listener.close()
        self._connections.close()

    def _warnings(self, give_up: float | None = None) -> list[str]:
        self._checked = True
        policy = self._eviction_policy(give_up)
        if policy in (None, "noeviction"):
            return []
        return [
            f"{self.name} has maxmemory-policy {policy!r}: when its memory is full it may throw away locks that are "
            "held. Set it to 'noeviction', or give the locks a Redis server of their own."
        ]

    def _holders_of(self, keys: Sequence[str]) -> list[Holder]:
        calls = [HOLDERS.call(self._layout.packed(key), (b"", arguments.LINGER)) for key in keys]
        found: list[Holder] = []
        for key, (now, *flat) in zip(keys, self._run(HOLDERS, calls).replies, strict=True):
            found += _holders(key, int(now), flat)
        return found

    def _run(self, script: Script, calls: list[bytes], give_up: float | None = None) -> Answer:
        """Call a script; load it where the server does not know it (any more)."""
        if not calls:
            return Answer([], time.monotonic(), 1)
        answer = self._connections.exchange(calls, give_up)
        for reply in answer.replies:
            if isinstance(reply, ResponseError):
                break
        else:
            if self._checked:
                return answer
        for _ in range(2):  # SCRIPT FLUSH may come between the loading and the call
            unknown = [i for i, reply in enumerate(answer.replies) if isinstance(reply, NoScriptError)]
            if not unknown:
                break
            again = self._connections.exchange([script.load, *(calls[i] for i in unknown)], give_up)
            for i, reply in zip(unknown, again.replies[1:], strict=True):
                answer.replies[i] = reply
            answer = Answer(answer.replies, again.sent, max(answer.attempts, again.attempts))
        return self._sound(answer)

    def _ask(self, commands: list[bytes], give_up: float | None = None) -> Answer:
        """Send plain commands."""
        if not commands:
            return Answer([], time.monotonic(), 1)
        return self._sound(self._connections.exchange(commands, give_up))

    def _sound(self, answer: Answer) -> Answer:
        for reply in answer.replies:
            if isinstance(reply, ResponseError):
                raise StoreUnavailable(self.name, str(reply)) from reply
        if not self._checked:
            self._report()
        return answer

    def _report(self) -> None:
        try:
            for warning in self._warnings(time.monotonic() + min(self._timeout, _CHECK_TIMEOUT)):
                logger.warning("%s", warning, extra={"store": self.name})
        except Exception:  # the operation itself has succeeded, and must not fail because of this
            logger.debug("could not ask %s for its settings", self.name, exc_info=True)

    def _eviction_policy(self, give_up: float | None) -> str | None:
        get = command(b"CONFIG", b"GET", b"maxmemory-policy")
        reply = self._connections.exchange([get], give_up).replies[0]
        if isinstance(reply, dict):
            reply = [part for pair in reply.items() for part in pair]
        if isinstance(reply, list) and len(reply) == 2:
            return str(reply[1].decode())
        # Hosted servers forbid or rename CONFIG.
        text = self._ask([command(b"INFO", b"memory")], give_up).replies[0]
        for line in text.decode(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name == "maxmemory_policy":
                return str(value.strip())
        return None


def _holders(key: str, now: int, flat: Sequence[Any]) -> list[Holder]:
    """Make holders of owner, expiry, record, mark of an offer, owner, … and put the oldest first."""
    found: list[Holder] = []
    for owner, expiry, value, offered in zip(flat[::4], flat[1::4], flat[2::4], flat[3::4], strict=True):
        fence, _, rest = value.partition(b" ")
        told: dict[str, Any] = json.loads(rest.partition(b" ")[2] or b"{}")
        told.update(key=key, owner=owner.decode(), fence=int(fence or 0), remaining=(float(expiry) - now) / 1e6)
        if offered:
            told["offered"] = True
        if owner.endswith(b":resting"):
            if told["remaining"] <= 0:
                continue
            told["resting"] = True
        found.append(told)  # type: ignore[arg-type]  # the holder told it; a TypedDict checks nothing at run time
    return sorted(found, key=lambda holder: holder["fence"])


def _milliseconds(seconds: float) -> bytes:
    return b"%d" % max(1, round(seconds * 1000))


def _seconds(value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise LockConfigError(f"distlock_store_options: timeout is {value!r}, not a positive number of seconds")
    return seconds
