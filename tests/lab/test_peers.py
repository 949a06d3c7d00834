"""Other people's locks let two believe at once under faults that ours survive: the lab sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.needs import needs
from tests.lab.peers import PLAYS, PeerPlay, perform


@pytest.mark.parametrize("play", PLAYS, ids=lambda play: f"{play.kind}-{play.script.__name__}")
def test_another_lock_is_believed_in_by_two(play: PeerPlay, tmp_path: Path) -> None:
    needs(play.store)
    outcome = perform(play, tmp_path / "run")
    assert any("too many believed" in each for each in outcome.violations), str(outcome)
    print(outcome)
