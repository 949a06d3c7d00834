"""What is between a machine and its servers: proxies that delay, cut, half-close, hold back and swallow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from urllib.parse import urlsplit, urlunsplit

from tests.support.proxy import Direction, Match, Proxy, Target

__all__ = ["Wire"]


class Wire:
    """A machine's way to a server, or to all members of an ensemble.

    Arguments:
        servers: where it leads.
        url: their URL; :attr:`url` is what the machine is told instead.
    """

    def __init__(self, servers: Sequence[Target], url: str) -> None:
        self.proxies = [Proxy(server.host, server.port) for server in servers]
        hosts = ",".join(f"{each.host}:{each.port}" for each in self.proxies)
        parts = urlsplit(url)
        self.url = urlunsplit(parts._replace(netloc=hosts))

    def cut(self) -> None:
        """Reset every connection; new ones are welcome."""
        self._all(Proxy.cut)

    def break_(self) -> None:
        """Reset every connection, and let none be made."""
        self._all(Proxy.refuse)
        self._all(Proxy.cut)

    def mend(self) -> None:
        """Be as good as new."""
        self._all(Proxy.disarm)
        self._all(Proxy.accept)
        self._all(Proxy.resume)
        self.delay(0.0)

    def hold_back(self, *to: Direction) -> None:
        """Deliver nothing for now, in one direction or both."""
        self._all(lambda each: each.pause(*to))

    def delay(self, seconds: float) -> None:
        """Deliver everything later."""
        self._all(lambda each: each.delay(seconds, "client", "server"))

    def half_close(self, to: Direction) -> None:
        """Tell one side that the other has nothing more to say."""
        self._all(lambda each: each.half_close(to))

    def swallow_reply(self, match: Match = b"") -> None:
        """Have the next request that matches executed, and its answer lost; see :meth:`mend`."""
        for each in self.proxies:
            each.swallow_reply(match)

    def lead_to(self, server: Target) -> None:
        """Lead to another server from now on, as an address does after a fail-over."""
        for each in self.proxies:
            each.target = (server.host, server.port)
        self.cut()

    def close(self) -> None:
        """Refuse and reset everything, for good."""
        self._all(Proxy.close)

    def _all(self, function: Callable[[Proxy], None]) -> None:
        for each in self.proxies:
            function(each)
