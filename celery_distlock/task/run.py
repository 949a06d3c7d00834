"""Which run of which task this is, and how it is related to the run that holds the key.

A task id alone says too little: a retry, a lock retry, a replacement and a redelivered copy all carry the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from celery_distlock.lease import Holder

__all__ = [
    "ATTEMPT_HEADER",
    "OPTIONS_HEADER",
    "PREDECESSOR_PATIENCE",
    "SINCE_HEADER",
    "TICKET_HEADER",
    "Run",
    "label_of",
]

#: How long a task waits in place for its predecessor (the release comes a moment after its successor is published).
PREDECESSOR_PATIENCE = 1.0

#: Message headers: how often this run was refused its lock, since when (wall clock), the number of its place in line,
#: and the call's own options.
ATTEMPT_HEADER, SINCE_HEADER, TICKET_HEADER = "distlock_attempt", "distlock_since", "distlock_ticket"
OPTIONS_HEADER = "distlock"


@dataclass(slots=True)
class Run:
    """One run.

    Attributes:
        id: the task's id.
        retries: which of the task's own retries.
        attempt: how often it was refused its lock since.
        depth: how often it was replaced (``Task.replace``).
        parent_id: the id of the task that published it.
    """

    id: str | None
    retries: int = 0
    attempt: int = 0
    depth: int = 0
    parent_id: str | None = None

    @classmethod
    def of(cls, request: Any, headers: Mapping[str, Any] | None) -> Run:
        """Return the run of a task request, given its custom headers."""
        return cls(
            request.id,
            request.retries or 0,
            _count((headers or {}).get(ATTEMPT_HEADER)),
            request.replaced_task_nesting or 0,
            request.parent_id,
        )

    @property
    def label(self) -> str:
        """The name of this run's completion record."""
        return f"{self.id}/{self.retries}/{self.attempt}/{self.depth}"

    def is_copy_of(self, holder: Holder) -> bool:
        """Return whether the holder is this very run: the broker delivered its message twice."""
        return self.id is not None and holder.get("id") == self.id and _order(holder) == self._order

    def succeeds(self, holder: Holder) -> bool:
        """Return whether the holder is the run before this one, about to end or to release.

        That is: an earlier attempt, retry or replacement of the same id, or the task that published this one: the
        link before it in a chain, or a body that is still running. The caller therefore waits for a bounded time
        only, and only once: what was refused before is not the next link any more.
        """
        if self.id is None or holder.get("id") is None:
            return False
        if holder["id"] == self.id:
            return self._order > _order(holder)
        return self.attempt == 0 and holder["id"] == self.parent_id

    @property
    def _order(self) -> tuple[int, int, int]:
        return self.retries, self.depth, self.attempt


def label_of(headers: Mapping[str, Any]) -> str:
    """Return the label of a message's run, as its executor will; all there is are headers here."""
    get = headers.get
    attempt = _count(get(ATTEMPT_HEADER))
    return f"{get('id')}/{get('retries') or 0}/{attempt}/{get('replaced_task_nesting') or 0}"


def _order(holder: Holder) -> tuple[int, int, int]:
    return holder.get("retries", 0), holder.get("depth", 0), holder.get("attempt", 0)


def _count(value: Any) -> int:
    # A message can come from anywhere, and the worker's main process must not die of it.
    return value if isinstance(value, int) and value > 0 else 0
