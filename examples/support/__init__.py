"""What the examples share and a reader may skip: starting real workers, and waiting for what they do."""

from examples.support.processes import Process, Processes
from examples.support.waiting import wait_until

__all__ = ["Process", "Processes", "wait_until"]
