"""Two threads and one lock; then a function that is locked by one of its arguments."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from celery_distlock import Lock, LockContended, locked

URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
#: How long thread A works.
SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0

started = time.monotonic()


def say(what: str) -> None:
    """Print a line of the log."""
    print(f"{time.monotonic() - started:5.2f} s  {what}", flush=True)


def work(name: str, seconds: float, holds: threading.Event) -> None:
    """Do something that must not be done twice at once, here or on any other machine."""
    lock = Lock("example:file", url=URL, identifier=f"thread {name}")
    say(f"{name} wants the lock")
    lock.acquire()
    try:
        say(f"{name} starts")
        holds.set()
        time.sleep(seconds)
        say(f"{name} is done")
    finally:
        lock.release()


def threads_in_turn() -> None:
    """Start A, and B while A works: B starts when A is done."""
    a_holds = threading.Event()
    a = threading.Thread(target=work, args=("A", SECONDS, a_holds), daemon=True)
    b = threading.Thread(target=work, args=("B", SECONDS * 0.4, threading.Event()), daemon=True)
    a.start()
    a_holds.wait(10)
    say(f"is the lock taken? {'yes' if Lock('example:file', url=URL).locked() else 'no'}")
    b.start()
    a.join()
    b.join()


# Locked by the account and not by the amount: asks once, and three times more, before it gives up.
@locked("example:account:{account}", url=URL, max_retries=3, retry_delay=SECONDS / 5, identifier="transfer()")
def transfer(account: str, amount: int) -> None:
    """Move money."""
    say(f"transfer of {amount} from {account}")


def retries() -> None:
    """Call the locked function while its account is free, taken for a moment, and taken for good."""
    transfer("checking", 10)
    with auditor("checking") as done:
        # It asks again after a while: by then the auditor is done.
        threading.Timer(SECONDS / 4, done.set).start()
        transfer("checking", 20)
    with auditor("checking"):
        transfer("savings", 40)
        try:
            transfer("checking", 30)
        except LockContended as error:
            say(f"no transfer of 30: {error}")


@contextmanager
def auditor(account: str) -> Iterator[threading.Event]:
    """Let somebody else hold the account's lock, until the event is set or the block ends."""
    holds, done = threading.Event(), threading.Event()

    def audit() -> None:
        with Lock(f"example:account:{account}", url=URL, identifier="the auditor"):
            say(f"the auditor takes {account}")
            holds.set()
            done.wait()
            say(f"the auditor gives {account} back")

    # A thread of its own: what the holder itself calls runs under the lock that it holds already.
    thread = threading.Thread(target=audit, daemon=True)
    thread.start()
    holds.wait(10)
    try:
        yield done
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    threads_in_turn()
    retries()
