"""The published page says what was measured, and nothing that somebody wrote into it."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import ALL, main
from benchmarks.frame import Benchmark, Result
from benchmarks.report import DOCS, page, publish, published
from benchmarks.tables import number

Results = dict[str, Result]


@pytest.fixture
def results() -> Results:
    """What the published page was made from."""
    return published()


def changed(results: Results) -> Results:
    """Return the results of a run of the same size in which every measured number was another one."""

    def walk(told: Any) -> Any:
        if isinstance(told, dict):
            return {name: walk(value) for name, value in told.items()}
        if isinstance(told, list):
            return [walk(value) for value in told]
        if isinstance(told, (int, float)) and not isinstance(told, bool):
            return told * 1.7 + 0.3
        return told

    other = {}
    for name, result in results.items():
        told = copy.deepcopy(result.to_json())
        for part in ("rounds", "curves", "seconds", "load"):
            told[part] = walk(told[part])
        told["at"] = "1999-12-31T23:59:59+00:00"
        other[name] = Result.from_json(told)
    return other


def test_the_published_page_is_what_the_published_results_make(results: Results) -> None:
    assert (DOCS / "benchmarks.md").read_text() == page(results, ALL)


def test_every_benchmark_is_on_the_page_with_its_picture(results: Results) -> None:
    text = page(results, ALL)
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [one.title for one in ALL]
    pictures = re.findall(r"^!\[[^\]]+\]\((images/[^)]+\.png)\)$", text, re.MULTILINE)
    assert len(pictures) == len(ALL)
    assert all((DOCS / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_no_figure_of_a_table_is_written_by_hand(results: Results) -> None:
    one, other = (page(each, ALL).splitlines() for each in (results, changed(results)))
    assert len(one) == len(other)
    rows = [pair for pair in zip(one, other, strict=True) if "…" in pair[0]]
    assert len(rows) > 5 * len(ALL)
    # Both runs have measured the same kinds, and none of them twice the same.
    assert [before for before, after in rows if before == after] == []


def test_no_figure_of_the_text_is_written_by_hand(results: Results) -> None:
    one, other = (prose_of(page(each, ALL)) for each in (results, changed(results)))
    sizes = [size for result in results.values() for size in result.size.values()]
    plain = [
        each for size in sizes for each in (size if isinstance(size, list) else [size]) if not isinstance(each, str)
    ]
    known = {told for each in plain for told in (number(each), number(each * 1e3), f"{each:,}")}
    common = set(NUMBER.findall(one)) & set(NUMBER.findall(other))
    assert common - known == set()


NUMBER = re.compile(r"(?<![\w.])\d[\d,.]*(?<![,.])")


def prose_of(text: str) -> str:
    """Return a page without tables, pictures, headings, versions, and the commands that made it."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(each for each in paragraphs if not each.startswith(("|", "!", "#", "Measured on", "*`python")))


def test_a_figure_that_is_written_into_the_text_is_found(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.report._INTRODUCTION", "Ours takes 1.7 ms, the others 91.\n")
    assert {"1.7", "91"} <= set(NUMBER.findall(prose_of(page(results, ALL))))
    with pytest.raises(AssertionError):
        test_no_figure_of_the_text_is_written_by_hand(results)


def test_the_page_of_a_quick_run_says_that_it_measured_nothing(results: Results) -> None:
    for result in results.values():
        result.quick = False
    assert "quick run" not in page(results, ALL)
    next(iter(results.values())).quick = True
    assert "quick run" in page(results, ALL)


def test_complaints_of_the_workers_are_on_the_page(results: Results) -> None:
    results["overhead"].measured.complaints = ["one", "two"]
    assert "complained 2 times" in page(results, ALL)


def test_machines_and_versions_are_told_and_those_that_differ_apart(results: Results) -> None:
    machine = results["overhead"].machine
    text = " ".join(page(results, ALL).split())
    assert machine["machine"] in text
    assert all(f"{name} {version}" in text for name, version in machine.items() if name != "machine")
    results["stores"].machine = machine | {"Redis": "99.9"}
    assert page(results, ALL).count("Measured on") == 2


def test_the_same_results_make_the_same_files(results: Results, tmp_path: Path) -> None:
    files = [publish(results, ALL, tmp_path / name).parent for name in ("one", "other")]
    for path in sorted(files[0].rglob("*.*")):
        assert path.read_bytes() == (files[1] / path.relative_to(files[0])).read_bytes(), path.name
    assert main(["--page-only", "--docs", str(files[0])]) == 0
    assert (files[0] / "benchmarks.md").read_text() == page(results, ALL)


def test_there_is_no_page_before_every_benchmark_has_a_result(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(one: Benchmark[Any], folder: Path, quick: bool) -> bool:
        results[one.name].save(folder)
        return one.name != "stores"

    monkeypatch.setattr("benchmarks.__main__._run", run)
    folders = ["--results", str(tmp_path / "results"), "--docs", str(tmp_path / "docs")]
    assert main(["overhead", *folders]) == 0
    assert "no page yet: there is no result of anatomy, handover" in capsys.readouterr().out
    assert main(folders) == 1
    assert "failed: stores" in capsys.readouterr().out
    assert not (tmp_path / "docs").exists()
