"""Greenlets share a store as threads do, and may be killed in the middle of a command."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("gevent")

PROGRAM = """
from gevent import monkey
monkey.patch_all()
import gevent, os, sys
from celery_distlock.lease import Claim, Contended, Lease, Renewal, new_owner
from celery_distlock.stores.redis import RedisStore

store = RedisStore(url=sys.argv[1])
inside, most, grants = 0, 0, 0

def contend():
    global inside, most, grants
    while True:
        answer = store.acquire(Claim("shared", new_owner(), 30.0))
        if isinstance(answer, Lease):
            inside += 1
            most = max(most, inside)
            assert store.renew([answer]) == [Renewal.HELD]
            inside -= 1
            assert store.release([answer]) == [True]
            grants += 1

def own(number):
    lease = store.acquire(Claim(f"own{number}", new_owner(), 30.0))
    while True:
        again = store.acquire(Claim(lease.key, lease.owner, 30.0))
        assert (again.key, again.fence) == (lease.key, lease.fence)

workers = [gevent.spawn(contend) for _ in range(10)]
victims = [gevent.spawn(own, number) for number in range(10)]
kills = 0
while kills < 100 or grants <= 20:
    gevent.sleep(0.01)
    slot = kills % 10
    kills += 1
    victims[slot].kill()
    assert isinstance(victims[slot].value, gevent.GreenletExit), victims[slot].exception
    victims[slot] = gevent.spawn(own, 10 + kills)
for worker in workers:
    assert not worker.ready(), worker.exception
assert most == 1, most
print("connections", len(store._connections._all))
"""


def test_greenlets_exclude_each_other_and_killed_ones_leave_no_reply_behind(redis_url: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, redis_url], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    # One per greenlet that is waiting for a reply, at most; killed greenlets have left theirs to others.
    assert int(run.stdout.split()[-1]) <= 25
