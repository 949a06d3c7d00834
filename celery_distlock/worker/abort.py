"""Kill the child that runs a given request, and never another one.

Between the decision and the signal the child may finish the request and start the next one, which may be anybody's.
So it is stopped first; a stopped process cannot move on, and its cell then says for certain what it was doing. Only
if that is still this request is it killed; otherwise it is woken up, and has lost a millisecond.
"""

from __future__ import annotations

import logging
import signal
import time
from pathlib import Path

from celery_distlock.cells import GRANTED, Cell
from celery_distlock.worker.children import Child

__all__ = ["kill_if_running"]

log = logging.getLogger(__name__)

_PATIENCE, _PAUSE = 0.2, 0.0005


def kill_if_running(child: Child, cell: Cell, owner: str) -> bool:
    """Kill ``child`` if it is executing the request whose owner is ``owner``; return whether it was.

    "Executing" ends when the result has been stored: the cell then says RELEASING.
    """
    if child.dead:
        return False
    child.send(signal.SIGSTOP)
    try:
        if not _stopped(child.pid):
            log.debug("pid %s did not stop in %s s", child.pid, _PATIENCE)
        view = cell.view()
        running = view is not None and view.state == GRANTED and view.lease is not None and view.lease.owner == owner
        if running:
            child.send(signal.SIGKILL)
        return running
    finally:
        child.send(signal.SIGCONT)


def _stopped(pid: int) -> bool:
    """Wait until the kernel says that the process does not run any more."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        try:
            # The state is the first word after the command's name, which is in parentheses and may contain any.
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return not Path("/proc/self").exists()
        if state in "TtZX":
            return True
        time.sleep(_PAUSE)
    return False
