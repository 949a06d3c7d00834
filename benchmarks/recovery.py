"""How long a lock stays taken after its holder's death, in each of the ways to die, and with each library.

Run: ``python -m benchmarks.recovery [--rounds 7] [--ttl 5] [--patience 12]``

For every way to die each library has a task in a pool process of its own that holds a lock, and somebody who wants it
next: for ours a task parked in another worker, whose body has to start; for locks that are taken in bodies a thread
that waits for the lock itself; for locks that are taken at publish the next message, which is tried again and again
until it is accepted. So the others are spared the way from the free lock to the running task. Ours dies first where
they can die one by one, so that nothing else is going on.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.bodies import Body
from benchmarks.frame import Benchmark, Measured, Result, alone, option
from benchmarks.rounds import Spread
from benchmarks.scene import NO_ZOOKEEPER, Scene, prepared, wait_until
from benchmarks.tables import LABELS, number, table
from benchmarks.timeouts import HOUR, TIMEOUT
from tests.support.workers import Worker

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIMIT = "limit"
DEATHS = {
    "killed": "pool process: SIGKILL",
    "exit": "pool process: exits by itself",
    "terminate": "revoke(terminate=True)",
    LIMIT: "hard time limit",
    "worker": "whole worker: SIGKILL",
}
OURS = "ours"
IN_BODIES = ("redis_py", "python_redis_lock", "kazoo")
AT_PUBLISH = ("celery_once", "celery_singleton", "celery_heimdall")
LIBRARIES = (OURS, *IN_BODIES, *AT_PUBLISH)
#: Seconds that a holder would go on if it did not die.
_LONG = 600.0
#: Seconds that it may take to have everything ready for a death.
_SLACK = 6.0
#: Seconds between two tries to publish.
_TRY_EVERY = 0.02
#: Seconds that a time limit may be late.
_LATE = 3.0
#: Seconds between two time limits: the worker's main process stands still for a tenth of one at each.
_APART = 0.25

_numbers = itertools.count()


@dataclass(frozen=True)
class Size:
    """How much."""

    rounds: int = option(7, "rounds")
    ttl: float = option(5.0, "seconds: our ttl, python-redis-lock's, and the time-out of kazoo's session")
    limit: float = option(1.5, "seconds: the hard time limit of the first; each other one has a bit more")
    patience: float = option(12.0, "seconds after a death for which its lock is watched")


@dataclass
class Trial:
    """One library's lock, whose holder dies (monotonic times)."""

    library: str
    key: str
    id: str
    limit: float | None
    died_at: float = 0.0
    free_at: float | None = None
    thread: threading.Thread | None = None
    #: Nobody knows when it died, or was free.
    untold: bool = False


def measure(size: Size) -> Measured:
    """Have all of them die, in every way, in each round."""
    found = Measured()
    with prepared("benchmarks.mortal", workers=0, zookeeper=True, env={"BENCH_TTL": str(size.ttl)}) as scene:
        libraries = [library for library in LIBRARIES if library != "kazoo" or scene.zookeeper]
        if scene.zookeeper is None:
            found.missing["kazoo"] = NO_ZOOKEEPER
        # A slot for each holder, and some for those that are being replaced.
        slots = len(libraries) + 3
        scene.start("doomed", concurrency=slots, queues=["doomed"])
        scene.start("survivors", concurrency=4, queues=["survivors"])
        numbers = itertools.count()
        host = scene.start(f"host{next(numbers)}", concurrency=slots, queues=["host"])
        publishing = Publishing(scene)
        everybody: dict[str, list[Trial]] = {}
        threads: list[threading.Thread] = []
        try:
            scene.wait_ready(*scene.workers)
            for number in range(size.rounds):
                everybody = {}
                for death in DEATHS:
                    everybody[death] = _die(scene, host, publishing, death, libraries, size)
                scene.workers.remove(host)
                if number + 1 < size.rounds:
                    # It starts while the others are watched.
                    host = scene.start(f"host{next(numbers)}", concurrency=slots, queues=["host"])
                _watch([trial for trials in everybody.values() for trial in trials], size.patience)
                for death, trials in everybody.items():
                    threads += [trial.thread for trial in trials if trial.thread is not None]
                    for trial in trials:
                        if trial.untold:
                            continue
                        found.rounds.add(f"{death} {trial.library}", **_told(trial, size.patience))
                if number + 1 < size.rounds:
                    scene.wait_ready(host)
        finally:
            publishing.stop()
            # Whoever still waits for a lock of redis-py's gets it.
            scene.locks_client().flushdb()
            for thread in threads:
                thread.join()
            scene.tasks.close()
    return found


