"""How long the locks of other libraries last when nobody gives them back."""

from __future__ import annotations

__all__ = ["HOUR", "TIMEOUT"]

#: Seconds after which redis-py's lock is free, whether its holder lives or not: longer than tasks may run.
TIMEOUT = 60.0
#: Seconds: celery-once's and celery-heimdall's default. celery-singleton's is to hold for ever.
HOUR = 3600.0
