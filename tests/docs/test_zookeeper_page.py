"""The servers of ``docs/zookeeper.md`` start from the very files that it shows, and no option is missing there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from celery_distlock.stores.zookeeper import address
from tests.docs.pages import ROOT, blocks, rows
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.servers import missing
from tests.support.zookeeper_server import connected, executable

PAGE = (ROOT / "docs" / "zookeeper.md").read_text()
ALONE, ENSEMBLE = (block.text for block in blocks(PAGE, "ini"))

Start = Callable[[str, Path, str], None]


@pytest.fixture
def start() -> Iterator[Start]:
    """Run the command of the page with a configuration, in a folder, with another class if need be."""
    if executable() is None:
        missing("zookeeper")
    (command,) = re.findall(r"`(java -cp .* zoo\.cfg)`", PAGE)
    with ExitStack() as stack:

        def start(config: str, folder: Path, main: str) -> None:
            file = folder / "zoo.cfg"
            file.write_text(config)
            argv = command.replace("zoo.cfg", str(file)).replace("server.ZooKeeperServerMain", main).split()
            argv[0] = str(shutil.which("java"))
            stack.callback(Process(argv, name=folder.name, log=folder / "log").end)

        yield start


def on_this_machine(config: str, folder: Path, port: int) -> str:
    """Put the test's folder and port in their places."""
    for setting, value in (("dataDir", folder), ("clientPort", port)):
        config, found = re.subn(rf"^{setting}=.*$", f"{setting}={value}", config, flags=re.MULTILINE)
        assert found == 1, setting
    return config


def test_one_server_starts(start: Start, tmp_path: Path) -> None:
    port = free_port()
    start(on_this_machine(ALONE, tmp_path, port), tmp_path, "server.ZooKeeperServerMain")
    with connected(f"127.0.0.1:{port}") as client:
        assert client.create("/a") == "/a"


def test_three_servers_start_and_serve_together(start: Start, tmp_path: Path) -> None:
    config = re.sub(
        r"^(server\.\d)=zk\d:2888:3888$",
        lambda found: f"{found[1]}=127.0.0.1:{free_port()}:{free_port()}",
        ENSEMBLE,
        flags=re.MULTILINE,
    )
    assert "zk" not in config.replace("zookeeper", "")
    (main,) = re.findall(r"`org\.apache\.zookeeper\.(server\.quorum\.\w+)`", PAGE)
    ports = [free_port() for _ in range(3)]
    for number, port in enumerate(ports, start=1):
        folder = tmp_path / f"zk{number}"
        folder.mkdir()
        (folder / "myid").write_text(f"{number}\n")
        start(on_this_machine(config, folder, port), folder, main)
    with connected(f"127.0.0.1:{ports[0]}") as one, connected(f"127.0.0.1:{ports[1]}") as other:
        one.create("/a")
        other.sync("/a")
        assert other.exists("/a")


def test_every_option_is_on_the_page_with_its_default() -> None:
    documented = {cells[0].strip("`"): cells[1].strip("`") for cells in rows(PAGE, "in the query", "default")}
    for name, seconds in address._DEFAULTS.items():
        assert documented.pop(name) == str(seconds)
    assert documented == {"shared": "false", "tls": "false", "sasl": "–"}
    for name in (*address._IN_URL, *address._PASSED_ON):
        assert f"`{name}`" in PAGE, name
