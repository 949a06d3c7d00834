"""Moments, in whatever form Celery takes them for an ``eta``."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from celery.utils.time import maybe_iso8601, maybe_make_aware

__all__ = ["seconds_until"]


def seconds_until(moment: Any) -> float | None:
    """Return in how many seconds a moment is (negative: it has passed); None if it is none.

    Arguments:
        moment: a :class:`~datetime.datetime`, without a time zone in UTC, as workers read it; or one as ISO 8601 text.
    """
    if isinstance(moment, str):
        moment = maybe_iso8601(moment)
    if not isinstance(moment, datetime):
        return None
    return float((maybe_make_aware(moment) - datetime.now(timezone.utc)).total_seconds())
