"""The Lua scripts, and their calls as the bytes that go to the server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.resources import files

__all__ = ["ACQUIRE", "RELEASE", "RENEW", "Script", "bulk", "command"]


def bulk(argument: bytes) -> bytes:
    """Return one argument as a RESP bulk string."""
    return b"$%d\r\n%b\r\n" % (len(argument), argument)


def command(*arguments: bytes) -> bytes:
    """Return a whole command in RESP."""
    return b"*%d\r\n%b" % (len(arguments), b"".join(map(bulk, arguments)))


class Script:
    """One script: the common prelude and a file of its own.

    Arguments:
        name: of the ``.lua`` file.
        arguments: how many it takes in ``ARGV``.
    """

    def __init__(self, name: str, arguments: int) -> None:
        folder = files(__package__)
        self.name = name
        self.body = b"\n".join(folder.joinpath(f"{part}.lua").read_bytes() for part in ("prelude", name))
        sha = hashlib.sha1(self.body, usedforsecurity=False).hexdigest().encode()
        self.load = command(b"SCRIPT", b"LOAD", self.body)
        self._heads = {
            keys: b"*%d\r\n%b" % (3 + keys + arguments, bulk(b"EVALSHA") + bulk(sha) + bulk(b"%d" % keys))
            for keys in (6, 7)
        }

    def call(self, packed: bytes, arguments: Iterable[bytes], extra: bytes | None = None) -> bytes:
        """Return the call as it is sent.

        Arguments:
            packed: the lock's keys, from :meth:`Layout.packed`.
            arguments: the script's ``ARGV``.
            extra: the seventh key, or None.
        """
        if extra is None:
            return self._heads[6] + packed + b"".join([b"$%d\r\n%b\r\n" % (len(a), a) for a in arguments])
        return self._heads[7] + packed + bulk(extra) + b"".join(map(bulk, arguments))


ACQUIRE = Script("acquire", 6)
RENEW = Script("renew", 5)
RELEASE = Script("release", 4)
