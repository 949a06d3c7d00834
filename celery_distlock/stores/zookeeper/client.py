"""Kazoo's client, as we need it: it tells the negotiated time-out, and connects and reconnects in bounded time."""

from __future__ import annotations

import logging
import math
import select
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from kazoo.client import KazooClient
from kazoo.exceptions import EXCEPTIONS
from kazoo.handlers.threading import SequentialThreadingHandler
from kazoo.protocol.serialization import (
    CheckVersion,
    CloseInstance,
    Create,
    Create2,
    Delete,
    GetChildren,
    MultiHeader,
    SetData,
    Sync,
    Transaction,
    ZnodeStat,
    int_struct,
    read_string,
    stat_struct,
)
from kazoo.retry import KazooRetry
from kazoo.security import OPEN_ACL_UNSAFE

from celery_distlock.stores.zookeeper.address import Address
from celery_distlock.stores.zookeeper.connection import Connection

__all__ = ["Client", "Results", "retry_of"]

logger = logging.getLogger(__name__)

#: The pauses between two tries to connect double from the first to the last; in seconds.
_FIRST_PAUSE, _LAST_PAUSE = 0.01, 0.5
_EPHEMERAL = 1
#: In the place of an operation's type: an error code follows.
_FAILED = -1


class Results(list[Any]):
    """What became of a transaction's operations.

    Attributes:
        number: the transaction's, which is the ``czxid`` of all nodes that it made.
    """

    number = 0

    @property
    def moment(self) -> int:
        """When it was executed, in milliseconds since the epoch by the leader's clock, if that is told; else 0."""
        return next((one.moment for one in self if isinstance(one, _Made)), 0)


class _Made(str):
    """The path of a node that was made, and when."""

    moment = 0


class _Committed:
    """The result of a transaction, some time."""

    def __init__(self, result: Any, request: Any) -> None:
        self._result = result
        self._request = request

    def get(self, timeout: float) -> Results:
        results = Results(self._result.get(timeout=timeout))
        results.number = self._request.number
        return results


class _Overheard:
    """In the place of kazoo's result: has a function called in the very thread that reads the answer.

    Arguments:
        then: is given the answer; not called if there is none, or if that is an error.
    """

    def __init__(self, then: Callable[[Any], None]) -> None:
        self._then = then

    def set(self, value: Any = None) -> None:
        try:
            self._then(value)
        except Exception:
            # Kazoo's thread would end by it.
            logger.exception("unexpected error in what follows an answer")

    def set_exception(self, exception: BaseException) -> None:
        """Nothing follows."""


class _Container(Create):  # type: ignore[misc]  # kazoo has no types
    """The creation of a node that the servers remove some time after its last child has gone. Kazoo knows none."""

    type = 19
    FLAGS = 4


class _Transaction(Transaction):  # type: ignore[misc]  # kazoo has no types
    """A request whose answer's header :class:`~.connection.Connection` leaves with it."""

    number = 0

    @classmethod
    def deserialize(cls, data: bytes, offset: int) -> list[Any]:
        """Read what became of it, also of containers, of which kazoo makes nothing."""
        results: list[Any] = []
        header, offset = MultiHeader.deserialize(data, offset)
        while not header.done:
            result: Any = True
            if header.type in (Create.type, Create2.type):
                path, offset = read_string(data, offset)
                result = _Made(path)
            if header.type in (SetData.type, Create2.type):
                stat = ZnodeStat._make(stat_struct.unpack_from(data, offset))
                offset += stat_struct.size
                if header.type == SetData.type:
                    result = stat
                else:
                    result.moment = stat.ctime
            elif header.type == _FAILED:
                result = EXCEPTIONS[int_struct.unpack_from(data, offset)[0]]()
                offset += int_struct.size
            else:
                assert header.type in (Create.type, Delete.type, CheckVersion.type)
            results.append(result)
            header, offset = MultiHeader.deserialize(data, offset)
        return results


