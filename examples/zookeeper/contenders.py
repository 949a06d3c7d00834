"""Fifty threads want one lock: each gets it once, one at a time, and nobody is woken but the next."""

from __future__ import annotations

import threading
import time

from celery_distlock import Lock
from examples.zookeeper.screen import arguments, say
from examples.zookeeper.server import zookeeper


class Counter:
    """Something that is only right if one thread at a time uses it."""

    def __init__(self) -> None:
        self.value = 0
        self.inside = 0
        self.most_inside = 0
        self.fences: list[int] = []

    def increment(self, fence: int | None) -> None:
        """Read, dawdle, write."""
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        value = self.value
        time.sleep(0.002)
        self.value = value + 1
        self.fences.append(fence or 0)
        self.inside -= 1


def contend(url: str, number: int, counter: Counter, start: threading.Barrier) -> None:
    """Be one of the fifty."""
    lock = Lock("example:contenders", url=url, identifier=f"contender {number}")
    start.wait()
    with lock:
        counter.increment(lock.fence)


def main(url: str, count: int) -> None:
    """Let them loose, and look at what they did."""
    counter, start = Counter(), threading.Barrier(count + 1)
    threads = [
        threading.Thread(target=contend, args=(url, number, counter, start), daemon=True) for number in range(count)
    ]
    for thread in threads:
        thread.start()
    start.wait()
    say(f"{count} contenders are off")
    for thread in threads:
        thread.join()
    say(f"{counter.value} increments, at most {counter.most_inside} at a time")
    # The number of the grant: a resource that refuses smaller ones is safe even from a holder that was asleep.
    say(f"fences grew from grant to grant: {'yes' if counter.fences == sorted(set(counter.fences)) else 'no'}")
    say(f"is the lock taken? {'yes' if Lock('example:contenders', url=url).locked() else 'no'}")


if __name__ == "__main__":
    given = arguments(__doc__, contenders=(50, "how many threads"))
    address, _ = zookeeper(given.url)
    main(address, given.contenders)
