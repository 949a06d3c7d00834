"""The Lua scripts, and their calls as the bytes that go to the server."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files

__all__ = [
    "ACQUIRE",
    "CONFIRM",
    "ENQUEUE",
    "HOLDERS",
    "PASS_ON",
    "POLL",
    "RELEASE",
    "RENEW",
    "UNIQUE_BEGIN",
    "UNIQUE_CANCEL",
    "UNIQUE_RESERVE",
    "WITHDRAW",
    "Script",
    "bulk",
    "command",
]


#: What stands before a bulk string of each length; formatting it anew costs as much as the rest.
_SIZES = tuple(b"$%d\r\n" % length for length in range(1024))


def bulk(argument: bytes) -> bytes:
    """Return one argument as a RESP bulk string."""
    return b"$%d\r\n%b\r\n" % (len(argument), argument)


def command(*arguments: bytes) -> bytes:
    """Return a whole command in RESP."""
    return b"*%d\r\n%b" % (len(arguments), b"".join(map(bulk, arguments)))


_INCLUDE = re.compile(rb"^-- include: (\w+)$", re.MULTILINE)


def _source(name: str) -> bytes:
    return files(__package__).joinpath(f"{name}.lua").read_bytes()


class Script:
    """One script: the common prelude and a file of its own, in which ``-- include: name`` stands for another file.

    Arguments:
        name: of the ``.lua`` file.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        own = _INCLUDE.sub(lambda line: _source(line[1].decode()), _source(name))
        self.body = _source("prelude") + b"\n" + own
        self.sha = hashlib.sha1(self.body, usedforsecurity=False).hexdigest().encode()
        self.load = command(b"SCRIPT", b"LOAD", self.body)
        self._heads: dict[tuple[int, int], bytes] = {}

    def call(self, packed: bytes, arguments: Sequence[bytes], extra: bytes | None = None) -> bytes:
        """Return the call as it is sent.

        Arguments:
            packed: the lock's keys, from :meth:`Layout.packed`.
            arguments: the script's ``ARGV``.
            extra: the eighth key, or None.
        """
        counts = 7 if extra is None else 8, len(arguments)
        pieces = [self._heads.get(counts) or self._head(*counts), packed]
        if extra is not None:
            pieces.append(bulk(extra))
        for argument in arguments:
            length = len(argument)
            pieces += (_SIZES[length] if length < 1024 else b"$%d\r\n" % length, argument, b"\r\n")
        return b"".join(pieces)

    def call_with(self, packed: bytes, arguments: Sequence[bytes], more: Sequence[bytes]) -> bytes:
        """Return the call as it is sent, with further keys behind the lock's.

        Arguments:
            packed: the lock's keys, from :meth:`Layout.packed`.
            arguments: the script's ``ARGV``.
            more: the eighth key, and those that follow.
        """
        counts = 7 + len(more), len(arguments)
        head = self._heads.get(counts) or self._head(*counts)
        return head + packed + b"".join(map(bulk, (*more, *arguments)))

    def _head(self, keys: int, arguments: int) -> bytes:
        head = b"*%d\r\n%b" % (3 + keys + arguments, bulk(b"EVALSHA") + bulk(self.sha) + bulk(b"%d" % keys))
        self._heads[keys, arguments] = head
        return head


ACQUIRE = Script("acquire")
RENEW = Script("renew")
RELEASE = Script("release")
ENQUEUE = Script("enqueue")
POLL = Script("poll")
PASS_ON = Script("pass_on")
CONFIRM = Script("confirm")
WITHDRAW = Script("withdraw")
HOLDERS = Script("holders")
UNIQUE_RESERVE = Script("unique_reserve")
UNIQUE_BEGIN = Script("unique_begin")
UNIQUE_CANCEL = Script("unique_cancel")
