"""Accidents of a ZooKeeper ensemble and of its clients, again and again, with a history of what holders believed.

Three processes take turns with one lock (:mod:`tests.support.contest`) while something breaks. However that ends, no
two of them may ever have believed in their holds at once, fences must have grown, and everybody must get the lock
again. Each accident happens twice in every run, one after the other, and twenty times in the slow tests.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from celery_distlock.stores import open_store
from tests.support.contest import Contest
from tests.support.journal import Entry, Journal
from tests.support.process import Process
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.zookeeper_ensemble import ZooKeeperEnsemble
from tests.support.zookeeper_server import ZooKeeperServer, close_session, connected

#: Seconds of a session, which is to outlast a cut connection on a busy machine, and for which a contender holds.
SESSION, HOLD = 2.5, 0.3


class Wire:
    """What is between one contender and each member of the ensemble."""

    def __init__(self, proxies: Sequence[Proxy], chroot: str) -> None:
        self._proxies = proxies
        hosts = ",".join(f"{each.host}:{each.port}" for each in proxies)
        self.url = f"zookeeper://{hosts}{chroot}?session_timeout={SESSION}"

    def cut(self) -> None:
        """Break every connection, and let none be made."""
        for each in self._proxies:
            each.refuse()
            each.cut()

    def mend(self) -> None:
        """Let connections be made."""
        for each in self._proxies:
            each.accept()


@dataclass
class Lab:
    """A contest on an ensemble, and what can be broken."""

    ensemble: ZooKeeperEnsemble
    url: str
    wires: list[Wire]
    contest: Contest

    def wire_of(self, process: Process) -> Wire:
        return self.wires[self.contest.contenders.index(process)]

    def entries(self, event: str, since: float) -> list[Entry]:
        return [entry for entry in self.contest.journal.entries(event) if entry["t"] > since]


@pytest.fixture
def lab(
    ensemble: ZooKeeperEnsemble,
    ensemble_url: str,
    proxy: Callable[[ZooKeeperServer], Proxy],
    journal: Journal,
    tmp_path: Path,
) -> Iterator[Lab]:
    chroot = urlsplit(ensemble_url).path
    wires = [Wire([proxy(server) for server in ensemble.servers], chroot) for _ in range(3)]
    contest = Contest([wire.url for wire in wires], journal, tmp_path, ttl=SESSION, hold=HOLD)
    try:
        contest.everybody_holds_again()
        yield Lab(ensemble, ensemble_url, wires, contest)
    finally:
        contest.end()


# The ensemble.


def leader_killed(lab: Lab) -> None:
    lab.ensemble.kill(lab.ensemble.leader())
    lab.contest.everybody_holds_again()
    lab.ensemble.restore()


def follower_killed(lab: Lab) -> None:
    lab.ensemble.kill(random.choice(lab.ensemble.followers()))
    lab.contest.everybody_holds_again()
    lab.ensemble.restore()


def quorum_lost_for_five_seconds(lab: Lab) -> None:
    lab.ensemble.lose_quorum()
    lost = time.monotonic()
    time.sleep(5.0)
    # A moment may pass between a grant and the word of it.
    assert lab.entries("granted", lost + 1.0) == []
    lab.ensemble.restore()


# The holder's connection.


def connection_cut_for_less_than_the_session(lab: Lab) -> None:
    holder, grant = lab.contest.holder()
    lab.wire_of(holder).cut()
    time.sleep(HOLD / 2)
    lab.wire_of(holder).mend()
    (released,) = lab.contest.journal.wait_for("released", owner=grant["owner"])
    assert released["ours"]


def connection_cut_for_more_than_the_session(lab: Lab) -> None:
    holder, _ = lab.contest.holder()
    lab.wire_of(holder).cut()
    lab.contest.everybody_holds_again(without=holder)
    lab.wire_of(holder).mend()


def session_closed_by_somebody_else(lab: Lab) -> None:
    """Nobody can know that before; who holds is told right then."""
    _, grant = lab.contest.holder()
    session, password = grant["session"]
    lab.contest.journal.record("closed", session=session)
    close_session(lab.ensemble.hosts, session, bytes.fromhex(password))
    closed = time.monotonic()
    lab.contest.everybody_holds_again()
    assert all(doubt["seen"] < closed + 1.0 for doubt in lab.entries("doubted", grant["t"]))


# The holder itself.


def holder_stopped_past_its_session(lab: Lab) -> None:
    holder, _ = lab.contest.holder()
    holder.freeze()
    lab.contest.everybody_holds_again(without=holder)
    holder.thaw()


def holder_stopped_for_about_as_long_as_its_session(lab: Lab) -> None:
    """A follower may answer it once more when the leader is about to end the session."""
    holder, _ = lab.contest.holder()
    tick = lab.ensemble.servers[0].tick
    holder.freeze()
    time.sleep(random.uniform(SESSION - tick, SESSION + 2 * tick))
    holder.thaw()


ACCIDENTS = [
    leader_killed,
    follower_killed,
    quorum_lost_for_five_seconds,
    connection_cut_for_less_than_the_session,
    connection_cut_for_more_than_the_session,
    session_closed_by_somebody_else,
    holder_stopped_past_its_session,
    holder_stopped_for_about_as_long_as_its_session,
]


def happens(lab: Lab, accident: Callable[[Lab], None], times: int) -> None:
    """Let an accident happen while somebody holds, and see to it that it did no harm."""
    for _ in range(times):
        lab.contest.holder()
        accident(lab)
        lab.contest.everybody_holds_again()
        lab.contest.check()


@pytest.mark.timeout(300)
def test_no_accident_lets_two_believe_in_one_lock(lab: Lab) -> None:
    for accident in ACCIDENTS:
        happens(lab, accident, times=1 if accident is quorum_lost_for_five_seconds else 2)
    assert_nothing_is_left(lab)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("accident", ACCIDENTS, ids=lambda accident: accident.__name__)
def test_no_accident_does_in_twenty_trials(lab: Lab, accident: Callable[[Lab], None]) -> None:
    happens(lab, accident, times=20)
    assert_nothing_is_left(lab)


def assert_nothing_is_left(lab: Lab) -> None:
    """Once their sessions are over, the contenders have left no node of theirs; the next lock removes the key's."""
    lab.contest.end()
    with closing(open_store(lab.url)) as store, connected(lab.url.partition("://")[2]) as client:

        def is_gone() -> bool:
            # Who waits is no holder, and its session may end after the last holder's; and this may be another server.
            client.sync("/")
            nodes = [client.get_children(f"/distlock/locks/{key}") for key in client.get_children("/distlock/locks")]
            return store.holders() == [] and not any(nodes)

        eventually(is_gone, SESSION + 5, "the end of the sessions")
