"""The example ``flash_sale``."""

from __future__ import annotations

import redis

from tests.examples.conftest import RunExample


def test_the_unlocked_sale_oversells_and_the_locked_one_sells_exactly_what_there_is(
    run_example: RunExample, redis_url: str
) -> None:
    run_example("flash_sale")
    with redis.Redis.from_url(redis_url, decode_responses=True) as shop:
        assert shop.llen("concert:sold") > 5
        sold = shop.lrange("opera:sold", 0, -1)
        assert len(sold) == 5
        assert len(set(sold)) == 5
        assert shop.get("opera:left") == "0"
