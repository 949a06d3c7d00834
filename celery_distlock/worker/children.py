"""When is a pool child dead?

A lock may be given away only when the process that held it cannot touch anything any more. Celery's own reports do
not say that: ``terminate`` and a hard time limit are announced before the child is even signalled, and a reaped child
may be reported seconds late. A pidfd (Linux 5.3) becomes readable exactly when the process has ended, and cannot be
confused with a later process of the same number. Where there is none, a child counts as dead once its number is
unknown to the kernel, which is the case as soon as the pool has reaped it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

from celery_distlock.keepalive import Keeper

__all__ = ["Child", "Children"]

#: How often a child without a pidfd is looked at, in seconds.
_POLL = 0.05


class Child:
    """One pool child that has accepted supervised requests."""

    def __init__(self, pid: int, fd: int | None) -> None:
        self.pid = pid
        self._fd = fd
        self.dead = False

    @property
    def fd(self) -> int | None:
        """The pidfd, or None where the system gives none."""
        return self._fd

    def send(self, signum: int) -> None:
        """Send a signal to this very process; nothing happens if it has ended."""
        fd = self._fd
        # It may end, and be closed, between any two of these lines: never fall back from a closed pidfd to the number.
        with contextlib.suppress(OSError):
            if fd is not None:
                signal.pidfd_send_signal(fd, signum)
            elif not self.dead:
                os.kill(self.pid, signum)

    def close(self) -> None:
        """Forget the process."""
        self.dead = True
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class Children:
    """The pool's children, by pid.

    Arguments:
        keeper: whose thread watches.
        on_death: called in the keeper's thread with each child that has ended.
    """

    def __init__(self, keeper: Keeper, on_death: Callable[[Child], None]) -> None:
        self._keeper = keeper
        self._on_death = on_death
        self._known: dict[int, Child] = {}

    def get(self, pid: int) -> Child:
        """Return the child ``pid``; its ``dead`` is true if it has ended already."""
        child = self._known.get(pid)
        return child if child is not None else self._open(pid)

    def _open(self, pid: int) -> Child:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            child = Child(pid, None)
            child.dead = True
            return child
        except (AttributeError, OSError):
            # Not Linux, an old kernel, or a sandbox that forbids it.
            child = self._known[pid] = Child(pid, None)
            self._keeper.call_after(_POLL, lambda: self._poll(child))
            return child
        child = self._known[pid] = Child(pid, fd)
        self._keeper.watch(fd, lambda: self._ended(child))
        return child

    def _poll(self, child: Child) -> None:
        try:
            os.kill(child.pid, 0)
        except ProcessLookupError:
            self._ended(child)
        else:
            self._keeper.call_after(_POLL, lambda: self._poll(child))

    def _ended(self, child: Child) -> None:
        if self._known.get(child.pid) is child:
            del self._known[child.pid]
        child.close()
        self._on_death(child)
