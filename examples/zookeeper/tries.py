"""Ask without waiting, wait for a while, see whether a lock is taken and by whom."""

from __future__ import annotations

from celery_distlock import Lock, LockLost, LockTimeout
from examples.zookeeper.screen import arguments, say
from examples.zookeeper.server import zookeeper


def main(url: str, patience: float) -> None:
    """Use each of the ways once."""
    ours = Lock("example:tries", url=url, identifier="ours")
    theirs = Lock("example:tries", url=url, identifier="theirs", timeout=patience)
    say(f"locked(): {theirs.locked()}")
    say(f"ours.acquire(): {ours.acquire()}")
    say(f"locked(): {theirs.locked()}, by {[holder['identifier'] for holder in theirs.holders()]}")
    say(f"theirs.acquire(blocking=False): {theirs.acquire(blocking=False)}")
    say(f"theirs.acquire(timeout={patience}): {theirs.acquire(timeout=patience)}")
    try:
        with theirs:
            say("never reached")
    except LockTimeout as error:
        say(f"with theirs: {error}")
    ours.release()
    say(f"locked() after the release: {theirs.locked()}")
    with theirs:
        say(f"theirs.held inside of with: {theirs.held}")
    try:
        ours.release()
    except LockLost as error:
        say(f"a second release: {error}")


if __name__ == "__main__":
    given = arguments(__doc__, patience=(0.5, "how long to wait for a lock that is taken, in seconds"))
    address, _ = zookeeper(given.url)
    main(address, given.patience)
