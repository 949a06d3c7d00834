"""The fuzz counter: many contenders, one number, nothing but the lock to keep it right.

Each contender reads the number from a file, sleeps, and writes it back plus one: whenever two of them are inside at
once, an increment is lost. Beside the number stands the fence of the lease under which it was written, so that a
grant out of order is seen even where no increment got lost. (After ShedLock's fuzz test.)
"""

from __future__ import annotations

import multiprocessing
import random
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from celery_distlock.lease import Claim, Lease, new_owner
from celery_distlock.stores.base import LockStore

__all__ = ["FuzzReport", "fuzz_counter"]

OpenStore = Callable[[], LockStore]


@dataclass(frozen=True)
class FuzzReport:
    """What a fuzz counter saw.

    Attributes:
        counted: increments found in the file, which is as many as were made.
        contended: how often a contender was told to wait.
        seconds: how long it took, without starting the processes.
    """

    counted: int
    contended: int
    seconds: float


@dataclass(frozen=True)
class _Work:
    open_store: OpenStore
    file: Path
    key: str
    threads: int
    increments: int
    ttl: float
    timeout: float


def fuzz_counter(
    open_store: OpenStore,
    *,
    threads: int = 8,
    processes: int = 0,
    increments: int = 20,
    ttl: float = 10.0,
    directory: str | Path | None = None,
    key: str = "fuzz-counter",
    timeout: float = 60.0,
) -> FuzzReport:
    """Let many contenders count under one lock, and insist on the exact sum.

    Arguments:
        open_store: returns a store; called once in each process, whose threads share it. With ``processes`` it must
            be picklable (``functools.partial(open_store, url, prefix=…)``).
        threads: contenders per process.
        processes: how many new processes to start; 0 for the threads of this one only.
        increments: how often each contender counts.
        ttl: seconds of each lease; an increment takes some milliseconds and is not renewed.
        directory: where the counter's file is made; default: a temporary folder.
        key: the key that all fight for.
        timeout: seconds after which a contender gives up.

    Raises:
        AssertionError: an increment was lost, a fence went back, or a lease was not ours when it was released.
        TimeoutError: a contender did not get the key in time.
        Exception: whatever the store raised in a contender.
    """
    with nullcontext(directory) if directory is not None else tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{new_owner()}.count"
        file.write_text("0 0")
        work = _Work(open_store, file, key, threads, increments, ttl, timeout)
        began = time.monotonic()
        try:
            if processes:
                began, contended = _count_in_processes(work, processes)
            else:
                contended = _count_in_threads(work)
            seconds = time.monotonic() - began
            counted, _ = _read(file)
        finally:
            file.unlink()
    expected = (processes or 1) * threads * increments
    if counted != expected:
        raise AssertionError(f"{expected} increments were made under the lock, {counted} were counted")
    return FuzzReport(counted, contended, seconds)


def _read(file: Path) -> tuple[int, int]:
    content = file.read_text().split()
    if len(content) != 2:
        raise AssertionError("the counter is half written: two contenders were inside at once")
    return int(content[0]), int(content[1])


def _count(work: _Work, store: LockStore) -> int:
    """Be one contender; return how often the key was contended."""
    contended = 0
    give_up = time.monotonic() + work.timeout
    for _ in range(work.increments):
        claim = Claim(work.key, new_owner(), work.ttl)
        while not isinstance(lease := store.acquire(claim), Lease):
            contended += 1
            if time.monotonic() > give_up:
                raise TimeoutError(f"no turn within {work.timeout} s: {lease}")
            time.sleep(random.uniform(0.001, 0.01))
        count, fence = _read(work.file)
        time.sleep(random.uniform(0.0, 0.002))
        work.file.write_text(f"{count + 1} {lease.fence}")
        if lease.fence <= fence:
            raise AssertionError(f"fence {lease.fence} was granted after fence {fence}")
        if lease.remaining < 0:
            raise AssertionError(f"an increment took longer than the ttl of {work.ttl} s: choose a longer one")
        if store.release([lease]) != [True]:
            raise AssertionError("a lease that had not expired was not ours any more")
    return contended


def _count_in_threads(work: _Work) -> int:
    """Run the contenders of one process; return how often the key was contended, or raise what one of them raised."""
    contended: list[int] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            contended.append(_count(work, store))
        except BaseException as exc:
            errors.append(exc)

    with closing(work.open_store()) as store:
        contenders = [threading.Thread(target=run, name=f"fuzz-{n}") for n in range(work.threads)]
        for contender in contenders:
            contender.start()
        for contender in contenders:
            contender.join()
    if errors:
        raise errors[0]
    return sum(contended)


def _count_in_processes(work: _Work, processes: int) -> tuple[float, int]:
    """Run the contenders in new processes; return when they began, and how often the key was contended."""
    context = multiprocessing.get_context("spawn")
    children = []
    contended = 0
    try:
        for _ in range(processes):
            ours, theirs = context.Pipe()
            child = context.Process(target=_child, args=(work, theirs), daemon=True)
            child.start()
            theirs.close()
            children.append((child, ours))
        for _, pipe in children:
            _receive(pipe, work.timeout)
        began = time.monotonic()
        for _, pipe in children:
            pipe.send("go")
        contended = sum(_receive(pipe, work.timeout + 10.0) for _, pipe in children)
        for child, _ in children:
            child.join(10.0)
    finally:
        for child, pipe in children:
            pipe.close()
            if child.is_alive():
                child.kill()
            child.join()
    return began, contended


def _receive(pipe: Connection, timeout: float) -> int:
    if not pipe.poll(timeout):
        raise TimeoutError(f"a process of the fuzz counter was silent for {timeout} s")
    try:
        answer: int | str = pipe.recv()
    except EOFError:
        raise RuntimeError("a process of the fuzz counter died") from None
    if isinstance(answer, str):
        raise AssertionError(f"a process of the fuzz counter failed\n{answer}")
    return answer


def _child(work: _Work, pipe: Connection) -> None:
    """Tell that the process is up, wait for the others, count."""
    pipe.send(0)
    pipe.recv()
    try:
        pipe.send(_count_in_threads(work))
    except BaseException:
        pipe.send(traceback.format_exc())
