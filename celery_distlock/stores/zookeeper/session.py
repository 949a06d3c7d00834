"""The session of one store and process, and how it is spoken to.

Authority
    The server decides whether a session lives. We learn it from its answers; without an answer nothing is known.

A session::

      first use                connection lost              the server says that
    ───────────▶ connected ───────────────────▶ suspended ───────────────────────▶ expired: all its nodes are gone,
                     ▲                              │      it has expired            and so are the leases; the next
                     └──────────────────────────────┘                                one begins by itself

How long it may be relied upon
    Whatever the session sends, a ping or a command, starts its time anew. But it is the leader who ends it, and he may
    not have heard of the last signs of life: so :attr:`Session.ttl` is half of the negotiated time-out. Why, and what
    else it takes: ``connection.py``.

Requests are pipelined, and executed in the order in which they were sent, across reconnects. One that has no answer in
time is not taken back: it may be executed whenever the connection is there again.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from kazoo.exceptions import (
    BadVersionError,
    KazooException,
    NoChildrenForEphemeralsError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    RolledBackError,
    RuntimeInconsistency,
)
from kazoo.protocol.states import KazooState, KeeperState
from kazoo.retry import KazooRetry

from celery_distlock.errors import LockConfigError, StoreUnavailable
from celery_distlock.stores.zookeeper.address import Address
from celery_distlock.stores.zookeeper.client import Client, retry_of
from celery_distlock.stores.zookeeper.connection import RELIED_UPON

__all__ = ["Answer", "Request", "Session"]

logger = logging.getLogger(__name__)

#: What a server says of nodes, and not of itself.
_ANSWERS = (NoNodeError, NodeExistsError, BadVersionError, NotEmptyError, NoChildrenForEphemeralsError)
#: After these it is tried once more: the connection was lost, or the session, or somebody else has come.
_AGAIN = (*KazooRetry.RETRY_EXCEPTIONS, *KazooRetry.EXPIRED_EXCEPTIONS)
#: Seconds that saying goodbye may take.
_FAREWELL = 2.0

T = TypeVar("T")
#: Sends something through the client, and returns kazoo's asynchronous result.
Request = Callable[[Client], Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said.

    Attributes:
        replies: one per request: its result, or what the server said against it.
        sent: monotonic time before the first request was sent.
        session: whose requests they were.
        ttl: seconds for which that session may be relied upon from ``sent`` on.
    """

    replies: list[Any]
    sent: float
    session: int
    ttl: float


