"""What the scripts are told in ``ARGV``."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from celery_distlock.lease import Claim

__all__ = ["LINGER", "of_claim"]

#: Milliseconds that tombstones, and the data of expired holders nobody has replaced, are kept.
LINGER = b"3600000"

_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode
_quote = json.encoder.encode_basestring_ascii
_OF_TASK = '{"task":%s,"host":%s,"pid":%d,"since":%r,"id":%s,"retries":%d,"attempt":%d,"depth":%d}'


def of_claim(claim: Claim) -> tuple[bytes, ...]:
    """Return the ``ARGV`` of a script that may grant: owner, linger, ttl, limit, record."""
    return claim.owner.encode(), LINGER, *_terms(claim.ttl, claim.limit), _encoded(claim.record)


@lru_cache(maxsize=256)
def _terms(ttl: float, limit: int) -> tuple[bytes, bytes]:
    return b"%d" % round(ttl * 1e6), b"%d" % limit


def _encoded(record: Mapping[str, Any]) -> bytes:
    """Return the record as a JSON object."""
    if len(record) == 8:
        # What tasks tell: by hand, since the encoder would cost as much as everything else.
        try:
            return _task_encoded(**record).encode()
        except TypeError:
            pass
    return _encode({"since": time.time(), **record}).encode()


def _task_encoded(task: str, host: str, pid: int, since: float, id: str, retries: int, attempt: int, depth: int) -> str:
    return _OF_TASK % (_quote(task), _quote(host), pid, since, _quote(id), retries, attempt, depth)
