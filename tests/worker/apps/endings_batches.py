"""The tasks of :mod:`.endings`, in a worker that tells how its leases are renewed."""

from __future__ import annotations

from collections.abc import Sequence

from celery_distlock.lease import Lease, Renewal
from celery_distlock.stores.redis import RedisStore
from tests.support.journal import record
from tests.worker.apps.endings import app

__all__ = ["app"]

_renew = RedisStore.renew


def _renew_and_tell(self: RedisStore, leases: Sequence[Lease]) -> list[Renewal]:
    record("batch", leases=len(leases))
    return _renew(self, leases)


RedisStore.renew = _renew_and_tell  # type: ignore[method-assign]
