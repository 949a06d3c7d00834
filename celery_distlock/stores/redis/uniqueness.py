"""Tokens in Redis; what is stored where: ``layout.py``. Each operation is one script, by the server's clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from celery_distlock.lease import Claim
from celery_distlock.stores.base import Uniqueness
from celery_distlock.stores.redis import arguments
from celery_distlock.stores.redis.connection import Answer
from celery_distlock.stores.redis.layout import Layout
from celery_distlock.stores.redis.scripts import UNIQUE_BEGIN, UNIQUE_CANCEL, UNIQUE_RESERVE, Script
from celery_distlock.tokens import Begun, Duplicate, Reserved, Superseded, Token, running_key

__all__ = ["RedisUniqueness"]

_RESERVED, _DUPLICATE, _SUPERSEDED = 1, 2, 3


class RedisUniqueness(Uniqueness):
    """The part of :class:`RedisStore` that deals with tokens."""

    _layout: Layout

    if TYPE_CHECKING:

        def _run(self, script: Script, calls: list[bytes], give_up: float | None = None) -> Answer: ...

    def reserve(self, token: Token) -> Reserved | Duplicate | Superseded:
        """Enter a message as the one of its key; see :meth:`Uniqueness.reserve`.

        Raises:
            StoreUnavailable: there was no answer.
        """
        code, name = self._call(
            UNIQUE_RESERVE,
            token,
            (
                token.id.encode(),
                arguments.LINGER,
                _micros(token.ttl),
                _micros(token.window),
                _flag(token.queued),
                _flag(token.running),
                _flag(token.replaces),
            ),
        )
        if code == _RESERVED:
            return Reserved(name.decode() or None)
        return Superseded(name.decode() or None) if code == _SUPERSEDED else Duplicate(name.decode())

    def begin(self, token: Token, claim: Claim | None) -> Begun | Superseded:
        """Start a message; see :meth:`Uniqueness.begin`.

        Raises:
            StoreUnavailable: there was no answer.
        """
        lease = (b"", arguments.LINGER, b"0", b"1", b"{}") if claim is None else arguments.of_claim(claim)
        code, name = self._call(
            UNIQUE_BEGIN, token, (*lease, token.id.encode(), _flag(token.replaces), _flag(claim is not None))
        )
        return Superseded(name.decode() or None) if code == _SUPERSEDED else Begun(int(name))

    def cancel(self, token: Token, *, window: bool) -> None:
        """Free the place of a message that will not start; see :meth:`Uniqueness.cancel`.

        Raises:
            StoreUnavailable: there was no answer.
        """
        self._call(UNIQUE_CANCEL, token, (token.id.encode(), arguments.LINGER, _flag(window)))

    def _call(self, script: Script, token: Token, argv: Sequence[bytes]) -> tuple[int, bytes]:
        key = running_key(token.key)
        more = (self._layout.of_kind("u", key), self._layout.of_kind("x", key))
        reply = self._run(script, [script.call_with(self._layout.packed(key), argv, more)]).replies[0]
        return (reply[0], reply[1]) if isinstance(reply, list) else (_RESERVED, b"")


def _flag(value: bool) -> bytes:
    return b"1" if value else b""


def _micros(seconds: float) -> bytes:
    return b"%d" % round(seconds * 1e6)
