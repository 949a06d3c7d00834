"""The example ``beat_dedup``."""

from __future__ import annotations

import redis

from tests.examples.conftest import RunExample


def test_runs_of_a_slow_scheduled_job_pile_up_without_the_lock_and_are_skipped_with_it(
    run_example: RunExample, redis_url: str
) -> None:
    run_example("beat_dedup")
    with redis.Redis.from_url(redis_url, decode_responses=True) as counters:
        assert max(map(int, counters.lrange("unlocked:at_once", 0, -1))) > 1
        assert set(counters.lrange("locked:at_once", 0, -1)) == {"1"}
        assert counters.llen("locked:skipped_for") > 0
        assert int(counters.get("each:ticks") or 0) > 1.5 * int(counters.get("unique:ticks") or 0) > 0
