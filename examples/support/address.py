"""Where the examples' Redis is: read when the first application is imported."""

from __future__ import annotations

import os

__all__ = ["REDIS_URL"]

#: Broker, results, locks and the examples' own data: one empty database is enough.
REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
