"""Every benchmark can be run: its quick form measures everything, if little of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import ALL, main
from benchmarks.report import load
from tests.docs.pages import ROOT
from tests.support.redis_server import executable as redis_server
from tests.support.servers import missing
from tests.support.zookeeper_server import executable as zookeeper_server

#: The clients of the other libraries leave some of their sockets to the garbage collector, in a process of their own.
RUN = [sys.executable, "-m"]


@pytest.fixture(autouse=True)
def servers() -> None:
    """All are compared, so all are needed."""
    if redis_server() is None:
        missing("redis-server")
    if zookeeper_server() is None:
        missing("zookeeper")


@pytest.mark.parametrize("name", [one.name for one in ALL])
def test_a_benchmark_measures_all_that_its_page_and_its_picture_show(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*RUN, f"benchmarks.{name}", "--quick", "--results", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (one,) = [each for each in ALL if each.name == name]
    result = load(tmp_path, [one])[name]
    assert result.quick
    assert result.measured.missing == {}
    assert result.measured.complaints == []
    section = one.section(result)
    assert section in done.stdout
    one.draw(result).savefig(tmp_path / "picture.png")
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len(rows) > 3
    # What was counted or timed is a number; one that is missing would be told as nan.
    assert not [row for row in rows if "nan" in row]


def test_a_name_that_no_benchmark_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--quick", "overheads"])
    assert "no benchmark is called overheads" in capsys.readouterr().err


def test_sizes_are_options_of_the_command_line(tmp_path: Path) -> None:
    command = [*RUN, "benchmarks.publish", "--quick", "--rounds", "3", "--messages", "5", "--results", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (one,) = [each for each in ALL if each.name == "publish"]
    result = load(tmp_path, [one])["publish"]
    assert result.size == {"rounds": 3, "messages": 5}
    assert len(result.rounds.of("bare", "first_us")) == 3
