"""The ledger: what was really charged, in an SQLite file, beyond the reach of locks and of Celery."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

__all__ = ["Began", "Ledger"]

_TABLES = """
CREATE TABLE IF NOT EXISTS charges (order_id TEXT);
CREATE TABLE IF NOT EXISTS began (order_id TEXT, at REAL, pid INTEGER, worker INTEGER);
"""


@dataclass(frozen=True)
class Began:
    """That a task began to charge an order: when (wall clock), in which process of which worker."""

    at: float
    pid: int
    worker: int


class Ledger:
    """The ledger in the file ``path``; any number of processes may use it."""

    def __init__(self, path: str) -> None:
        self._path = path
        with self._transaction() as ledger:
            ledger.executescript(_TABLES)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=30)) as connection, connection:
            yield connection

    def charge(self, order_id: str) -> None:
        """Charge the order, now or not at all: one transaction."""
        with self._transaction() as ledger:
            ledger.execute("INSERT INTO charges VALUES (?)", (order_id,))

    def times_charged(self, order_id: str) -> int:
        """Return how often the order was charged."""
        with self._transaction() as ledger:
            (count,) = ledger.execute("SELECT count(*) FROM charges WHERE order_id = ?", (order_id,)).fetchone()
        return int(count)

    def note_beginning(self, order_id: str) -> None:
        """Note that this process has begun to charge the order, for whoever watches."""
        with self._transaction() as ledger:
            ledger.execute("INSERT INTO began VALUES (?, ?, ?, ?)", (order_id, time.time(), os.getpid(), os.getppid()))

    def beginnings(self, order_id: str) -> list[Began]:
        """Return every beginning to charge the order, oldest first."""
        with self._transaction() as ledger:
            rows = ledger.execute("SELECT at, pid, worker FROM began WHERE order_id = ? ORDER BY at", (order_id,))
            return [Began(*row) for row in rows]
