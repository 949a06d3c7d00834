"""What the documentation says can be done, and every link of it leads somewhere."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from contextlib import closing
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

import celery_distlock
from celery_distlock.keys import compile_key
from celery_distlock.options import SPELLED, LockOptions, StoreSettings
from celery_distlock.stores import open_store
from celery_distlock.stores.base import LockStore
from celery_distlock.testing import hold
from tests.cli.command import celery_command, project
from tests.docs.pages import PAGES, ROOT, Block, anchors, blocks, links, prose, rows
from tests.docs.run_page import ZOOKEEPER
from tests.support.workers import Settings, StartWorker

EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

README = (ROOT / "README.md").read_text()
OPTIONS = (ROOT / "docs" / "options.md").read_text()

LOCALHOST = re.compile(r"redis://localhost:6379/\d+")


# -- Python ------------------------------------------------------------------------------------------------------------


#: The contract of stores waits for real expiry.
SLOW = {"writing-a-store.md"}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.name in SLOW else [])
        for page in PAGES
        if "```python" in page.read_text()
    ],
)
def test_the_python_of_a_page_runs(page: Path, redis_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    urls = [redis_url]
    if any(ZOOKEEPER.search(block.text) for block in blocks(page.read_text(), "python")):
        urls.append(request.getfixturevalue("zookeeper_url"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.docs.run_page", str(page), *urls],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ran the block") == len(list(blocks(page.read_text(), "python"))) > 0
    for url in urls:
        with closing(open_store(url)) as store:
            assert store.holders() == []


def test_the_first_task_of_the_readme_runs_in_a_worker_under_its_lock(
    worker: StartWorker, settings: Settings, tmp_path: Path
) -> None:
    first = next(blocks(README, "python"))
    assert first.file == "proj.py"
    (tmp_path / "proj.py").write_text(LOCALHOST.sub(settings.broker, first.text))
    # The page is the whole configuration: Celery would read some of the harness's variables.
    env: dict[str, str | None] = dict.fromkeys(settings.env)
    alive = worker("proj", concurrency=1, env={**env, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"})
    with closing(open_store(settings.broker)) as store, hold(store, "order:7"):
        call = celery_command(tmp_path, "-A", "proj", "call", "proj.charge", "--args", "[7]")
        assert call.returncode == 0, call.stderr
        alive.wait_for_log(r"Task proj\.charge\[\S+\] retry: .*LockContended\(\"lock 'order:7' is held by")
    alive.wait_for_log(r"Task proj\.charge\[\S+\] succeeded")
    assert "charging 7" in alive.log


def test_every_public_name_is_in_the_documentation() -> None:
    everything = "".join(page.read_text() for page in PAGES)
    names = set(celery_distlock.__all__) - {"__version__"}
    assert {name for name in names if name not in everything} == UNMENTIONED


#: Names for annotations and for catching everything: they explain themselves.
UNMENTIONED = {"Contention", "DistLockError", "HeldLock"}


# -- commands ----------------------------------------------------------------------------------------------------------


def commands(text: str) -> list[tuple[list[str], list[str]]]:
    """Return each command of a page's console blocks, and the lines of output that are shown under it."""
    found: list[tuple[list[str], list[str]]] = []
    for block in blocks(text, "console"):
        for line in block.text.splitlines():
            if line.startswith("$ "):
                found.append((shlex.split(line[2:]), []))
            else:
                found[-1][1].append(line)
    return found


