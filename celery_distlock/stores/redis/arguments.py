"""What the scripts are told in ``ARGV``."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from celery_distlock.lease import Claim

__all__ = ["LINGER", "of_claim"]

#: Milliseconds that tombstones, and the data of expired holders nobody has replaced, are kept.
LINGER = b"3600000"

_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode
_quote = json.encoder.encode_basestring_ascii


def of_claim(claim: Claim) -> tuple[bytes, ...]:
    """Return the ``ARGV`` of a script that may grant: owner, linger, ttl, limit, record."""
    return (
        claim.owner.encode(),
        LINGER,
        b"%d" % round(claim.ttl * 1e6),
        b"%d" % claim.limit,
        _encoded(claim.record),
    )


def _encoded(record: Mapping[str, Any]) -> bytes:
    """Return the record as a JSON object; by hand for what tasks tell, since the encoder costs as much as the rest."""
    parts = []
    for name, value in record.items():
        if type(value) is str:
            parts.append(f'"{name}":{_quote(value)}')
        elif type(value) is int or type(value) is float:
            parts.append(f'"{name}":{value!r}')
        else:
            return _encode({"since": time.time(), **record}).encode()
    if "since" not in record:
        parts.append(f'"since":{time.time()!r}')
    return f"{{{','.join(parts)}}}".encode()
