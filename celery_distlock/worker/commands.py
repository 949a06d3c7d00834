"""Remote control: ``celery inspect locks``, and revoking what is parked at once."""

from __future__ import annotations

import functools
from typing import Any

from celery.worker.control import Panel, inspect_command

from celery_distlock.worker.warden import Warden

__all__ = ["locks"]


@inspect_command()  # type: ignore[untyped-decorator]  # Celery has no type hints
def locks(state: Any, **_: Any) -> dict[str, list[dict[str, Any]]]:
    """Locks that this worker's tasks hold, and tasks that wait parked in it."""
    warden = Warden.current
    if warden is None:
        return {"held": [], "parked": []}
    return {"held": warden.held(), "parked": warden.parking.listed()}


def _then_look(command: str) -> None:
    """Have a command that revokes also revoke what is parked, which Celery would do only when it is run."""
    original = Panel.data[command]

    @functools.wraps(original)
    def revoke(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        finally:
            if Warden.current is not None:
                Warden.current.parking.look_for_revoked()

    Panel.data[command] = revoke


for _command in ("revoke", "revoke_by_stamped_headers", "terminate"):
    _then_look(_command)
