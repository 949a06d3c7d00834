"""Where everything lies in Redis. Version 1; another layout must have another number, and exclude this one.

======================================  ======  ==============================================================
key                                     type    content
======================================  ======  ==============================================================
``<prefix>:1:{<shard>}:h:<key>``        zset    holders: owner → expiry (server's time, µs)
``<prefix>:1:{<shard>}:r:<key>``        hash    owner → ``<fence> <limit> <JSON record>``;
                                                ``<owner>:condemned`` → when it was first found expired by
                                                somebody who wants its place (µs). In both, the owner
                                                ``<owner>:resting`` was released before its shortest time was over
``<prefix>:1:{<shard>}:w:<key>``        zset    waiters: owner → ticket
``<prefix>:1:{<shard>}:d:<key>``        zset    waiters, and holders that were offered their place and have not
                                                taken it: owner → when it is taken for gone (µs)
``<prefix>:1:{<shard>}:t:<key>``        zset    tombstones: owner (lost its place), ``<owner>:barred`` (was
                                                released and must not come back) → since when (µs)
``<prefix>:1:{<shard>}:q:<key>``        hash    waiters: owner → ``<claim ttl> <not before> <limit> <listener> <JSON
                                                record>``, times in µs
``<prefix>:1:{<shard>}:u:<key>``        hash    a token; the key is that of the lease a running task holds while
                                                it is unique: ``queued`` → task id, ``window`` → task id; until
                                                when: ``queued:until``, ``window:until`` and, once it has started,
                                                ``window:full`` (µs)
``<prefix>:1:{<shard>}:x:<key>``        zset    task ids that a newer one has superseded, ``<id>:begun``: has started
                                                before its token was entered → until when that is remembered (µs)
``<prefix>:1:{<shard>}:meta``           hash    ``fence``: the last fence or ticket given out; ``epoch``: the
                                                first
``<prefix>:1:{<shard>}:c:<n>:<key>…``   string  a completion record, ``…<key>:<run>``; n is the key's length
======================================  ======  ==============================================================

Offers are published on ``<prefix>:1:offers:<listener>``, as ``<n> <owner><name of the holders' key>``; n is the
owner's length.

The shard is the only hash tag, so that a script's keys are in one slot of a cluster. Only the (at most 16) meta
hashes have no expiry. The others vanish when they are empty; holders and records, for a late renewal to find, an
hour after the last of them has expired; tombstones after an hour; waiters and offers with the last one's deadline;
tokens and what has superseded them at the end of their time.
"""

from __future__ import annotations

import re
from zlib import crc32

from celery_distlock.errors import LockConfigError
from celery_distlock.lease import Completion

__all__ = ["SHARDS", "Layout"]

SHARDS = 16
_VERSION = b"1"
_KINDS = (b"h:", b"r:", b"w:", b"d:", b"t:", b"q:")

#: Keys are text; one that is not valid UTF-8 (lone surrogates) must still be a key.
_CODEC = ("utf-8", "surrogatepass")


class Layout:
    """The names of Redis keys under one prefix.

    Arguments:
        prefix: separates applications that share a database.

    Raises:
        LockConfigError: the prefix contains a brace, which would move the hash tag.
    """

    def __init__(self, prefix: str) -> None:
        if "{" in prefix or "}" in prefix:
            raise LockConfigError(f"distlock_prefix: {prefix!r} contains a brace; any other characters are allowed")
        self._prefix = prefix.encode(*_CODEC) + b":" + _VERSION + b":{"
        self._bases = [b"%b%d}:" % (self._prefix, shard) for shard in range(SHARDS)]
        metas = [base + b"meta" for base in self._bases]
        self._packed_metas = [b"\r\n$%d\r\n%b\r\n" % (len(meta), meta) for meta in metas]
        self._last: tuple[str | None, bytes] = (None, b"")
        self._holders = re.compile(re.escape(self._prefix) + rb"(\d+)\}:h:(.*)", re.DOTALL)

    def packed(self, key: str) -> bytes:
        """Return the seven keys of a lock, in the scripts' order, as RESP bulk strings."""
        # What is released is mostly what was acquired last. One assignment, one read: threads need no lock.
        last = self._last
        if last[0] == key:
            return last[1]
        packed = self._pack(key)
        self._last = (key, packed)
        return packed

    def _pack(self, key: str) -> bytes:
        name = key.encode(*_CODEC)
        shard = crc32(name) % SHARDS
        base = self._bases[shard]
        head = b"$%d\r\n%b" % (len(base) + 2 + len(name), base)
        # They differ in one letter: what ends one and begins the next goes between all of them.
        return b"".join((head, (name + b"\r\n" + head).join(_KINDS), name, self._packed_metas[shard]))

    def of_kind(self, kind: str, key: str) -> bytes:
        """Return one of the keys of a lock or token, by the letter in the table above."""
        name = key.encode(*_CODEC)
        return b"%b%b:%b" % (self._bases[crc32(name) % SHARDS], kind.encode(), name)

    def completion(self, key: str, run: str) -> bytes:
        """Return the key of a completion record."""
        name = key.encode(*_CODEC)
        return b"%bc:%d:%b:%b" % (self._bases[crc32(name) % SHARDS], len(name), name, run.encode(*_CODEC))

    def completion_of(self, done: Completion | None) -> bytes | None:
        """Return the key of a completion record, if there is one to speak of."""
        return None if done is None else self.completion(done.key, done.run)

    def channel(self, listener: str) -> bytes:
        """Return the name of the pub/sub channel of a listener."""
        return self._prefix[:-1] + b"offers:" + listener.encode()

    def hint(self, payload: bytes) -> tuple[str, str] | None:
        """Return key and owner of what was published; None if it is nothing of ours."""
        length, blank, rest = payload.partition(b" ")
        key = self.key_of(rest[int(length) :]) if blank and length.isdigit() else None
        return None if key is None else (key, rest[: int(length)].decode(*_CODEC))

    def pattern(self, prefix: str) -> bytes:
        """Return a ``SCAN`` pattern of the holders of keys that start with ``prefix``; it may match too much."""
        return b"%b*}:h:%b*" % (_literally(self._prefix), _literally(prefix.encode(*_CODEC)))

    def key_of(self, holders: bytes) -> str | None:
        """Return the lock's key of a Redis key of holders; None if it is not one of this layout."""
        match = self._holders.fullmatch(holders)
        if match is None or int(match[1]) != crc32(match[2]) % SHARDS:
            return None
        return match[2].decode(*_CODEC)


def _literally(text: bytes) -> bytes:
    return re.sub(rb"([*?\[\]^\\-])", rb"\\\1", text)
