"""What the scripts decide, seen through the store and in the data behind it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from celery_distlock.lease import Completed, Completion, Contended, Lease, Renewal, new_owner
from celery_distlock.stores.redis import RedisStore
from celery_distlock.stores.redis.layout import SHARDS, Layout
from tests.stores.conftest import Behind, claim, granted
from tests.support.waiting import eventually

# Acquire.


def test_a_free_key_is_granted_until_ttl_minus_drift(store: RedisStore) -> None:
    before = time.monotonic()
    lease = granted(store, ttl=10.0)
    after = time.monotonic()
    assert before + 10.0 - 0.102 <= lease.deadline <= after + 10.0 - 0.102
    assert (lease.key, lease.ttl) == ("k", 10.0)


def test_a_held_key_names_its_holder(store: RedisStore) -> None:
    record = {"task": "proj.charge", "id": "42", "retries": 1, "attempt": 0, "depth": 0, "host": "w1", "pid": 7}
    before = time.time()
    lease = granted(store, ttl=10.0, record=record)
    answer = store.acquire(claim())
    assert isinstance(answer, Contended)
    assert len(answer.holders) == 1
    holder = dict(answer.holders[0])
    assert 9.0 < holder.pop("remaining") <= 10.0
    assert before <= holder.pop("since") <= time.time()
    assert holder == {**record, "key": "k", "owner": lease.owner, "fence": lease.fence}


def test_a_record_cannot_pretend_to_be_another_owner(store: RedisStore) -> None:
    lease = granted(store, record={"owner": "x", "fence": 1, "key": "y", "remaining": 1e9, "since": 5.0})
    (holder,) = store.holders("k")
    assert (holder["owner"], holder["fence"], holder["key"]) == (lease.owner, lease.fence, "k")
    assert holder["remaining"] <= 30.0
    assert holder["since"] == 5.0


def test_asking_again_returns_the_same_fence_and_a_new_deadline(store: RedisStore, behind: Behind) -> None:
    first = granted(store, ttl=5.0)
    again = granted(store, owner=first.owner, ttl=50.0)
    assert again.fence == first.fence
    assert again.deadline > first.deadline + 40
    assert store.holders("k")[0]["remaining"] > 40
    assert behind.client.zcard(behind.name("h", "k")) == 1


def test_an_expired_owner_that_asks_again_keeps_its_fence_and_its_place(store: RedisStore, behind: Behind) -> None:
    first = granted(store)
    behind.condemned_long_ago(first)
    assert granted(store, owner=first.owner).fence == first.fence
    assert behind.client.hkeys(behind.name("r", "k")) == [first.owner]
    assert isinstance(store.acquire(claim()), Contended)


def test_keys_of_all_kinds_are_different_locks(store: RedisStore) -> None:
    keys = ["", "k", "K", "k ", "a:b", "h:k", "}:h:k", "{1}", "ключ", "\N{PILE OF POO}", "\ud800", "a\r\nb", "x" * 9000]
    leases = [granted(store, key) for key in keys]
    assert sorted(holder["key"] for holder in store.holders()) == sorted(keys)
    assert all(store.release(leases))


def test_two_prefixes_share_a_database_without_meeting(
    store: RedisStore, redis_url: str, open_redis: Callable[..., RedisStore]
) -> None:
    other = open_redis(redis_url, prefix="dist*lock[a]")
    granted(store)
    lease = granted(other)
    assert [holder["owner"] for holder in other.holders()] == [lease.owner]
    assert len(store.holders()) == 1


# Taking over.


def test_the_place_of_an_expired_holder_is_granted_after_the_grace_in_one_call(
    store: RedisStore, behind: Behind
) -> None:
    old = granted(store)
    behind.expire(old)
    started = time.monotonic()
    new = granted(store)
    assert 0.1 <= time.monotonic() - started < 1.0
    assert new.fence > old.fence
    assert new.deadline > started + 29.0
    assert store.renew([old]) == [Renewal.LOST]
    assert store.release([old]) == [False]
    assert [holder["owner"] for holder in store.holders("k")] == [new.owner]


def test_a_condemned_holder_that_renews_in_time_keeps_its_place(
    store: RedisStore, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = granted(store)
    behind.expire(old)
    # The holder speaks up exactly while the newcomer waits.
    monkeypatch.setattr("celery_distlock.stores.redis.store.time.sleep", lambda seconds: renewals.extend(renew()))
    renewals: list[Renewal] = []

    def renew() -> list[Renewal]:
        return store.renew([old])

    answer = store.acquire(claim())
    assert renewals == [Renewal.HELD]
    assert isinstance(answer, Contended)
    assert [holder["owner"] for holder in answer.holders] == [old.owner]
    assert behind.client.hkeys(behind.name("r", "k")) == [old.owner]


def test_a_mark_from_the_future_is_made_anew(store: RedisStore, behind: Behind) -> None:
    old = granted(store)
    behind.expire(old)
    behind.client.hset(behind.name("r", "k"), f"{old.owner}:condemned", f"{behind.now() + 3.6e9:.0f}")
    granted(store)
    assert store.renew([old]) == [Renewal.LOST]


def test_a_mark_beside_a_lost_record_vanishes_by_itself(
    store: RedisStore, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = granted(store)
    behind.expire(old)
    behind.client.delete(behind.name("r", "k"))
    monkeypatch.setattr("celery_distlock.stores.redis.store._ASKS", 1)
    assert isinstance(store.acquire(claim()), Contended)
    assert behind.client.hkeys(behind.name("r", "k")) == [f"{old.owner}:condemned"]
    assert behind.client.pttl(behind.name("r", "k")) > 0


def test_an_expired_holder_stays_listed_while_nobody_comes(store: RedisStore, behind: Behind) -> None:
    old = granted(store, ttl=5.0)
    behind.expire(old)
    (holder,) = store.holders("k")
    assert holder["remaining"] < 0
    assert store.renew([old]) == [Renewal.HELD]
    assert store.holders("k")[0]["remaining"] > 4


# Permits.


def test_as_many_as_the_limit_hold_a_key_each_with_its_own_fence(store: RedisStore) -> None:
    leases = [granted(store, limit=3) for _ in range(3)]
    answer = store.acquire(claim(limit=3))
    assert isinstance(answer, Contended)
    assert [holder["owner"] for holder in answer.holders] == [lease.owner for lease in leases]
    fences = [lease.fence for lease in leases]
    assert fences == sorted(set(fences))
    assert store.release([leases[1]]) == [True]
    granted(store, limit=3)


def test_a_smaller_limit_grants_nothing_until_enough_have_left(store: RedisStore) -> None:
    leases = [granted(store, limit=3) for _ in range(3)]
    store.release(leases[:1])
    assert isinstance(store.acquire(claim(limit=2)), Contended)
    store.release(leases[1:2])
    granted(store, limit=2)


def test_a_smaller_limit_evicts_only_expired_holders(store: RedisStore, behind: Behind) -> None:
    live, *dead = (granted(store, limit=3) for _ in range(3))
    behind.expire(*dead)
    assert isinstance(store.acquire(claim(limit=1)), Contended)
    granted(store, limit=2)
    assert store.renew([live, *dead]) == [Renewal.HELD, Renewal.LOST, Renewal.LOST]


def test_only_one_of_several_expired_holders_is_evicted_for_one_newcomer(store: RedisStore, behind: Behind) -> None:
    leases = [granted(store, limit=3) for _ in range(3)]
    behind.expire(*leases)
    granted(store, limit=3)
    assert sorted(store.renew(leases)) == [Renewal.HELD, Renewal.HELD, Renewal.LOST]


def test_a_contended_answer_names_ten_holders_at_most(store: RedisStore) -> None:
    for _ in range(12):
        granted(store, limit=12)
    answer = store.acquire(claim(limit=12))
    assert isinstance(answer, Contended)
    assert len(answer.holders) == 10


def test_the_data_live_as_long_as_the_longest_lease(store: RedisStore, behind: Behind) -> None:
    granted(store, ttl=9000.0, limit=2)
    short = granted(store, ttl=1.0, limit=2)
    for _ in ("after the grant", "after a renewal"):
        for kind in "hr":
            left = behind.client.pttl(behind.name(kind, "k"))
            assert 9000e3 < left <= 9000e3 + 3_600_001
        store.renew([short])


# Waiters stand before newcomers.


def test_a_newcomer_does_not_overtake_a_live_waiter(store: RedisStore, behind: Behind) -> None:
    behind.queue("k", "waiter", ticket=1, seconds=30)
    answer = store.acquire(claim())
    assert isinstance(answer, Contended)
    assert [(holder["owner"], holder.get("offered")) for holder in answer.holders] == [("waiter", True)]


def test_a_waiter_is_granted_the_key_in_its_turn_and_leaves_the_line(store: RedisStore, behind: Behind) -> None:
    behind.queue("k", "first", ticket=1, seconds=30)
    behind.queue("k", "second", ticket=2, seconds=30)
    assert isinstance(store.acquire(claim(owner="second")), Contended)
    first = granted(store, owner="first")
    assert behind.client.zrange(behind.name("w", "k"), 0, -1) == ["second"]
    assert behind.client.zrange(behind.name("d", "k"), 0, -1) == ["second"]
    store.release([first])
    granted(store, owner="second")


def test_a_newcomer_takes_a_place_that_the_waiters_leave_over(store: RedisStore, behind: Behind) -> None:
    behind.queue("k", "waiter", ticket=1, seconds=30)
    granted(store, limit=2)
    assert isinstance(store.acquire(claim(limit=2)), Contended)


def test_dead_waiters_are_purged_and_stand_in_nobodys_way(store: RedisStore, behind: Behind) -> None:
    for number in range(50):
        behind.queue("k", f"dead{number}", ticket=number, seconds=-1)
    behind.queue("k", "alive", ticket=100, seconds=30)
    assert isinstance(store.acquire(claim()), Contended)
    assert behind.client.zrange(behind.name("d", "k"), 0, -1) == ["alive"]
    assert [holder["owner"] for holder in store.holders("k")] == ["alive"]
    lease = granted(store, owner="alive")
    store.release([lease])
    assert behind.keys() == set()


# Renew.


def test_a_renewal_starts_the_time_anew(store: RedisStore) -> None:
    lease = granted(store, ttl=5.0)
    longer = Lease(lease.key, lease.owner, lease.fence, 50.0, lease.deadline)
    assert store.renew([longer]) == [Renewal.HELD]
    assert store.holders("k")[0]["remaining"] > 45


def test_a_batch_of_renewals_answers_each_lease_in_order(store: RedisStore) -> None:
    leases = [granted(store, f"k{number}") for number in range(40)]
    store.release(leases[::2])
    assert store.renew(leases) == [Renewal.GONE, Renewal.HELD] * 20
    assert store.renew([]) == []


def test_a_released_lock_is_not_brought_back_by_a_late_renewal(store: RedisStore, behind: Behind) -> None:
    lease = granted(store)
    store.release([lease])
    assert store.renew([lease]) == [Renewal.GONE]
    assert behind.keys() == set()


def test_a_stale_lease_of_an_owner_that_was_granted_the_key_anew_changes_nothing(store: RedisStore) -> None:
    old = granted(store)
    store.release([old])
    new = granted(store, owner=old.owner)
    assert store.renew([old]) == [Renewal.GONE]
    assert store.release([old]) == [False]
    assert store.renew([new]) == [Renewal.HELD]


def test_after_a_loss_of_data_a_free_key_is_entered_again_with_its_old_fence(store: RedisStore, behind: Behind) -> None:
    lease = granted(store)
    behind.client.flushdb()
    assert store.renew([lease]) == [Renewal.REASSERTED]
    assert store.renew([lease]) == [Renewal.HELD]
    assert [(h["owner"], h["fence"]) for h in store.holders("k")] == [(lease.owner, lease.fence)]
    answer = store.acquire(claim())
    assert isinstance(answer, Contended)
    assert store.release([lease]) == [True]
    assert granted(store).fence > lease.fence


def test_several_leases_of_a_shard_are_entered_again(store: RedisStore, behind: Behind) -> None:
    leases = [granted(store, f"k{number}") for number in range(3 * SHARDS)]
    behind.client.flushdb()
    assert store.renew(leases) == [Renewal.REASSERTED] * len(leases)


def test_after_a_loss_of_data_a_taken_key_is_lost_for_good(store: RedisStore, behind: Behind) -> None:
    lease = granted(store)
    behind.client.flushdb()
    newcomer = granted(store)
    assert newcomer.fence > lease.fence
    assert store.renew([lease]) == [Renewal.LOST]
    store.release([newcomer])
    assert store.renew([lease]) == [Renewal.LOST]


def test_after_a_loss_of_data_a_key_that_a_waiter_was_offered_is_lost(store: RedisStore, behind: Behind) -> None:
    lease = granted(store)
    behind.client.flushdb()
    behind.queue("k", "waiter", ticket=1, seconds=30)
    assert isinstance(store.acquire(claim()), Contended)
    assert store.renew([lease]) == [Renewal.LOST]


def test_after_a_loss_of_data_a_holder_comes_before_those_who_wait(store: RedisStore, behind: Behind) -> None:
    lease = granted(store)
    behind.client.flushdb()
    behind.queue("k", "waiter", ticket=1, seconds=30)
    assert store.renew([lease]) == [Renewal.REASSERTED]


def test_after_a_loss_of_data_a_released_lease_is_not_entered_again(store: RedisStore, behind: Behind) -> None:
    lease = granted(store)
    behind.client.flushdb()
    assert store.release([lease]) == [False]
    assert store.renew([lease]) == [Renewal.GONE]
    assert isinstance(store.acquire(claim(owner=lease.owner)), Contended)


def test_a_lease_entered_again_and_released_is_not_entered_a_third_time(store: RedisStore, behind: Behind) -> None:
    lease = granted(store)
    behind.client.flushdb()
    store.renew([lease])
    assert store.release([lease]) == [True]
    assert store.renew([lease]) == [Renewal.GONE]
    assert store.holders("k") == []


def test_after_a_loss_of_data_as_many_are_entered_again_as_their_limit_has_places(
    store: RedisStore, behind: Behind
) -> None:
    leases = [granted(store, limit=3) for _ in range(3)]
    behind.client.flushdb()
    granted(store, limit=3)
    assert store.renew(leases) == [Renewal.REASSERTED, Renewal.REASSERTED, Renewal.LOST]
    behind.client.flushdb()
    assert store.renew(leases[:2]) == [Renewal.REASSERTED, Renewal.REASSERTED]


def test_a_grant_that_the_new_primary_never_heard_of_is_entered_again(store: RedisStore, behind: Behind) -> None:
    replicated = granted(store)
    counter = behind.client.hget(behind.meta("k"), "fence")
    store.release([replicated])
    lease = granted(store)
    # The replica that takes over has the shard's epoch, but neither the grant nor its count.
    behind.client.delete(behind.name("h", "k"), behind.name("r", "k"))
    behind.client.hset(behind.meta("k"), "fence", counter)
    assert store.renew([lease]) == [Renewal.REASSERTED]
    assert granted(store, "k", limit=2).fence > lease.fence


# Release.


def test_a_release_frees_the_key_and_says_so_once(store: RedisStore) -> None:
    lease = granted(store)
    assert store.release([lease]) == [True]
    assert store.release([lease]) == [False]
    assert store.release([]) == []
    granted(store)


def test_a_release_by_another_owner_changes_nothing(store: RedisStore) -> None:
    lease = granted(store)
    stranger = Lease(lease.key, new_owner(), lease.fence, lease.ttl, lease.deadline)
    assert store.release([stranger]) == [False]
    assert store.renew([stranger]) == [Renewal.GONE]
    assert store.renew([lease]) == [Renewal.HELD]


def test_releasing_an_unknown_lease_frees_what_was_granted(store: RedisStore) -> None:
    lease = granted(store)
    assert store.release([Lease.unknown("k", lease.owner, 30.0)]) == [True]
    granted(store)


def test_releasing_an_unknown_lease_bars_an_acquire_still_under_way(store: RedisStore) -> None:
    late = claim()
    assert store.release([Lease.unknown("k", late.owner, 30.0)]) == [False]
    answer = store.acquire(late)
    assert isinstance(answer, Contended)
    assert answer.holders == ()
    assert store.renew([Lease("k", late.owner, 1, 30.0, 0.0)]) == [Renewal.GONE]
    granted(store)


# Fences.


def test_fences_are_exact_to_the_last_digit(store: RedisStore, behind: Behind) -> None:
    counter = 2**52 + 1
    granted(store, "warm up")
    for key in ("k", "l"):
        behind.client.hset(behind.meta(key), mapping={"fence": str(counter), "epoch": "1"})
    lease = granted(store, "k")
    assert lease.fence == counter + 1
    assert store.holders("k")[0]["fence"] == counter + 1
    assert behind.client.hget(behind.meta("k"), "fence") == str(counter + 1)
    store.release([lease])
    assert granted(store, "k").fence == counter + 2


def test_fences_grow_across_a_flush_and_a_lost_counter(store: RedisStore, behind: Behind) -> None:
    fences = []
    for lose in (lambda: None, behind.client.flushdb, lambda: behind.client.delete(behind.meta("k"))):
        lose()
        lease = granted(store)
        fences.append(lease.fence)
        store.release([lease])
    assert fences == sorted(set(fences))


def test_fences_grow_beyond_one_that_was_entered_again_though_the_clock_is_behind_it(
    store: RedisStore, behind: Behind
) -> None:
    ahead = behind.now() + 3600e6
    behind.client.hset(behind.meta("k"), mapping={"fence": f"{ahead:.0f}", "epoch": "1"})
    leases = [granted(store, "k"), granted(store, "k", limit=2)]
    behind.client.flushdb()
    assert store.renew(leases[1:]) == [Renewal.REASSERTED]
    assert granted(store, "k", limit=2).fence > leases[1].fence > ahead


def test_fences_are_server_time_unless_the_counter_is_ahead(store: RedisStore, behind: Behind) -> None:
    before = behind.now()
    fence = granted(store).fence
    assert before <= fence <= behind.now()
    ahead = fence + 10**12
    behind.client.hset(behind.meta("k"), "fence", str(ahead))
    assert granted(store, limit=2).fence == ahead + 1


# Completion records.


def test_a_redelivery_of_a_completed_run_is_told_so(store: RedisStore) -> None:
    done = Completion("k", "id.0.0", 60.0)
    lease = granted(store)
    assert store.release([lease], [done]) == [True]
    assert store.acquire(claim(completion=done)) == Completed("k", "id.0.0")
    granted(store, completion=Completion("k", "id.1.0", 60.0))


def test_a_completed_run_is_told_so_while_somebody_else_holds_the_key(store: RedisStore) -> None:
    done = Completion("k", "id.0.0", 60.0)
    store.release([granted(store)], [done])
    granted(store)
    assert isinstance(store.acquire(claim(completion=done)), Completed)


def test_a_completion_is_recorded_even_if_the_lease_was_lost(store: RedisStore, behind: Behind) -> None:
    old = granted(store)
    behind.condemned_long_ago(old)
    granted(store)
    done = Completion("k", "id.0.0", 60.0)
    assert store.release([old], [done]) == [False]
    assert isinstance(store.acquire(claim(completion=done)), Completed)


def test_completions_of_a_batch_belong_to_their_own_lease(store: RedisStore, behind: Behind) -> None:
    leases = [granted(store, f"k{number}") for number in range(3)]
    done = Completion("k1", "run", 60.0)
    assert store.release(leases, [None, done, None]) == [True, True, True]
    assert behind.keys() == {behind.layout.completion("k1", "run").decode()}
    assert 59_000 < behind.client.pttl(behind.layout.completion("k1", "run")) <= 60_000


def test_a_forgotten_completion_runs_again(store: RedisStore, behind: Behind) -> None:
    done = [Completion(f"k{number}", "run", 60.0) for number in range(3)]
    store.release([granted(store, one.key) for one in done], done)
    store.forget(done[:2])
    store.forget([])
    granted(store, "k0", completion=done[0])
    assert isinstance(store.acquire(claim("k2", completion=done[2])), Completed)


def test_completions_of_keys_and_runs_with_separators_do_not_collide() -> None:
    layout = Layout("p")
    # Enough of them for some to be in one shard.
    pairs = [pair for n in range(200) for pair in ((f"a:b{n}", "c"), ("a", f"b{n}:c"))]
    assert len({layout.completion(key, run) for key, run in pairs}) == len(pairs)


# Holders.


def test_holders_of_a_prefix_are_listed_and_its_glob_characters_are_literal(store: RedisStore) -> None:
    for key in ("a*c", "abc", "a?c", "a[b]c", "a\\c", "z"):
        granted(store, key)
    for prefix, expected in {
        "a*": ["a*c"],
        "a?": ["a?c"],
        "a[b]": ["a[b]c"],
        "a\\": ["a\\c"],
        "a": ["a*c", "a?c", "a[b]c", "a\\c", "abc"],
        "zz": [],
    }.items():
        assert [holder["key"] for holder in store.holders(prefix=prefix)] == expected


def test_a_listing_finds_every_key_among_many_others(store: RedisStore, behind: Behind) -> None:
    with behind.client.pipeline(transaction=False) as pipe:
        for number in range(3000):
            pipe.set(f"other:{number}", "x")
        pipe.execute()
    keys = [f"key{number:04}" for number in range(1500)]
    for key in keys:
        granted(store, key)
    assert [holder["key"] for holder in store.holders()] == keys


def test_a_listing_never_uses_keys_and_reads_in_batches(store: RedisStore, behind: Behind) -> None:
    for number in range(200):
        granted(store, f"k{number}")
    behind.client.config_resetstat()
    store.holders()
    stats = behind.client.info("commandstats")
    assert "cmdstat_keys" not in stats
    assert stats["cmdstat_scan"]["calls"] < 10


def test_the_holders_of_one_key_come_oldest_first(store: RedisStore) -> None:
    leases = [granted(store, limit=3, ttl=ttl) for ttl in (30.0, 10.0, 20.0)]
    assert [holder["owner"] for holder in store.holders("k")] == [lease.owner for lease in leases]
    assert store.holders("nobody") == []


def test_a_holder_whose_record_is_gone_is_still_listed(store: RedisStore, behind: Behind) -> None:
    lease = granted(store)
    behind.client.delete(behind.name("r", "k"))
    assert store.holders("k")[0]["owner"] == lease.owner
    answer = store.acquire(claim())
    assert isinstance(answer, Contended)
    assert answer.holders[0]["owner"] == lease.owner
    assert store.renew([lease]) == [Renewal.HELD]


class TestAPlaceThatRests:
    def test_is_gone_without_grace_and_tombstone_once_its_time_is_over(self, store: RedisStore, behind: Behind) -> None:
        first, second = granted(store, limit=2), granted(store, limit=2)
        store.release([replace(first, rest=30.0)])
        behind.client.zadd(behind.name("h", "k"), {f"{first.owner}:resting": 1.0}, xx=True)
        granted(store, limit=2)
        assert behind.client.exists(behind.name("t", "k")) == 0
        assert f"{first.owner}:resting" not in behind.client.hgetall(behind.name("r", "k"))
        assert store.renew([second]) == [Renewal.HELD]

    def test_leaves_nothing_where_nobody_comes(self, store: RedisStore, behind: Behind) -> None:
        lease = granted(store)
        store.release([replace(lease, rest=2.0)])
        holders = behind.name("h", "k")
        free = behind.client.zscore(holders, f"{lease.owner}:resting")
        assert behind.client.pexpiretime(holders) == math.ceil(free / 1000)
        eventually(lambda: behind.keys() == set(), 3.7, "an empty store")
