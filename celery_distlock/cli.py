"""``celery -A proj locks list | show KEY | release KEY``: who holds what, and a way out for people.

Exit codes: 0 done; 1 the key is free, or nothing was released; 2 the store could not be asked, or the command was
not understood.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, NoReturn

import click

from celery_distlock.errors import DistLockError, describe
from celery_distlock.lease import Holder, Lease
from celery_distlock.stores.base import LockStore
from celery_distlock.stores.of_app import store_of

__all__ = ["locks"]

_FREE, _FAILED = 1, 2

#: For ``release``: the store needs a lease, and whoever takes one away does not know its ttl.
_ANY_TTL = 1.0


@click.group()
def locks(**_preload: Any) -> None:  # Celery before 5.7 passes an app's own preload options on
    """Show who holds which lock, and release one by force.

    Exit codes: 0 done, 1 the key is free, 2 the store of locks could not be asked.
    """


@locks.command("list")
@click.option("--prefix", default="", help="Only keys that start with this text.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of holders instead of a table.")
@click.pass_context
def list_locks(context: click.Context, prefix: str, as_json: bool) -> None:
    """List the locks that are held.

    Redis is walked with SCAN, so the list is no snapshot, and takes long where the database holds many other keys.
    """
    with _store(context) as store:
        found = sorted(store.holders(prefix=prefix), key=lambda holder: (holder["key"], holder["fence"]))
    if as_json:
        _print_json(found)
    elif found:
        _print_table([name for name, _ in _COLUMNS], [[cell(holder) for _, cell in _COLUMNS] for holder in found])
    else:
        click.echo("no locks are held", err=True)


@locks.command()
@click.argument("key")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of holders instead of text.")
@click.pass_context
def show(context: click.Context, key: str, as_json: bool) -> None:
    """Show all that is known of the holders of KEY; exit code 1 if it is free."""
    with _store(context) as store:
        found = store.holders(key)
    if as_json:
        _print_json(found)
    elif found:
        click.echo("\n\n".join(_details(holder) for holder in found))
    else:
        click.echo(f"{_text(key)} is free", err=True)
    # As Lock.locked(): whoever asks next replaces a holder that has expired.
    if not any(holder["remaining"] > 0 for holder in found):
        context.exit(_FREE)


@locks.command()
@click.argument("key")
@click.option("--owner", help="Which holder, if there are several: its owner token, as `show` prints it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def release(context: click.Context, key: str, owner: str | None, yes: bool) -> None:
    """Take KEY away from its holder.

    The key is free at once, while the holder may still be at work. The holder is told at its next renewal, at most a
    third of its ttl later, that the lock is LOST: a task in a prefork pool is killed and fails with LockLost, elsewhere
    check() raises (lock_on_lost="warn": it runs on). Until then two may be at it. A lock whose holder is dead needs no
    release: it becomes free by itself.
    """
    with _store(context) as store:
        holder = _chosen(context, key, owner, store.holders(key))
        click.echo(f"{_text(key)} is held by {_text(describe(holder))}, {_expiry(holder)}", err=True)
        if not yes:
            click.echo(
                "If it is still running it will be told that its lock is LOST, and its task is aborted "
                "(at its next renewal; until then somebody else may start).",
                err=True,
            )
            click.confirm("Release it by force?", abort=True, err=True)
        # By owner: if the key has changed hands meanwhile, its new holder is left alone. Without a fence: an acquire
        # of this owner that is still under way must not bring it back.
        (ours,) = store.release([Lease.unknown(key, holder["owner"], _ANY_TTL)])
    if not ours:
        click.echo("it had ended before it could be released", err=True)
        context.exit(_FREE)
    click.echo(f"released {_text(key)}")


def _chosen(context: click.Context, key: str, owner: str | None, found: Sequence[Holder]) -> Holder:
    if owner is not None:
        found = [holder for holder in found if holder["owner"] == owner]
    if not found:
        click.echo(f"{_text(key)} is " + ("free" if owner is None else f"not held by {_text(owner)}"), err=True)
        context.exit(_FREE)
    if len(found) > 1:
        listed = "\n".join(f"  --owner {holder['owner']}   {_text(describe(holder))}" for holder in found)
        _fail(context, f"{_text(key)} has {len(found)} holders; say which one:\n{listed}")
    return found[0]


@contextmanager
def _store(context: click.Context) -> Iterator[LockStore]:
    """Yield the app's store; a store that cannot be asked ends the command with a sentence instead of a traceback."""
    try:
        store = store_of(context.obj.app)
        if store.name.startswith("memory://"):
            _fail(context, f"{store.name}: these locks live in the memory of each process; no other one can see them")
        try:
            yield store
        finally:
            store.close()
    except DistLockError as error:
        _fail(context, str(error))


def _fail(context: click.Context, sentence: str) -> NoReturn:
    click.echo(f"Error: {sentence}", err=True)
    context.exit(_FAILED)


# -- how it looks --------------------------------------------------------------------------------------------------


def _print_json(found: Sequence[Holder]) -> None:
    click.echo(json.dumps(found, indent=2))


def _print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _details(holder: Holder) -> str:
    shown: dict[str, Any] = dict(holder)
    shown["remaining"] = _remaining(holder)
    if "since" in holder:
        since = datetime.fromtimestamp(holder["since"], timezone.utc)
        shown["since"] = f"{since:%Y-%m-%d %H:%M:%S} UTC ({_age(holder)} ago)"
    first = [name for name in ("key", "task", "id", "identifier", "host", "pid", "since", "remaining") if name in shown]
    return "\n".join(f"{name:<11}{_text(shown[name])}" for name in dict.fromkeys((*first, *sorted(shown))))


def _who(holder: Holder) -> str:
    if "identifier" in holder:
        return repr(holder["identifier"])
    if "task" in holder:
        # A task that was called as a function has no id.
        return f"{holder['task']}[{holder.get('id') or '-'}]"
    return "-"


def _where(holder: Holder) -> str:
    return f"{holder.get('host', '-')}/{holder.get('pid', '-')}"


def _age(holder: Holder) -> str:
    # The clocks of two hosts differ: a lock of the future is a new one.
    return _duration(max(0.0, time.time() - holder["since"])) if "since" in holder else "-"


def _remaining(holder: Holder) -> str:
    return f"{holder['remaining']:.1f} s" if holder["remaining"] > 0 else "expired"


def _expiry(holder: Holder) -> str:
    if holder["remaining"] > 0:
        return f"believed for another {_remaining(holder)} unless it is renewed"
    return "expired; the next one who asks replaces it"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours < 1:
        return f"{minutes} min {int(seconds % 60)} s"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _text(value: Any) -> str:
    # Keys and records may contain anything, and a terminal obeys control characters.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


_COLUMNS: tuple[tuple[str, Callable[[Holder], str]], ...] = (
    ("KEY", lambda holder: _text(holder["key"])),
    ("HOLDER", lambda holder: _text(_who(holder))),
    ("HOST/PID", lambda holder: _text(_where(holder))),
    ("AGE", _age),
    ("REMAINING", _remaining),
    ("FENCE", lambda holder: str(holder["fence"])),
)