def exists(command: list[str]) -> bool:
    """Return whether a command that is not one of ``celery`` can be given."""
    if command[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        asked = {word for word in command[1:] if not re.fullmatch(r"[A-Z]+=\S*", word)}
        return asked <= set(targets)
    if command[:2] == ["pip", "install"]:
        required = re.fullmatch(r"([\w-]+)\[(\w+)\]", command[2])
        known = project()
        return bool(required) and required[1] == known["name"] and required[2] in known["optional-dependencies"]
    return False


@EACH_PAGE
def test_every_command_exists(page: Path, tmp_path: Path) -> None:
    for command, _ in commands(page.read_text()):
        if command[0] == "celery":
            (tmp_path / "proj.py").write_text(next(blocks(README, "python")).text)
            done = celery_command(tmp_path, *command[1:], "--help")
            assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"
        else:
            assert exists(command), shlex.join(command)


def test_the_lock_commands_do_what_the_readme_shows(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "proj.py").write_text(LOCALHOST.sub(redis_url, next(blocks(README, "python")).text))
    shown = [(command, output) for command, output in commands(README) if command[3:4] == ["locks"]]
    assert [command[4] for command, _ in shown] == ["list", "show", "release"]
    with closing(open_store(redis_url)) as store, hold(store, "order:7", task="proj.charge", id="t-1"):
        for command, output in shown:
            done = celery_command(tmp_path, *command[1:], stdin="y\n")
            assert done.returncode == 0, done.stderr
            if output:
                assert done.stdout.splitlines()[0].split() == output[0].split()
                assert output[1].startswith("order:7  proj.charge[")
        assert store.holders() == []


def test_every_target_of_the_makefile_that_a_reader_needs_is_in_the_readme() -> None:
    assert [command for command, _ in commands(README) if command[0] == "make"] == [["make", "demo"], ["make", "test"]]


# -- tables ------------------------------------------------------------------------------------------------------------


def default_of(cell: str) -> object:
    return ast.literal_eval(cell.strip("`"))


@pytest.mark.parametrize("page", [README, OPTIONS], ids=["README.md", "options.md"])
def test_the_table_of_options_is_the_table_of_the_code(page: str) -> None:
    documented = [(cells[0].strip("`"), default_of(cells[1])) for cells in rows(page, "option", "default")]
    assert documented == [(SPELLED[each.name], each.default) for each in fields(LockOptions)]
    assert [type(default) for _, default in documented] == [type(each.default) for each in fields(LockOptions)]


def test_the_table_of_the_stores_settings_is_the_table_of_the_code() -> None:
    documented = {cells[0].strip("`"): cells[1] for cells in rows(OPTIONS, "setting", "default")}
    known = {f"distlock_{'store_options' if f.name == 'options' else f.name}": f for f in fields(StoreSettings)}
    assert documented.keys() == known.keys()
    for name, field in known.items():
        if field.default_factory is not MISSING:
            assert default_of(documented[name]) == field.default_factory()
        elif field.default is not MISSING:
            assert default_of(documented[name]) == field.default


def test_the_allowed_values_of_a_choice_are_those_of_the_code() -> None:
    for cells in rows(OPTIONS, "option", "default"):
        name = next(name for name, spelled in SPELLED.items() if cells[0] == f"`{spelled}`")
        rule = LockOptions.__dataclass_fields__[name].metadata["rule"]
        named = re.findall(r"'(\w+)'", rule.allowed)
        if named and not cells[0].startswith("`lock_key"):
            assert re.findall(r'"(\w+)"', cells[2]) == named, cells[0]


def test_the_values_in_keys_are_written_as_the_table_says() -> None:
    page = (ROOT / "docs" / "keys.md").read_text()
    key_of = compile_key("task", "{value}", lambda value: None)
    checked = 0
    for value, text, *_ in rows(page, "value", "in the key"):
        codes = [re.findall(r"`([^`]*)`", cell) for cell in (value, text)]
        if codes[0]:
            assert [key_of((ast.literal_eval(code),), {}) for code in codes[0]] == codes[1], value
            checked += len(codes[0])
    assert checked == 10


def test_the_methods_of_a_store_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "writing-a-store.md").read_text()
    documented = {name for cells in rows(page, "method", "answer") for name in re.findall(r"`(\w+)\(", cells[0])}
    assert documented == LockStore.__abstractmethods__


# -- links -------------------------------------------------------------------------------------------------------------


@EACH_PAGE
def test_every_link_within_the_project_leads_somewhere(page: Path) -> None:
    for link in links(page.read_text()):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def test_every_page_can_be_reached_from_the_readme() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(README) if "://" not in link}
    assert {page for page in PAGES if page not in linked} == {ROOT / "README.md"}


# -- the checks themselves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "there"),
    [
        ("make test", True),
        ("make tset", False),
        ('pip install "celery-distlock[redis]"', True),
        ('pip install "celery-distlock[rdis]"', False),
        ("rm -rf /", False),
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str, there: bool) -> None:
    assert exists(shlex.split(command)) is there


def test_blocks_know_their_language_their_line_and_their_file() -> None:
    text = "a\n\n```python\n# proj.py\nx = 1\n```\n\n```console\n$ make test\n```\n"
    (block,) = blocks(text, "python")
    assert block == Block("python", "# proj.py\nx = 1\n", 4)
    assert block.file == "proj.py"
    assert "make" not in prose(text)
