"""What the scripts are told in ``ARGV``."""

from __future__ import annotations

import json
import time

from celery_distlock.lease import Claim

__all__ = ["LINGER", "of_claim"]

#: Milliseconds that tombstones, and the data of expired holders nobody has replaced, are kept.
LINGER = b"3600000"

_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode


def of_claim(claim: Claim) -> tuple[bytes, ...]:
    """Return the ``ARGV`` of a script that may grant: owner, linger, ttl, limit, record."""
    record = dict(claim.record)
    record.setdefault("since", time.time())
    return (
        claim.owner.encode(),
        LINGER,
        b"%d" % round(claim.ttl * 1e6),
        b"%d" % claim.limit,
        _encode(record).encode(),
    )