def _told(trial: Trial, patience: float) -> dict[str, float]:
    if trial.free_at is None or trial.free_at > trial.died_at + patience:
        return {"stuck": 1.0}
    return {"stuck": 0.0, "seconds": trial.free_at - trial.died_at}


def _watch(trials: Sequence[Trial], patience: float) -> None:
    """Wait until every lock is free, or has been watched for so long."""
    while any(trial.free_at is None and time.monotonic() < trial.died_at + patience for trial in trials):
        time.sleep(0.01)


def _die(
    scene: Scene, host: Worker, publishing: Publishing, death: str, libraries: Sequence[str], size: Size
) -> list[Trial]:
    """Have one task of each library die in this way."""
    trials = []
    for order, library in enumerate(libraries):
        key = f"{death}-{library}-{next(_numbers)}"
        limit = size.limit + order * _APART if death == LIMIT else None
        queue = "host" if death == "worker" else "doomed"
        result = getattr(scene.tasks, library).apply_async((key, _LONG), queue=queue, time_limit=limit)
        trials.append(Trial(library, key, result.id, limit))
    for trial in trials:
        wait_until(partial(_held, scene, trial.key), 30, f"the holder of {trial.key}")
        trial.thread = _next_one(scene, trial, size.patience)
    # From before they die: a lock may be given up before its holder is.
    publishing.watch([trial for trial in trials if trial.library in AT_PUBLISH])
    if death == "worker":
        now = time.monotonic()
        host.kill_all()
        for trial in trials:
            trial.died_at = now
    for trial in trials:
        (holder,) = scene.bodies(f"holds-{trial.key}").since()[:1]
        if death in ("killed", "exit"):
            trial.died_at = time.monotonic()
            os.kill(int(holder.end), signal.SIGKILL if death == "killed" else scene.tasks.EXIT)
        elif death == "terminate":
            trial.died_at = time.monotonic()
            scene.tasks.app.control.revoke(trial.id, terminate=True)
        elif trial.limit is not None:
            interrupted = _interrupted(scene, trial, holder)
            trial.untold = interrupted is None
            trial.died_at = interrupted or time.monotonic()
        if trial.library == OURS and death != "worker":
            _watch([trial], size.patience)
    return trials


def _held(scene: Scene, key: str) -> bool:
    return len(scene.bodies(f"holds-{key}")) > 0


def _interrupted(scene: Scene, trial: Trial, holder: Body) -> float | None:
    """Return when a time limit reached the body; not when it was due, which nobody outside of the worker knows.

    None: the process was killed before it could tell, as Celery does it to one that is slow to end.
    """
    bodies = scene.bodies(f"interrupted-{trial.key}")
    # The next one's body notes its end, too.
    mine = [body.start for body in bodies.since() if body.end == holder.end]
    give_up = holder.start + _LATE + (trial.limit or 0.0)
    while not mine and time.monotonic() < give_up:
        time.sleep(0.01)
        mine = [body.start for body in bodies.since() if body.end == holder.end]
    return mine[0] if mine else None


def _next_one(scene: Scene, trial: Trial, patience: float) -> threading.Thread | None:
    """Have somebody wait for the lock. Those who would publish begin when the holder is dead."""
    if trial.library == OURS:
        scene.tasks.ours.apply_async((trial.key, 0.0), queue="survivors")
        wait_until(lambda: len(scene.bodies(f"parked-{trial.key}")) > 0, 30, "the one that waits")
        target = _note_next_body
    elif trial.library in IN_BODIES:
        target = _note_next_holder
    else:
        return None
    # Until it is certain that nobody looks any more.
    thread = threading.Thread(target=target, args=(scene, trial, patience + _SLACK))
    thread.start()
    return thread


def _note_next_body(scene: Scene, trial: Trial, patience: float) -> None:
    bodies = scene.bodies(f"holds-{trial.key}")
    wait_until(lambda: len(bodies) > 1, patience, "our next holder", every=0.005)
    trial.free_at = bodies.since()[1].start


def _note_next_holder(scene: Scene, trial: Trial, patience: float) -> None:
    lock = scene.tasks.lock_of(trial.library, trial.key)
    # The others are free in time: their time-outs are short.
    limited = {"blocking_timeout": patience} if trial.library == "redis_py" else {}
    try:
        if lock.acquire(**limited):
            trial.free_at = time.monotonic()
            lock.release()
    except Exception:
        trial.untold = True
        raise


