"""A lock on an ensemble of three servers, shared by machines (processes here), while a server is lost."""

from __future__ import annotations

import logging
import multiprocessing
import time
from contextlib import closing
from multiprocessing.synchronize import Event

from celery_distlock import Lock
from celery_distlock.stores import open_store
from examples.zookeeper.screen import arguments, say
from examples.zookeeper.server import zookeeper

KEY = "example:machines"


def machine(
    name: str, url: str, started: float, patience: float | None, work: Event, asks: Event, holds: Event
) -> None:
    """Be one machine: say who has the lock, wait for it, keep it until ``work`` is done.

    Arguments:
        name: what the others see.
        url: every server of the ensemble.
        started: monotonic time from which the log counts.
        patience: how long to wait, in seconds; None: for ever.
        work: set when the work that needs the lock is done.
        asks: set before the lock is asked for.
        holds: set once the lock is held.
    """
    # Where nobody has set up logging, kazoo's warnings of each try to connect would end up between our lines.
    logging.getLogger("kazoo").addHandler(logging.NullHandler())
    # A store of its own rather than url=…, to show where a session ends: with closing(), not with the process.
    with closing(open_store(url)) as store:
        lock = Lock(KEY, store=store, identifier=name)
        for holder in lock.holders():
            say(f"{name} sees that {holder['identifier']} has the lock", since=started)
        asks.set()
        if not lock.acquire(timeout=patience):
            say(f"{name} gives up after {patience:g} s", since=started)
            return
        say(f"{name} has the lock", since=started)
        holds.set()
        work.wait()
        # Raises LockLost if somebody else could have been let in.
        lock.check()
        say(f"{name} still has it, and gives it back", since=started)
        lock.release()


def main(url: str | None, seconds: float) -> None:
    """Let web1 work, web2 wait, web3 give up; kill the leader of the ensemble meanwhile."""
    # New interpreters, which share nothing with this one but these events.
    context = multiprocessing.get_context("spawn")
    address, servers = zookeeper(url, count=3)
    started = time.monotonic()
    machines, working, asking, holding = {}, {}, {}, {}
    for name, patience in (("web1", None), ("web2", None), ("web3", seconds)):
        working[name], asking[name], holding[name] = context.Event(), context.Event(), context.Event()
        machines[name] = context.Process(
            target=machine,
            args=(name, address, started, patience, working[name], asking[name], holding[name]),
            name=name,
            daemon=True,
        )
    machines["web1"].start()
    holding["web1"].wait(30)
    machines["web2"].start()
    machines["web3"].start()
    asking["web2"].wait(30)
    machines["web3"].join()
    if servers is not None:
        killed = servers.kill_leader()
        say(f"the leader of the ensemble, {killed}, is killed", since=started)
        time.sleep(seconds)
    working["web2"].set()
    working["web1"].set()
    for each in machines.values():
        each.join()
    if any(each.exitcode for each in machines.values()):
        raise SystemExit(f"a machine failed: {machines}")


if __name__ == "__main__":
    given = arguments(__doc__, seconds=(2.0, "how long web3 waits, and how long web1 works after a server is lost"))
    main(given.url, given.seconds)