class Session:
    """One session at a time, made when it is needed, per process.

    Arguments:
        address: where.
        on_connected: called in kazoo's thread whenever there is a connection (again); must not block.
        on_ended: called when a session has ended, if by the server then in kazoo's thread; must not block.
        on_lost: called thereafter if it was the server that ended it.
    """

    def __init__(
        self,
        address: Address,
        on_connected: Callable[[], None],
        on_ended: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._address = address
        self._on_connected = on_connected
        self._on_ended = on_ended
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._client: Client | None = None
        # What is set in a thread that must not begin a session.
        self._guest = threading.local()
        #: The present session's number, or 0.
        self.id = 0
        _everywhere.add(self)

    @property
    def ttl(self) -> float:
        """Seconds for which a session may be relied upon; before there was one, what will be asked for."""
        return self.timeout * RELIED_UPON

    @property
    def timeout(self) -> float:
        """Seconds of silence after which the servers end a session; before there was one, what will be asked for."""
        client = self._client
        return (client.negotiated if client is not None else 0.0) or self._address.session_timeout

    def run(self, work: Callable[[float], T]) -> T:
        """Do some work, again when the connection was lost meanwhile, as long as the time-out allows.

        Arguments:
            work: is given the monotonic time by which it must be done.

        Raises:
            StoreUnavailable: there was no answer.
        """
        end = time.monotonic() + self._address.timeout
        client = self._begun()
        try:
            with contextlib.suppress(*_AGAIN):
                return work(end)
            retry = retry_of(client.handler, 0.01, 0.2, max(0.0, end - time.monotonic()))
            done: T = retry(work, end)
            return done
        except client.handler.timeout_exception as exc:
            reason = "no answer in time" if client.connected else "no connection in time"
            raise StoreUnavailable(self._address.name, reason) from exc
        except KazooException as exc:
            cause = exc.__context__ if isinstance(exc.__context__, KazooException) else exc
            raise StoreUnavailable(self._address.name, str(cause) or type(cause).__name__) from cause

    def run_if_open(self, work: Callable[[float], object]) -> None:
        """Do some work if there is a session, and if it lasts: no other is begun for it, since nobody would end that.

        Raises:
            StoreUnavailable: there was no answer, or there is no session any more.
        """
        self._guest.here = True
        try:
            if self.connected:
                self.run(work)
        finally:
            self._guest.here = False

    def exchange(self, requests: Sequence[Request], end: float) -> Answer:
        """Send these requests in one go, and wait for the answers.

        Arguments:
            requests: may be none.
            end: monotonic time.

        Raises:
            KazooException: the connection was lost, or the server refused to serve us; see :meth:`run`.
        """
        client = self._connected(end)
        sent = time.monotonic()
        pending = [request(client) for request in requests]
        replies: list[Any] = []
        for one in pending:
            try:
                reply = one.get(timeout=max(0.001, end - time.monotonic()))
            except _ANSWERS as exc:
                reply = exc
            if isinstance(reply, list) and reply and isinstance(reply[0], KazooException):
                _failed(reply)
            replies.append(reply)
        return Answer(replies, sent, self.id, self.ttl)

    def send(self, request: Request, then: Callable[[Any], None] = lambda result: None) -> None:
        """Send a request, wait for nothing, and have ``then`` called with kazoo's result in kazoo's thread."""
        client = self._client
        if client is not None:
            with contextlib.suppress(KazooException):
                request(client).rawlink(then)

    def overhear_children(self, path: str, then: Callable[[Answer], None]) -> None:
        """Ask for the names of a node's children as they are for the leader, and wait for nothing.

        Arguments:
            path: the node's.
            then: is given the answer in the thread that reads it, and must not block; never called if there is none.
        """
        client = self._client
        if client is not None:
            sent, session = time.monotonic(), self.id
            client.overhear_children(path, lambda names: then(Answer([names], sent, session, self.ttl)))

    @property
    def is_open(self) -> bool:
        """Whether there is a session, or one that is about to begin."""
        return self._client is not None

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        client = self._client
        return client is not None and client.connected

    def begin(self) -> None:
        """Connect, in the background."""
        self._begun()

    def close(self) -> None:
        """End the session, in bounded time: all its nodes are gone. The next use begins another one."""
        with self._lock:
            client, self._client = self._client, None
        if client is None:
            return
        try:
            _ending(client).join(_FAREWELL)
        except RuntimeError:  # no new threads: the interpreter is shutting down
            client.say_goodbye(_FAREWELL)
        self.id = 0
        self._on_ended()

    def forget(self) -> None:
        """Drop the parent's session in a forked child, without a word to the server."""
        client, self._client = self._client, None
        self._lock = threading.Lock()
        self.id = 0
        if client is not None:
            atexit.unregister(client.handler.stop)
            client.forget()

    def _begun(self) -> Client:
        client = self._client
        if client is not None:
            return client
        if getattr(self._guest, "here", False):
            raise StoreUnavailable(self._address.name, "its session was closed")
        with self._lock:
            if self._client is None:
                try:
                    client = Client(self._address)
                except (ValueError, TypeError, KazooException) as exc:
                    raise LockConfigError(f"distlock_url or distlock_store_options: {exc}") from exc
                self._client = client
                client.add_listener(lambda state: self._on_state(client, state))
                client.start_async()
            return self._client

    def _connected(self, end: float) -> Client:
        client = self._begun()
        if not client.connected and not client.wait_connected(max(0.001, end - time.monotonic())):
            raise client.handler.timeout_exception("no connection in time")
        return client

    def _on_state(self, client: Client, state: str) -> None:
        if client is not self._client:
            return
        if state == KazooState.CONNECTED:
            known = client.client_id
            self.id = known[0] if known is not None else 0
            self._on_connected()
        elif state == KazooState.LOST:
            self.id = 0
            if client.client_state in (KeeperState.AUTH_FAILED, KeeperState.CLOSED):
                # It gives up then; another one may be luckier.
                self._client = None
                _ending(client)
            self._on_ended()
            self._on_lost()


def _failed(transaction: Sequence[KazooException]) -> None:
    """Raise the reason for which a transaction failed, unless it is one that tells something of nodes."""
    for reason in transaction:
        if not isinstance(reason, (*_ANSWERS, RolledBackError, RuntimeInconsistency)):
            raise reason


def _ending(client: Client) -> threading.Thread:
    """Say goodbye in a thread of its own: kazoo's farewell lasts as long as a frozen server is frozen."""
    thread = threading.Thread(target=_end, args=(client,), name="distlock-farewell", daemon=True)
    thread.start()
    return thread


def _end(client: Client) -> None:
    try:
        client.stop()
        client.close()
    except Exception:
        logger.debug("a session could not be ended in good order", exc_info=True)


_everywhere: weakref.WeakSet[Session] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for session in list(_everywhere):
        session.forget()


def _at_exit() -> None:
    for session in list(_everywhere):
        session.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
# Nodes of a process that ends in good order are gone at once.
atexit.register(_at_exit)