class Publishing:
    """A thread that publishes what others have locked, again and again until it is accepted."""

    def __init__(self, scene: Scene) -> None:
        self._tasks = scene.tasks
        self._trials: list[Trial] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def watch(self, trials: Sequence[Trial]) -> None:
        """Try these, too."""
        self._trials += trials

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(_TRY_EVERY):
            for trial in list(self._trials):
                now = time.monotonic()
                if self._accepted(trial):
                    trial.free_at = now
                    self._trials.remove(trial)

    def _accepted(self, trial: Trial) -> bool:
        task: Any = getattr(self._tasks, trial.library)
        try:
            task.apply_async((trial.key, _LONG), queue="nobody consumes this")
        except self._tasks.REFUSED:
            return False
        return True


def _timeouts(ttl: float) -> dict[str, str]:
    seconds = f"{number(ttl)} s"
    return {
        OURS: f"{seconds} (`lock_ttl`), renewed",
        "redis_py": f"{number(TIMEOUT)} s, not renewed, so it has to be longer than any task",
        "python_redis_lock": f"{seconds}, renewed by a thread of the pool process",
        "kazoo": f"{seconds} (the session's)",
        "celery_once": f"{number(HOUR)} s (its default), not renewed",
        "celery_singleton": "none (its default): for ever",
        "celery_heimdall": f"{number(HOUR)} s (its default), not renewed",
    }


def _cell(result: Result, death: str, library: str) -> str:
    kind = f"{death} {library}"
    stuck, seconds = result.rounds.of(kind, "stuck"), result.rounds.of(kind, "seconds")
    still = f"still locked after {number(result.size['patience'])} s"
    if not seconds:
        return still
    spread = Spread.of(seconds)
    unit, scale = ("ms", 1e3) if spread.median < 1 else ("s", 1.0)
    told = f"{number(spread.median * scale)} {unit} ({number(spread.low * scale)} … {number(spread.high * scale)})"
    return told + (f"; {still} in {sum(stuck):.0f} of {len(stuck)}" if any(stuck) else "")


def _known(result: Result) -> list[str]:
    return [library for library in LIBRARIES if f"killed {library}" in result.rounds]


def section(result: Result) -> str:
    """Tell it."""
    size, libraries = result.size, _known(result)
    rows = [
        [LABELS[library], *(_cell(result, death, library) for death in DEATHS), _timeouts(size["ttl"])[library]]
        for library in libraries
    ]
    without = "".join(f"\n{LABELS[kind]} is not in it: {why}.\n" for kind, why in result.measured.missing.items())
    return f"""\
A task dies that holds a lock. How long is it until the next one has it? {size["rounds"]} rounds; every lock was watched
for {number(size["patience"])} s. Ours is measured until the next task is in its body, in another worker; the others
until their lock is free, or the next message is accepted.

{table(["", *DEATHS.values(), "time-out"], rows)}
{without}
The ways to die: SIGKILL to the process that runs the task, as the kernel does it when memory runs out; `os._exit()` in
the middle of the body, as a crash in C; `revoke(terminate=True)`; a `time_limit`, counted from the
moment in which it interrupts the body (a negative time: the lock was free before that); SIGKILL to
a worker with all its processes, as a host that loses its power. A library whose time-out is long can be told a shorter
one, which then has to be longer than its longest task: it is not renewed.
"""


def draw(result: Result) -> Figure:
    """Picture when locks were free."""
    from benchmarks import plots

    rows: dict[str, dict[str, Spread | float]] = {}
    for death, title in DEATHS.items():
        rows[title] = {}
        for library in _known(result):
            seconds = result.rounds.of(f"{death} {library}", "seconds")
            rows[title][LABELS[library]] = Spread.of(seconds) if seconds else float(result.size["patience"])
    return plots.moments(rows, "seconds from the death to the next holder", ours=[LABELS[OURS]])


BENCHMARK = Benchmark(
    "recovery",
    "When the holder dies",
    Size(),
    Size(rounds=1, ttl=1.0, limit=1.0, patience=3.0),
    measure,
    section,
    draw,
    "Seconds from a holder's death to the next holder, for each way to die and each library",
)

if __name__ == "__main__":
    sys.exit(alone(BENCHMARK))
