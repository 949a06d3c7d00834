"""A process that ends what pytest started, when pytest itself is killed.

Run as a script with the pid to watch as its argument. Its standard input carries ``+<pgid>`` and ``-<pgid>`` lines.
When the watched process is gone, every group still on the list gets SIGKILL. (PR_SET_PDEATHSIG would need code
between fork and exec, reaches only the direct child, and fires when the *thread* that forked ends.)
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys

__all__ = ["main"]


def main(watched: int) -> None:
    """Keep the list until ``watched`` is gone, then kill what is left on it."""
    groups: set[int] = set()
    poller = select.poll()
    alive = -1
    # It may be gone before we look; then our input ends as well.
    with contextlib.suppress(ProcessLookupError):
        alive = os.pidfd_open(watched)
        poller.register(alive, select.POLLIN)
    poller.register(0, select.POLLIN | select.POLLHUP)
    unread = b""
    gone = False
    while not gone:
        ready = {fd for fd, _ in poller.poll()}
        # Lines first: one may name a group that was started just before the end.
        if 0 in ready:
            data = os.read(0, 65536)
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))
            gone = not data
        elif alive in ready:
            gone = True
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main(int(sys.argv[1]))
