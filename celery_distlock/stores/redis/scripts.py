"""The Lua scripts, and their calls as the bytes that go to the server."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.resources import files

__all__ = [
    "ACQUIRE",
    "CONFIRM",
    "ENQUEUE",
    "HOLDERS",
    "POLL",
    "RELEASE",
    "RENEW",
    "WITHDRAW",
    "Script",
    "bulk",
    "command",
]


def bulk(argument: bytes) -> bytes:
    """Return one argument as a RESP bulk string."""
    return b"$%d\r\n%b\r\n" % (len(argument), argument)


def command(*arguments: bytes) -> bytes:
    """Return a whole command in RESP."""
    return b"*%d\r\n%b" % (len(arguments), b"".join(map(bulk, arguments)))


class Script:
    """One script: the common prelude, other common parts, and a file of its own.

    Arguments:
        name: of the ``.lua`` file.
        parts: names of the files between the prelude and that one.
    """

    def __init__(self, name: str, *parts: str) -> None:
        folder = files(__package__)
        self.name = name
        self.body = b"\n".join(folder.joinpath(f"{part}.lua").read_bytes() for part in ("prelude", *parts, name))
        self._sha = hashlib.sha1(self.body, usedforsecurity=False).hexdigest().encode()
        self.load = command(b"SCRIPT", b"LOAD", self.body)
        self._heads: dict[tuple[int, int], bytes] = {}

    def call(self, packed: bytes, arguments: Sequence[bytes], extra: bytes | None = None) -> bytes:
        """Return the call as it is sent.

        Arguments:
            packed: the lock's keys, from :meth:`Layout.packed`.
            arguments: the script's ``ARGV``.
            extra: the seventh key, or None.
        """
        counts = 6 if extra is None else 7, len(arguments)
        head = self._heads.get(counts) or self._head(*counts)
        rest = b"".join([b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments])
        return head + packed + rest if extra is None else head + packed + bulk(extra) + rest

    def _head(self, keys: int, arguments: int) -> bytes:
        head = b"*%d\r\n%b" % (3 + keys + arguments, bulk(b"EVALSHA") + bulk(self._sha) + bulk(b"%d" % keys))
        self._heads[keys, arguments] = head
        return head


ACQUIRE = Script("acquire", "queue", "grant")
RENEW = Script("renew", "queue")
RELEASE = Script("release", "queue")
ENQUEUE = Script("enqueue", "queue", "grant", "look")
POLL = Script("poll", "queue", "look")
CONFIRM = Script("confirm", "queue", "grant")
WITHDRAW = Script("withdraw", "queue")
HOLDERS = Script("holders")
