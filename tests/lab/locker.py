"""A process of plain Python that takes locks, again and again: ``python -m tests.lab.locker KEYS TTL HOLD STYLE SEED``.

Styles: ``wait`` stands in line for a while, ``try`` asks once and comes back, ``mixed`` does either. One that is
``drowsy`` waits, and stops itself now and then right before it writes, when it has just seen that it holds: somebody
must send it SIGCONT. It ends when it is killed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time

from celery_distlock import Lock, LockLost, StoreUnavailable
from tests.lab import history, setting
from tests.lab.belief import believing
from tests.lab.effects import RESOURCE, Lists

__all__ = ["URL", "lock_for_ever"]

#: The environment variable with the store's address.
URL = "LAB_STORE"


def lock_for_ever(keys: list[str], ttl: float, hold: float, style: str, rng: random.Random) -> None:
    """Take one of the keys, hold it for about ``hold`` seconds, give it back; for ever."""
    while True:
        key = rng.choice(keys)
        lock = Lock(key, url=os.environ[URL], ttl=ttl, identifier=setting.role())
        waits = style in ("wait", "drowsy") or (style == "mixed" and rng.random() < 0.5)
        try:
            held = lock.acquire(timeout=rng.uniform(0.5, 3.0)) if waits else lock.acquire(blocking=False)
        except StoreUnavailable as error:
            history.note("unavailable", error=str(error)[:200])
            time.sleep(0.05)
            continue
        if not held:
            time.sleep(rng.uniform(0.0, 0.05))
            continue
        _hold(lock, key, rng.uniform(0.5, 1.5) * hold, falls_asleep=style == "drowsy" and rng.random() < 0.3)
        time.sleep(rng.uniform(0.0, 0.02))


def _hold(lock: Lock, key: str, seconds: float, falls_asleep: bool) -> None:
    assert lock.owner is not None
    assert lock.fence is not None
    with believing(lock, key, lock.owner, lock.fence, role=setting.role(), session=_session(lock)) as it:
        lists = Lists(key, lock.fence) if RESOURCE in os.environ else None
        it.hold(seconds)
        if lists is not None:
            holds = lock.held
            if falls_asleep:
                history.note("falls asleep", key=key, fence=lock.fence)
                os.kill(os.getpid(), signal.SIGSTOP)
            if holds:
                lists.write("checked")
            lists.write("plain")
            lists.write("fenced")
    try:
        lock.release()
    except LockLost:
        history.note("release refused", key=key)


def _session(lock: Lock) -> tuple[int, str] | None:
    """Return number and password of the ZooKeeper session, for those who want to close it."""
    if not lock._store.name.startswith("zookeeper://"):
        return None
    from tests.stores.zookeeper import client_of

    number, password = client_of(lock._store).client_id
    return number, password.hex()


if __name__ == "__main__":
    setting.begin()
    lock_for_ever(
        sys.argv[1].split(","), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4], random.Random(sys.argv[5])
    )
