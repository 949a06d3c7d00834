"""Start a Redis and real workers, play the examples, show a table, leave nothing running."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from examples.demo.redis_server import start_redis
from examples.demo.screen import Screen
from examples.support import Processes


class Stopped(KeyboardInterrupt):
    """Somebody pressed Ctrl-C, closed the terminal, or ended the demo."""


def main() -> int:
    """Return 0 if everything was as promised, 1 if not, 128 + the signal's number if it was stopped."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _stop)
    screen = Screen()
    screen.title()
    try:
        with Processes() as servers:
            return with_redis(screen, servers)
    except Stopped as stopped:
        return 128 + int(stopped.args[0])


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(signum)


def with_redis(screen: Screen, servers: Processes) -> int:
    """Start Redis, and then everything that needs it and ends before it does."""
    try:
        with screen.step("starting a Redis server") as notes:
            url = start_redis(servers)
            notes.append(url)
        os.environ.update(REDIS_URL=url, LEDGER=str(servers.folder / "ledger.sqlite"))
        with Processes() as processes:
            return play(screen, processes)
    except Stopped as stopped:
        screen.say("stopped; nothing is left running")
        return 128 + int(stopped.args[0])
    except (RuntimeError, TimeoutError) as error:
        screen.say(f"[red]{type(error).__name__}[/]: {error}")
        return 1


def play(screen: Screen, processes: Processes) -> int:
    """Play everything; return the exit status."""
    from examples.demo import acts

    with screen.step("starting five Celery workers with four processes each"):
        chargers = acts.start_workers(processes)
    tickets = acts.sell_tickets(screen)
    charges, remark = acts.charge_twice(screen, chargers)
    rows = tickets + charges
    screen.results(rows, remark)
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Not sys.exit(): results of interrupted tasks would take leave of a Redis that has ended, and Celery tries that for
    # twenty seconds.
    os._exit(status)
