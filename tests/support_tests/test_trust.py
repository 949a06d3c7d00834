"""The recorder of holds can be trusted: it finds what overlaps, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.contender import URL
from tests.support.journal import VARIABLE, Entry, Journal
from tests.support.process import Process
from tests.support.trust import holds, overlapping


def entry(event: str, t: float, owner: str, **fields: Any) -> Entry:
    return {"event": event, "t": t, "owner": owner, "name": owner, "fence": 1, **fields}


def spans(*entries: Entry) -> list[tuple[float, float]]:
    return [(span.start, span.end) for hold in holds(entries) for span in hold.spans]


def test_a_hold_is_believed_from_its_grant_to_its_release() -> None:
    assert spans(entry("granted", 1, "a", until=9), entry("releasing", 3, "a")) == [(1, 3)]


def test_a_hold_without_an_end_is_believed_until_its_last_deadline() -> None:
    assert spans(entry("granted", 1, "a", until=4), entry("renewed", 3, "a", until=6)) == [(1, 6)]


def test_a_hold_that_is_released_late_was_believed_until_its_deadline() -> None:
    assert spans(entry("granted", 1, "a", until=4), entry("releasing", 7, "a")) == [(1, 4)]


def test_who_is_told_has_stopped_to_believe_when_it_was_seen_to_do_so_for_the_last_time() -> None:
    assert spans(entry("granted", 1, "a", until=9), entry("doubted", 3, "a", seen=2.9, told=True)) == [(1, 2.9)]


def test_what_is_believed_in_a_session_that_a_test_has_closed_is_not_held_against_its_holder() -> None:
    closed = {"event": "closed", "t": 2, "session": 7}
    during = entry("granted", 1, "a", until=9, session=[7, ""])
    assert spans(during, closed, entry("doubted", 3, "a", seen=3, told=True)) == [(1, 2)]
    assert spans(closed, entry("granted", 3, "a", until=9, session=[7, ""])) == []
    assert spans(closed, entry("granted", 3, "a", until=9, session=[8, ""])) == [(3, 9)]


def test_who_was_stopped_counts_as_believing_until_its_deadline() -> None:
    assert spans(entry("granted", 1, "a", until=4), entry("doubted", 8, "a", seen=2, told=False)) == [(1, 4)]


def test_a_doubt_that_was_dispelled_is_a_gap() -> None:
    assert spans(
        entry("granted", 1, "a", until=4),
        entry("doubted", 4, "a", seen=3.99, told=False),
        entry("believed", 6, "a", until=9),
        entry("releasing", 7, "a"),
    ) == [(1, 4), (6, 7)]


@pytest.mark.parametrize(("second", "overlap"), [(3.0, True), (3.9, True), (4.0, False), (5.0, False)])
def test_two_who_believe_at_once_are_found(second: float, overlap: bool) -> None:
    entries = [entry("granted", 1, "a", until=4), entry("granted", second, "b", until=9)]
    assert bool(overlapping(holds(entries))) is overlap


def test_a_long_hold_overlaps_with_all_that_come_during_it() -> None:
    entries = [entry("granted", 0, "a", until=9)]
    for start, owner in ((1, "b"), (3, "c")):
        entries += [entry("granted", start, owner, until=9), entry("releasing", start + 1, owner)]
    assert [(one.owner, other.owner) for one, other in overlapping(holds(entries))] == [("a", "b"), ("a", "c")]


def test_contenders_write_what_they_believe(redis_url: str, journal: Journal, tmp_path: Path) -> None:
    env = {URL: redis_url, VARIABLE: str(journal.path)}
    argv = [sys.executable, "-m", "tests.support.contender", "k", "1.5", "0.3"]
    contenders = [Process(argv, name=f"contender{n}", log=tmp_path / f"{n}.log", env=env) for n in range(2)]
    try:
        name = journal.wait_for("granted", count=4)[-1]["name"]
        stopped = next(process for process in contenders if name.endswith(f" {process.pid}"))
        stopped.freeze()
        # Longer than its ttl: the other one goes on alone.
        (other,) = {f"contender {process.pid}" for process in contenders} - {name}
        journal.wait_for("released", count=len(journal.entries("released", name=other)) + 2, name=other)
        stopped.thaw()
        journal.wait_for("released", count=len(journal.entries("released", name=name)) + 2, name=name)
    finally:
        for process in contenders:
            process.end(0.0)
    grants = holds(journal.entries())
    assert len({hold.name for hold in grants}) == 2
    assert overlapping(grants) == []
    fences = [hold.fence for hold in grants]
    assert fences == sorted(set(fences))
    assert all(span.end > span.start for hold in grants[:4] for span in hold.spans)
