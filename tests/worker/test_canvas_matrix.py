"""What becomes of a contended task in every place of a canvas, under every policy: the table in ``docs/canvas.md``.

The table is made here; ``UPDATE_DOCS=1`` writes it into the page.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import CeleryError, TimeoutError

from celery_distlock import DistLockError
from tests.support.redis_server import RedisServer
from tests.worker.shared import Shared, shared_workers

pytestmark = pytest.mark.xdist_group("canvas matrix")

APP = "tests.worker.apps.canvas_matrix"
PAGE = Path(__file__).parents[2] / "docs" / "canvas.md"
BEGIN, END = "<!-- the table is made by tests/worker/test_canvas_matrix.py -->", "<!-- end -->"

#: Seconds within which everything has ended, from the release of the lock.
BOUND = 10.0
POLICIES = ("retry", "wait", "skip", "fail")
# What fails on purpose leaves its traceback in the log.
EXPECTED = [r"LockContended", r"on purpose", r"Chord '\S+' raised"]

Canvas = Callable[[Any, str, dict[str, Any]], Any]


def _single(tasks: Any, key: str, lock: dict[str, Any]) -> Any:
    return tasks.locked.si(key).set(lock=lock).apply_async()


def _chain_head(tasks: Any, key: str, lock: dict[str, Any]) -> Any:
    return chain(tasks.locked.si(key).set(lock=lock), tasks.behind.s(key)).apply_async()


def _chain_middle(tasks: Any, key: str, lock: dict[str, Any]) -> Any:
    return chain(tasks.before.si(key), tasks.locked.si(key).set(lock=lock), tasks.behind.s(key)).apply_async()


def _chain_tail(tasks: Any, key: str, lock: dict[str, Any]) -> Any:
    return chain(tasks.before.si(key), tasks.locked.si(key).set(lock=lock)).apply_async()


def _group(tasks: Any, key: str, lock: dict[str, Any]) -> Any:
    return group(tasks.locked.si(key).set(lock=lock), tasks.beside.si(key)).apply_async()


def _chord_header(tasks: Any, key: str, lock: dict[str, Any]) -> Any:
    return chord([tasks.locked.si(key).set(lock=lock), tasks.beside.si(key)], tasks.collect.s(key)).apply_async()


def _chord_body(tasks: Any, key: str, lock: dict[str, Any]) -> Any:
    return chord([tasks.beside.si(key)], tasks.locked.si(key).set(lock=lock)).apply_async()


def _nested_chord(tasks: Any, key: str, lock: dict[str, Any]) -> Any:
    inner = chord([tasks.locked.si(key).set(lock=lock), tasks.beside.si(key)], tasks.inner.s(key))
    return chord([inner, tasks.beside.si(key)], tasks.collect.s(key)).apply_async()


def _chunk(tasks: Any, key: str, lock: dict[str, Any]) -> Any:
    return getattr(tasks, f"locked_{lock['on_contention']}").chunks([(key,)], 1).apply_async()


def _link(tasks: Any, key: str, lock: dict[str, Any]) -> Any:
    signature = tasks.locked.si(key).set(lock=lock)
    result = signature.freeze()
    tasks.before.si(key).apply_async(link=signature)
    return result


def _link_error(tasks: Any, key: str, lock: dict[str, Any]) -> Any:
    signature = tasks.locked.si(key).set(lock=lock)
    result = signature.freeze()
    tasks.failing.si(key).apply_async(link_error=signature)
    return result


def _replace(tasks: Any, key: str, lock: dict[str, Any]) -> Any:
    return tasks.replaced.si(key, lock).apply_async()


def _replace_chain(tasks: Any, key: str, lock: dict[str, Any]) -> Any:
    return chain(tasks.replaced.si(key, lock), tasks.behind.s(key)).apply_async()


PLACES: dict[str, Canvas] = {
    "alone": _single,
    "first of a chain": _chain_head,
    "in a chain": _chain_middle,
    "last of a chain": _chain_tail,
    "in a group": _group,
    "in a chord's header": _chord_header,
    "body of a chord": _chord_body,
    "in a chord in a chord's header": _nested_chord,
    "`link`": _link,
    "`link_error`": _link_error,
    "`Task.replace`": _replace,
    "`Task.replace` in a chain": _replace_chain,
    "`map`, `starmap`, `chunks`": _chunk,
}
#: Celery has no chords with the rpc result back end, and loses the result of what replaces a task.
NOT_WITH_RPC = (
    "in a chord's header",
    "body of a chord",
    "in a chord in a chord's header",
    "`Task.replace`",
    "`Task.replace` in a chain",
)


@pytest.fixture(scope="module", params=["redis", "rpc"])
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer
) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp(f"matrix-{request.param}")
    options: dict[str, Any] = {"concurrency": 4, "may_log": EXPECTED}
    if request.param == "rpc":
        options["results"] = "rpc://"
    with shared_workers(folder, redis_server, APP, **options) as shared:
        yield shared


def outcome(shared: Shared, key: str, result: Any) -> str:
    """Say in a few words what came of it."""
    try:
        value = result.get(timeout=BOUND, disable_sync_subtasks=False)
    except (DistLockError, CeleryError) as error:
        # The result back end makes the class anew.
        told = f"`get()` raises `{type(error).__name__}`"
    else:
        told = f"`{value!r}`"
    behind = any(entry["task"] == "behind" for entry in shared.journal.entries("ran", key=key))
    has_behind = key.startswith(("chain_head", "chain_middle", "chord_header", "nested_chord", "replace_chain"))
    return told + (("; what follows runs" if behind else "; what follows does not run") if has_behind else "")


def test_the_rpc_back_end_loses_what_replaces_a_task_also_without_locks(shared: Shared) -> None:
    if not shared.settings.results.startswith("rpc"):
        assert shared.tasks.replaced_bare.delay("k").get(timeout=BOUND) == "beside"
        return
    result = shared.tasks.replaced_bare.delay("k")
    shared.journal.wait_for("ran", key="k", task="beside")
    with pytest.raises(TimeoutError):
        result.get(timeout=3.0)


def test_everything_ends_as_the_page_says(shared: Shared) -> None:
    rpc = shared.settings.results.startswith("rpc")
    places = [place for place in PLACES if not (rpc and place in NOT_WITH_RPC)]
    results = {}
    with ExitStack() as held:
        for place in places:
            for policy in POLICIES:
                # Nothing in it that a template would escape.
                key = f"{PLACES[place].__name__.strip('_')}-{policy}-{uuid.uuid4().hex[:8]}"
                held.enter_context(shared.lock(key))
                results[place, policy] = key, PLACES[place](shared.tasks, key, {"on_contention": policy})
        # Whoever is refused for good ends while the locks are held …
        table = {cell: outcome(shared, *results[cell]) for cell in results if cell[1] in ("skip", "fail")}
        for key, _ in results.values():
            assert not [entry for entry in shared.journal.entries("ran", key=key) if entry["task"] == "locked"]
    # … and whoever waits once they are free.
    table |= {cell: outcome(shared, *results[cell]) for cell in results if cell not in table}
    rows = [[place, *(table[place, policy] for policy in POLICIES)] for place in places]
    page = PAGE.read_text()
    head, rest = page.split(BEGIN)
    known, tail = rest.split(END)
    header = ["the contended task is", *(f'`"{policy}"`' for policy in POLICIES)]
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    if rpc:
        assert set(lines) <= set(known.strip().splitlines())
        return
    made = "\n".join(lines)
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(f"{head}{BEGIN}\n{made}\n{END}{tail}")
    else:
        assert made == known.strip()
