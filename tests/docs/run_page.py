"""Run the Python of one page, as its reader would: ``python -m tests.docs.run_page PAGE REDIS_URL [ZOOKEEPER_URL]``.

In a process of its own, in an empty folder. Every ``redis://localhost:6379/…`` of the page becomes REDIS_URL, every
``zookeeper://zk1:2181,…/…`` ZOOKEEPER_URL; nothing else is changed. The blocks are executed in their order in one
module, ``proj``. A block that begins with ``# name.py`` is written to that file, too; one that begins with
``# conftest.py`` or ``# test_….py`` is only written, and pytest runs it at the end.
"""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from tests.docs.pages import blocks

#: How the pages name an ensemble.
ZOOKEEPER = re.compile(r"zookeeper://zk1:2181[\w:,/]*")


def main(page: Path, redis: str, zookeeper: str = "") -> int:
    """Return pytest's exit code, or 0 where the page has no tests."""
    module = types.ModuleType("proj")
    sys.modules["proj"] = module
    sys.path.insert(0, "")
    tests = False
    for block in blocks(page.read_text(), "python"):
        text = ZOOKEEPER.sub(zookeeper, re.sub(r"redis://localhost:6379/\d+", redis, block.text))
        if block.file:
            Path(block.file).write_text(text)
        if block.file and (block.file == "conftest.py" or block.file.startswith("test_")):
            tests = True
        else:
            # Blank lines in front, so that a traceback shows the line of the page.
            exec(compile("\n" * (block.line - 1) + text, str(page), "exec"), module.__dict__)
        print(f"ran the block of line {block.line}")
    if not tests:
        return 0
    # The files are what is tested, not what was executed.
    del sys.modules["proj"]
    return pytest.main(["--rootdir=.", "-p", "no:cacheprovider", "-p", "no:celery", "-q", "."])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
