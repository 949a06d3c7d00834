"""Tokens in Redis: what is left behind, and what the server is asked."""

from __future__ import annotations

from celery_distlock.lease import Claim, Lease, new_owner
from celery_distlock.stores.redis import RedisStore
from celery_distlock.tokens import Begun, Duplicate, Reserved, Token, running_key
from tests.stores.conftest import Behind


def test_every_key_vanishes_with_what_is_in_it(store: RedisStore, behind: Behind) -> None:
    store.reserve(Token("k", "first", 5.0, window=9.0))
    store.reserve(Token("k", "second", 7.0, replaces=True))
    names = behind.keys()
    left = {name: behind.client.pttl(name) / 1000 for name in names}
    place, outdated = (behind.name(kind, running_key("k")) for kind in "ux")
    assert left.keys() == {place, outdated}
    assert 6.0 < left[place] <= 7.1
    assert 6.0 < left[outdated] <= 7.1


def test_a_message_that_has_started_leaves_nothing(store: RedisStore, behind: Behind) -> None:
    token = Token("k", "first", 5.0)
    store.reserve(token)
    claim = Claim(running_key("k"), new_owner(), 30.0, record={"id": "first"})
    begun = store.begin(token, claim)
    assert isinstance(begun, Begun)
    store.release([Lease(claim.key, claim.owner, begun.fence, 30.0, 0.0)])
    assert behind.keys() == set()


def test_many_replacements_cost_one_entry_each_until_their_time_is_over(store: RedisStore, behind: Behind) -> None:
    for number in range(50):
        store.reserve(Token("k", f"m{number}", 30.0, replaces=True))
    outdated = behind.name("x", running_key("k"))
    assert behind.client.zcard(outdated) == 49
    for member in behind.client.zrange(outdated, 0, -1):
        behind.client.zadd(outdated, {member: 1.0})
    store.reserve(Token("k", "last", 30.0, replaces=True))
    assert behind.client.zrange(outdated, 0, -1) == ["m49"]


def test_a_runner_whose_record_is_gone_does_not_count(store: RedisStore, behind: Behind) -> None:
    # It could not be named to the caller.
    store.begin(Token("k", "first", 5.0), Claim(running_key("k"), new_owner(), 30.0, record={"id": "first"}))
    running = Token("k", "second", 5.0, running=True)
    assert store.reserve(running) == Duplicate("first")
    behind.client.delete(behind.name("r", running_key("k")))
    assert store.reserve(running) == Reserved()


def test_a_publisher_that_comes_late_and_asks_twice_leaves_no_place_behind(store: RedisStore) -> None:
    # The command is sent again if its reply was lost.
    quick = Token("k", "quick", 30.0, replaces=True)
    store.begin(quick, None)
    assert [store.reserve(quick), store.reserve(quick)] == [Reserved(), Reserved()]
    assert store.reserve(Token("k", "next", 30.0)) == Reserved()


def test_each_operation_is_one_command(store: RedisStore, behind: Behind) -> None:
    token, other = Token("k", "first", 5.0, running=True, window=3.0), Token("k", "second", 5.0, running=True)

    def each() -> None:
        store.reserve(token)
        store.reserve(other)
        store.begin(token, None)
        store.cancel(token, window=True)

    # The first call of a script is refused, and made again once it is loaded.
    each()
    database, asked = behind.client.get_connection_kwargs()["db"], []
    with behind.client.monitor() as monitor:
        each()
        behind.client.echo("the end")
        for one in monitor.listen():
            if "the end" in one["command"]:
                break
            if one["db"] == database and one["client_type"] != "lua":
                asked.append(one["command"].split()[0])
    # The test's own connection to say that this is the end is new.
    assert [name for name in asked if name != "SELECT"] == ["EVALSHA"] * 4
