"""Threads A and B share one lock: B starts only when A is done."""

from __future__ import annotations

import threading
import time

from celery_distlock import Lock
from examples.zookeeper.screen import arguments, say
from examples.zookeeper.server import zookeeper


def work(url: str, name: str, seconds: float, holds: threading.Event) -> None:
    """Do something that must not be done twice at once, here or on any other machine."""
    # Locks of one address share a client, and with it a session, in each process: there is no singleton to write.
    lock = Lock("example:turns", url=url, identifier=f"thread {name}")
    say(f"{name} wants the lock")
    lock.acquire()
    try:
        say(f"{name} starts")
        holds.set()
        time.sleep(seconds)
        say(f"{name} is done")
    finally:
        lock.release()


def main(url: str, seconds: float) -> None:
    """Start A, and B while A works."""
    a_holds = threading.Event()
    a = threading.Thread(target=work, args=(url, "A", seconds, a_holds), daemon=True)
    b = threading.Thread(target=work, args=(url, "B", seconds * 0.4, threading.Event()), daemon=True)
    a.start()
    a_holds.wait(30)
    b.start()
    a.join()
    b.join()


if __name__ == "__main__":
    given = arguments(__doc__, seconds=(5.0, "how long A works, in seconds; B works 0.4 times as long"))
    address, _ = zookeeper(given.url)
    main(address, given.seconds)
