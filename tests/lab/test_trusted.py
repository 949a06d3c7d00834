"""Beliefs, fences, bounds of time and their excuses: judged from histories written by hand."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.lab.belief import Span, spans
from tests.lab.history import Event
from tests.lab.trusted import crowds, disordered
from tests.lab.verdict import judge

TTL = 2.0


def span(start: float, end: float, hold: str, fence: int = 1, limit: int = 1, key: str = "k") -> Span:
    return Span(key, f"owner-{hold}", fence, limit, start, end, 1, hold)


def note(t: float, event: str, **fields: Any) -> Event:
    return {"kind": "note", "t": t, "pid": 1, "event": event, **fields}


def believes(t: float, hold: str, until: float, fence: int = 1, limit: int = 1, slot: int = 0) -> Event:
    told = {"key": "k", "owner": f"owner-{hold}", "fence": fence, "limit": limit, "until": until, "slot": slot}
    return note(t, "believes", span=hold, **told)


class Told:
    """A history that is made up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._calls = 0
        self._lines: list[Event] = []

    def line(self, event: Event) -> None:
        self._lines.append(event)

    def note(self, t: float, event: str, **fields: Any) -> None:
        self.line(note(t, event, **fields))

    def asked(self, op: str, owner: str, start: float, end: float, kind: str, answer: str, **more: Any) -> None:
        self._calls += 1
        call = {"call": str(self._calls), "pid": 1}
        told = {"key": "k", "owner": owner, "ttl": TTL, "limit": 1}
        self._lines.append({"kind": "invoke", "t": start, "op": op, **told, **call})
        self._lines.append({"kind": kind, "t": end, "answer": answer, **more, **call})

    def violations(self) -> list[str]:
        (self.folder / "history-1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self._lines))
        return judge(self.folder, ttl=TTL, silence=TTL).violations


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path)


def test_spans_that_only_touch_are_no_crowd() -> None:
    assert crowds([span(0, 1, "a"), span(1, 2, "b")]) == []


def test_two_at_once_are_a_crowd_and_it_is_told_for_how_long() -> None:
    (crowd,) = crowds([span(0, 1.5, "a"), span(1, 2, "b")])
    assert (crowd.start, crowd.end) == (1, 1.5)


def test_of_two_permits_a_third_is_a_crowd() -> None:
    assert crowds([span(0, 9, "a", limit=2), span(1, 9, "b", limit=2)]) == []
    assert crowds([span(0, 9, "a", limit=2), span(1, 9, "b", limit=2), span(2, 3, "c", limit=2)]) != []


def test_a_later_hold_has_the_larger_fence() -> None:
    assert disordered([span(0, 1, "a", 1), span(1, 2, "b", 2)]) == []
    assert disordered([span(0, 1, "a", 2), span(1, 2, "b", 2)]) != []
    assert disordered([span(0, 1, "a", 2), span(1, 2, "b", 1)]) != []


def test_who_doubts_and_believes_again_is_no_later_hold() -> None:
    assert disordered([span(0, 1, "a", 1), span(1, 2, "b", 2), span(3, 4, "a", 1)]) == []


def test_a_stopped_process_believes_until_its_deadline(tmp_path: Path) -> None:
    # It finds out when it runs again.
    events = [believes(0, "a", until=2), note(9, "doubts", span="a", seen=2), note(9.1, "believes no more", span="a")]
    assert [(one.start, one.end) for one in spans(events, tmp_path)] == [(0, 2)]


def test_a_killed_process_believes_until_its_last_sign_of_life(tmp_path: Path) -> None:
    (tmp_path / "beats-1").write_bytes(struct.pack("dd", 0.0, 0.7))
    assert [(one.start, one.end) for one in spans([believes(0, "a", until=2, slot=1)], tmp_path)] == [(0, 0.7)]


def test_two_that_believe_at_once_are_a_violation(told: Told) -> None:
    for hold, start in (("a", 0.0), ("b", 1.0)):
        told.line(believes(start, hold, until=9, fence=int(start) + 1))
        told.note(start + 1.5, "believes no more", span=hold, seen=start + 1.5)
    assert "too many believed" in told.violations()[0]


@pytest.mark.parametrize(("lost", "excused"), [(0.8, True), (5.0, False)])
def test_unless_the_store_lost_its_data_in_between(told: Told, lost: float, excused: bool) -> None:
    for hold, start in (("a", 0.0), ("b", 1.0)):
        told.line(believes(start, hold, until=9, fence=int(start) + 1))
        told.note(start + 1.5, "believes no more", span=hold, seen=start + 1.5)
    told.note(lost + 0.1, "breaks", what="lose data", since=lost)
    assert bool(told.violations()) is not excused


def test_what_was_released_is_not_in_the_way(told: Told) -> None:
    told.asked("acquire", "a", 0, 0.1, "ok", "lease", fence=1)
    told.asked("release", "a", 1, 1.1, "ok", "released", fence=1)
    told.asked("acquire", "b", 1.2, 1.3, "fail", "contended", holders=[["a", 1.0]])
    assert any("after its release was confirmed" in each for each in told.violations())


def test_the_silent_are_not_in_the_way_for_longer_than_their_time_and_a_second(told: Told) -> None:
    told.asked("acquire", "a", 0, 0.1, "ok", "lease", fence=1)
    told.asked("acquire", "b", 3.0, 3.1, "fail", "contended", holders=[["a", -1.0]])
    assert told.violations() == []
    told.asked("acquire", "c", 3.2, 3.3, "fail", "contended", holders=[["a", -1.2]])
    assert any("silent since" in each for each in told.violations())


def test_a_fault_of_the_store_excuses_that(told: Told) -> None:
    told.asked("acquire", "a", 0, 0.1, "ok", "lease", fence=1)
    told.note(1.0, "fault", name="server_stopped", touches="store", phase="begins")
    told.note(3.0, "fault", name="server_stopped", touches="store", phase="ends")
    told.asked("acquire", "c", 3.2, 3.3, "fail", "contended", holders=[["a", -1.2]])
    assert told.violations() == []


def test_the_dead_are_not_in_the_way(told: Told) -> None:
    told.asked("acquire", "owner-a", 0, 0.1, "ok", "lease", fence=1)
    told.line(believes(0.1, "a", until=2))
    told.note(0.5, "killed", dead=1)
    told.asked("acquire", "b", 1.6, 1.7, "fail", "contended", holders=[["owner-a", 0.4]])
    assert any("whose process was dead" in each for each in told.violations())


def test_who_waits_for_a_free_key_is_served_within_three_seconds(told: Told) -> None:
    told.asked("acquire", "a", 0, 0.1, "ok", "lease", fence=1)
    told.asked("enqueue", "b", 0.2, 0.3, "ok", "ticket", number=7)
    told.asked("release", "a", 1, 1.1, "ok", "released", fence=1)
    for t in (2.0, 3.0, 4.0):
        told.asked("poll", "b", t, t + 0.1, "ok", "ticket", number=7)
    assert told.violations() == []
    told.asked("poll", "b", 4.5, 4.6, "ok", "ticket", number=7)
    assert any("waited" in each for each in told.violations())


def test_nobody_is_refused_because_of_himself(told: Told) -> None:
    told.asked("acquire", "a", 0, 0.1, "fail", "contended", holders=[["a", 1.0]])
    assert any("holds the key itself" in each for each in told.violations())