class Client(KazooClient):  # type: ignore[misc]  # kazoo has no types
    """A client for one session after the other."""

    def __init__(self, address: Address) -> None:
        handler = _handler(address.timeout)
        super().__init__(
            hosts=address.hosts,
            timeout=address.session_timeout,
            handler=handler,
            connection_retry=retry_of(handler, _FIRST_PAUSE, _LAST_PAUSE),
            **address.client,
        )
        # In the place of the one that kazoo has just made.
        old = self.__dict__["_connection"]
        self._connection: Any = Connection(
            self, old.retry_sleeper, patience=address.timeout, logger=old.logger, sasl_options=old.sasl_options
        )

    @property
    def negotiated(self) -> float:
        """Seconds of silence after which the server ends the present session; 0.0 before there was one."""
        return float(self._connection.negotiated)

    def creation(self, path: str, data: bytes, *, ephemeral: bool, container: bool) -> Any:
        """Return what creates a node in a transaction; see :class:`_Container`."""
        flags = _Container.FLAGS if container else _EPHEMERAL if ephemeral else 0
        return (_Container if container else Create)(path, data, self.default_acl or OPEN_ACL_UNSAFE, flags)

    def commit(self, operations: Sequence[Any]) -> _Committed:
        """Commit a transaction, and learn its number, too, which kazoo keeps to itself."""
        request, result = _Transaction(operations), self.handler.async_result()
        self._call(request, result)
        return _Committed(result, request)

    def overhear_children(self, path: str, then: Callable[[list[str]], None]) -> None:
        """Ask for the names of a node's children as they are for the leader.

        Arguments:
            path: the node's.
            then: is given them in the thread that reads them, and must not block; never called if there is an error.
        """
        said: list[bool] = []
        self._call(Sync(path), _Overheard(lambda _: said.append(True)))
        self._call(GetChildren(path, None), _Overheard(lambda names: then(names) if said else None))

    def wait_connected(self, timeout: float) -> bool:
        """Wait until there is a connection, and tell whether there is."""
        return bool(self._live.wait(timeout))

    def say_goodbye(self, timeout: float) -> None:
        """Ask for the end of the session, and wait for the answer; kazoo's ``stop`` needs more threads than are left.

        That is so while the interpreter shuts down: the client is of no more use.
        """
        self._stopped.set()
        self._queue.append((CloseInstance, None))
        self._connection._write_sock.send(b"\0")
        self._connection.connection_stopped.wait(timeout)

    def forget(self) -> None:
        """Close the copies of the parent's sockets in a forked child, whose session goes on in the parent."""
        connection = self._connection
        if not isinstance(self.handler, SequentialThreadingHandler):
            # Unlike threads, greenlets live on in a child.
            self._stopped.set()
        for sock in (connection._socket, connection._read_sock, connection._write_sock):
            if sock is not None:
                sock.close()


def retry_of(handler: Any, first: float, last: float, deadline: float | None = None) -> KazooRetry:
    """Return a kazoo retry: pauses double from ``first`` to ``last`` seconds, until ``deadline`` seconds are over."""
    return KazooRetry(
        max_tries=-1,
        delay=first,
        backoff=2,
        max_jitter=0.2,
        max_delay=last,
        sleep_func=handler.sleep_func,
        deadline=deadline,
    )


def _handler(patience: float) -> Any:
    kind = _kind()

    class Handler(kind):  # type: ignore[misc, valid-type]  # kazoo has no types
        def create_connection(
            self, address: Any, hostname: str, timeout: float = patience, use_ssl: bool = False, **options: Any
        ) -> Any:
            # Kazoo would wait for the whole session time-out before it tries the next server.
            timeout = min(timeout, patience)
            end = time.monotonic() + timeout
            connection = super().create_connection(address, hostname, timeout=timeout)
            if not use_ssl:
                return connection
            # Kazoo would leave the socket to the garbage collector if either side refuses the other one.
            try:
                connection.settimeout(max(0.001, end - time.monotonic()))
                return _context(**options).wrap_socket(connection, server_hostname=hostname)
            except BaseException:
                connection.close()
                raise

        def dispatch_callback(self, callback: Any) -> None:
            # Ours return at once: another thread would only make who waits wait longer.
            try:
                callback.func(*callback.args)
            except Exception:
                logger.exception("unexpected error in a watch")

    return Handler()


def _context(
    *,
    ca: Any = None,
    certfile: Any = None,
    keyfile: Any = None,
    keyfile_password: Any = None,
    verify_certs: bool = True,
    check_hostname: bool = False,
) -> ssl.SSLContext:
    """Return what kazoo makes of these arguments."""
    if check_hostname and not verify_certs:
        raise ValueError("verify_certs must be True when check_hostname is True")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if ca:
        context.load_verify_locations(ca)
    context.check_hostname = check_hostname
    context.verify_mode = ssl.CERT_REQUIRED if verify_certs else ssl.CERT_NONE
    if certfile and keyfile:
        context.load_cert_chain(certfile, keyfile, keyfile_password)
    return context


def _kind() -> Any:
    # Whoever uses one of them has imported it before.
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    if gevent is not None and gevent.is_module_patched("socket"):
        from kazoo.handlers.gevent import SequentialGeventHandler

        return SequentialGeventHandler
    if eventlet is not None and eventlet.is_monkey_patched("socket"):
        from kazoo.handlers.eventlet import SequentialEventletHandler

        return SequentialEventletHandler
    return _ThreadingHandler


class _ThreadingHandler(SequentialThreadingHandler):  # type: ignore[misc]  # kazoo has no types
    def select(self, rlist: Sequence[Any], wlist: Sequence[Any], xlist: Any, timeout: float | None = None) -> Any:
        # Kazoo makes an epoll instance each time, which costs more than everything else that is done for a request.
        poll, of_fd = select.poll(), {}
        for one in (*rlist, *wlist):
            of_fd[one.fileno()] = one
            poll.register(one, (select.POLLIN if one in rlist else 0) | (select.POLLOUT if one in wlist else 0))
        ready = [(of_fd[fd], event) for fd, event in poll.poll(None if timeout is None else math.ceil(timeout * 1000))]
        return (
            [one for one, event in ready if one in rlist and event & ~select.POLLOUT],
            [one for one, event in ready if one in wlist and event & ~select.POLLIN],
            [],
        )
