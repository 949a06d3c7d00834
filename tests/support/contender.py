"""A process that takes and gives back one lock, again and again, and writes down until when it believes in each hold.

``python -m tests.support.contender KEY TTL HOLD`` with :data:`URL` and the journal in its environment (the URL is not
an argument, so that it does not end up in a failure's report). It ends when it is killed.

What it writes, each with ``name``, ``owner`` and ``fence``:

===============  =====================================================================================================
``granted``      ``until``: the deadline; ``session``: number and password (in hex) of its ZooKeeper session, if any
``renewed``      ``until``: the new deadline
``doubted``      it does not believe in its hold any more; ``seen``: when it did so for the last time, and ``told``:
                 whether it was told (its deadline had not come)
``believed``     it does again; ``until``
``releasing``    it is about to give it back
``released``     it has been given back; ``ours``: whether it was its own until then
===============  =====================================================================================================

and ``unavailable`` (with ``error``) when the store gave no answer. A test that closes a ``session`` writes ``closed``
before it does so: what is believed in it from then on is not held against anybody.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from celery_distlock import Lock, LockLost, StoreUnavailable
from tests.stores.zookeeper import client_of
from tests.support.journal import record

__all__ = ["URL", "contend"]

#: The environment variable with the store's address.
URL = "CONTENDER_URL"
_EVERY = 0.002


def contend(url: str, name: str, key: str, ttl: float, hold: float) -> None:
    """Take the lock, hold it for ``hold`` seconds, give it back; for ever."""
    while True:
        lock = Lock(key, url=url, ttl=ttl, identifier=name)
        try:
            if not lock.acquire(timeout=1.0):
                continue
        except StoreUnavailable as error:
            record("unavailable", name=name, error=str(error))
            time.sleep(0.05)
            continue
        _hold(lock, name, hold)


def _hold(lock: Lock, name: str, hold: float) -> None:
    who: dict[str, Any] = {"name": name, "owner": lock.owner, "fence": lock.fence}
    # The clock first: whoever is stopped between the two then believes for less long than it says.
    now = time.monotonic()
    until = now + lock.remaining
    record("granted", **who, until=until, session=_session(lock))
    end = now + hold
    seen, believes = now, True
    while (now := time.monotonic()) < end:
        remaining = lock.remaining
        if remaining > 0:
            if not believes:
                record("believed", **who, until=now + remaining)
                until = now + remaining
            elif now + remaining > until + 0.01:
                record("renewed", **who, until=now + remaining)
                until = now + remaining
            seen, believes = now, True
        elif believes:
            record("doubted", **who, seen=seen, told=time.monotonic() < until)
            believes = False
        time.sleep(_EVERY)
    record("releasing", **who)
    try:
        lock.release()
    except LockLost:
        record("released", **who, ours=False)
    else:
        record("released", **who, ours=True)


def _session(lock: Lock) -> tuple[int, str] | None:
    if not lock._store.name.startswith("zookeeper://"):
        return None
    known = client_of(lock._store).client_id
    if known is None:
        # It has ended since: this process was stopped for so long.
        return None
    number, password = known
    return number, password.hex()


if __name__ == "__main__":
    contend(os.environ[URL], f"contender {os.getpid()}", sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
