"""What the person in front of the demo sees."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

__all__ = ["Row", "Screen"]


@dataclass(frozen=True)
class Row:
    """One line of the final table.

    Attributes:
        what: what is counted.
        right: how many there should be.
        unlocked, locked: how many there were without and with a lock.
        kept: whether the lock kept its promise, and the tasks without a lock showed what it is good for.
    """

    what: str
    right: int
    unlocked: int
    locked: int
    kept: bool


class Screen:
    """Progress while it runs, a table at the end; on anything but a terminal, plain lines."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._started = time.monotonic()

    def title(self) -> None:
        """Print the heading."""
        self._console.rule("[bold]celery-distlock")

    @contextmanager
    def step(self, what: str) -> Iterator[list[str]]:
        """Show that something is being done; what is put into the list is shown when it is done."""
        started = time.monotonic()
        notes: list[str] = []
        with self._console.status(f"{what} …"):
            yield notes
        seconds = time.monotonic() - started
        self._console.print(f" [dim]{seconds:4.1f} s[/]  {what}{''.join(f': [cyan]{note}[/]' for note in notes)}")

    def results(self, rows: Sequence[Row], remark: str) -> None:
        """Print the final table."""
        table = Table(header_style="bold")
        table.add_column("what happens")
        for name in ("right", "without a lock", "with a lock"):
            table.add_column(name, justify="right")
        for row in rows:
            wrong = "red" if row.unlocked != row.right else "green"
            mark = "[green]✓" if row.kept else "[bold red]✗"
            table.add_row(row.what, str(row.right), f"[{wrong}]{row.unlocked}[/]", f"{mark} {row.locked}[/]")
        self._console.print()
        self._console.print(table)
        self._console.print(remark)
        seconds = time.monotonic() - self._started
        if all(row.kept for row in rows):
            self._console.print(f"[green]Everything as promised[/], in {seconds:.0f} s.")
        else:
            self._console.print(f"[bold red]Not as promised:[/] see the lines with ✗ ({seconds:.0f} s).")

    def say(self, what: str) -> None:
        """Print a line."""
        self._console.print(what)
