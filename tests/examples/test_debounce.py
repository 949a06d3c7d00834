"""The example ``debounce``."""

from __future__ import annotations

import redis

from tests.examples.conftest import RunExample


def test_a_document_that_is_saved_often_is_indexed_once_with_its_last_revision(
    run_example: RunExample, redis_url: str
) -> None:
    run_example("debounce")
    with redis.Redis.from_url(redis_url, decode_responses=True) as work:
        assert work.lrange("latest:novel", 0, -1) == ["10"]
        assert work.llen("each:novel") == 10
