"""What a Redis server does: calls, working time, memory."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

from celery_distlock.stores.redis import scripts
from tests.support.redis_server import RedisServer

__all__ = ["Meter", "Spent"]

_SCRIPTS = {script.sha: script.name for script in vars(scripts).values() if isinstance(script, scripts.Script)}


class Spent(NamedTuple):
    """Calls, and the server's microseconds."""

    calls: int
    us: int


class Meter:
    """What a Redis server does from now on.

    Arguments:
        server: the server.
    """

    def __init__(self, server: RedisServer) -> None:
        self._client = server.client()
        self._memory_before = self._memory()
        self.reset()

    def reset(self) -> None:
        """Begin to count, anew."""
        self._client.slowlog_reset()
        self._calls = self._commands()
        self._reads = self._read()
        # What a question about the traffic costs is known from asking twice.
        before = self._traffic()
        self._traffic_before = self._traffic()
        self._question = self._traffic_before - before
        self._since = time.monotonic()

    def keep_every_command(self) -> None:
        """Have the server log what it does, which takes memory."""
        self._client.config_set("slowlog-max-len", 1_000_000)
        self._client.config_set("slowlog-log-slower-than", 0)

    def _commands(self) -> dict[str, int]:
        told: Mapping[str, Any] = self._client.info("commandstats")
        return {name.removeprefix("cmdstat_"): int(stat["calls"]) for name, stat in told.items()}

    def _read(self) -> int:
        return int(self._client.info("stats")["total_reads_processed"])

    def _traffic(self) -> int:
        told = self._client.info("stats")
        return int(told["total_net_input_bytes"]) + int(told["total_net_output_bytes"])

    def _memory(self) -> int:
        return int(self._client.info("memory")["used_memory"])

    def memory(self) -> int:
        """Return how many more bytes its data take than when the meter was made."""
        return self._memory() - self._memory_before

    def reads(self) -> int:
        """Return how often it read from a connection."""
        # The question itself is one.
        return self._read() - self._reads - 1

    def traffic(self) -> int:
        """Return how many bytes it was sent and has sent, if nothing else was asked here meanwhile."""
        return self._traffic() - self._traffic_before - self._question

    def seconds(self) -> float:
        """Return since when it measures."""
        return time.monotonic() - self._since

    def calls(self, *commands: str) -> int:
        """Return how often these commands were called."""
        now = self._commands()
        return sum(now.get(command, 0) - self._calls.get(command, 0) for command in commands)

    def spent(self) -> dict[str, Spent]:
        """Return how often each of our scripts was called and how long it worked, and forget the log."""
        spent: dict[str, Spent] = defaultdict(lambda: Spent(0, 0))
        for entry in self._client.slowlog_get(1_000_000):
            words = entry["command"].split(b" ", 2)
            if words[0].upper() == b"EVALSHA":
                name = _SCRIPTS.get(words[1], "?")
                spent[name] = Spent(spent[name].calls + 1, spent[name].us + entry["duration"])
        self._client.slowlog_reset()
        return spent
