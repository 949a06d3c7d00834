"""Replies in RESP 2, as they come in pieces, and what the wire makes of a peer that does not keep to it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from redis.exceptions import BusyLoadingError, ConnectionError, InvalidResponse, NoScriptError, TimeoutError

from celery_distlock.stores.redis.wire import Pushes, Wire, pushes_of, wire_of


class Peer:
    """The other end of a wire, which has said something before it was asked."""

    def __init__(self) -> None:
        ours, self.end = socket.socketpair()
        ours.settimeout(0.2)
        parser: Any = redis.Connection()._parser
        self.sock = ours
        self.wire = Wire(SimpleNamespace(_sock=ours, _parser=parser, protocol=2))

    def says(self, reply: bytes, count: int = 1, within: float = 5.0) -> list[Any]:
        self.end.sendall(reply)
        return self.wire.exchange(b"question", count, time.monotonic() + within)

    def close(self) -> None:
        self.sock.close()
        self.end.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        (b":-7\r\n", -7),
        (b"$5\r\na\r\nbc\r\n", b"a\r\nbc"),
        (b"$0\r\n\r\n", b""),
        (b"$-1\r\n", None),
        (b"+OK\r\n", b"OK"),
        (b"*-1\r\n", None),
        (b"*0\r\n", []),
        (b"*3\r\n:1\r\n*2\r\n$1\r\nx\r\n$-1\r\n+y\r\n", [1, [b"x", None], b"y"]),
    ],
)
def test_every_kind_of_reply_is_understood(peer: Peer, reply: bytes, value: Any) -> None:
    assert peer.says(reply) == [value]


def test_errors_are_redis_pys_own_and_stand_among_the_replies(peer: Peer) -> None:
    first, error, last = peer.says(b":1\r\n-NOSCRIPT No matching script.\r\n:2\r\n", 3)
    assert (first, last) == (1, 2)
    assert isinstance(error, NoScriptError)


def test_an_error_that_concerns_the_whole_server_is_raised(peer: Peer) -> None:
    with pytest.raises(BusyLoadingError):
        peer.says(b"-LOADING Redis is loading the dataset in memory\r\n")


def test_replies_may_be_cut_anywhere(peer: Peer) -> None:
    replies = b"*2\r\n$3\r\na\r\n\r\n:12\r\n" + b":5\r\n"
    # What is there is read at once, and the rest byte by byte.
    for cut in range(1, len(replies)):
        peer.wire._sock = _Crumbs(replies[:cut], replies[cut:])
        assert peer.wire.exchange(b"question", 2, time.monotonic() + 5.0) == [[b"a\r\n", 12], 5]


class _Crumbs:
    """A socket that gives a piece, and then one byte at a time."""

    def __init__(self, piece: bytes, rest: bytes) -> None:
        self.left = [piece, *(rest[i : i + 1] for i in range(len(rest)))]

    def sendall(self, data: bytes) -> None:
        pass

    def recv(self, size: int) -> bytes:
        return self.left.pop(0)


def test_silence_is_a_timeout(peer: Peer) -> None:
    with pytest.raises(TimeoutError):
        peer.says(b"")


def test_a_reply_that_trickles_in_is_given_up_at_the_end_of_the_time(peer: Peer) -> None:
    with pytest.raises(TimeoutError, match="part"):
        peer.says(b"$10\r\nabc", within=0.0)


@pytest.mark.parametrize("said", [b"", b"$10\r\nabc"], ids=["before", "within"])
def test_a_peer_that_hangs_up_is_a_lost_connection(peer: Peer, said: bytes) -> None:
    peer.end.sendall(said)
    peer.end.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionError, match="closed"):
        peer.wire.exchange(b"question", 1, time.monotonic() + 5.0)


def test_a_socket_that_is_gone_is_a_lost_connection(peer: Peer) -> None:
    peer.sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(ConnectionError, match="lost"):
        peer.wire.exchange(b"question", 1, time.monotonic() + 5.0)


@pytest.mark.parametrize("reply", [b"HTTP/1.1 400\r\n", b":one\r\n", b"_\r\n", b"$x\r\n"])
def test_another_protocol_is_refused(peer: Peer, reply: bytes) -> None:
    with pytest.raises(InvalidResponse):
        peer.says(reply)


def test_a_reply_too_many_is_refused_for_it_would_be_taken_for_the_next_ones(peer: Peer) -> None:
    with pytest.raises(InvalidResponse, match="more"):
        peer.says(b":1\r\n:2\r\n")


def test_only_resp_2_is_read_here() -> None:
    """With RESP 3 the server may speak up unasked, which redis-py has to see."""
    assert wire_of(redis.Connection(protocol=3)) is None
    assert wire_of(redis.Connection(protocol=2)) is not None


# What comes unasked.

MESSAGE = b"*3\r\n$7\r\nmessage\r\n$2\r\nch\r\n$5\r\nh\r\nlo\r\n"
HEARD = [b"message", b"ch", b"h\r\nlo"]


@pytest.fixture
def pushes(peer: Peer) -> Pushes:
    parser: Any = redis.Connection()._parser
    return Pushes(SimpleNamespace(_sock=peer.sock, _parser=parser, protocol=2))


def test_whatever_has_come_is_heard_and_nothing_is_waited_for(peer: Peer, pushes: Pushes) -> None:
    assert list(pushes.arrived()) == []
    peer.end.sendall(MESSAGE + MESSAGE + b"*2\r\n$4\r\npong\r\n$0\r\n\r\n")
    assert list(pushes.arrived()) == [HEARD, HEARD, [b"pong", b""]]
    assert list(pushes.arrived()) == []


def test_what_comes_unasked_may_be_cut_anywhere(peer: Peer, pushes: Pushes) -> None:
    for cut in range(1, len(MESSAGE)):
        peer.end.sendall(MESSAGE + MESSAGE[:cut])
        assert list(pushes.arrived()) == [HEARD]
        peer.end.sendall(MESSAGE[cut:])
        assert list(pushes.arrived()) == [HEARD]


def test_who_listens_hears_that_the_peer_has_hung_up(peer: Peer, pushes: Pushes) -> None:
    peer.end.sendall(MESSAGE)
    peer.end.shutdown(socket.SHUT_WR)
    assert list(pushes.arrived()) == [HEARD]
    with pytest.raises(ConnectionError, match="closed"):
        list(pushes.arrived())


def test_who_listens_refuses_another_protocol(peer: Peer, pushes: Pushes) -> None:
    peer.end.sendall(b"HTTP/1.1 400\r\n")
    with pytest.raises(InvalidResponse):
        list(pushes.arrived())


def test_only_plain_sockets_are_listened_to_without_redis_py(peer: Peer) -> None:
    """Of what is left in the buffer of an encrypted one, an event loop knows nothing."""

    class Encrypted(socket.socket):
        pass

    with Encrypted() as encrypted:
        parser: Any = redis.Connection()._parser
        assert pushes_of(SimpleNamespace(_sock=encrypted, _parser=parser, protocol=2)) is None
    assert pushes_of(SimpleNamespace(_sock=peer.sock, _parser=parser, protocol=3)) is None
    assert pushes_of(SimpleNamespace(_sock=peer.sock, _parser=parser, protocol=2)) is not None
