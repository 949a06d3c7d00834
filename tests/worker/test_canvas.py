"""A task that is skipped inside a canvas: nothing behind it runs, and nobody waits for ever."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import celery
import pytest
from celery import chain, chord, group, states
from celery.exceptions import ChordError, TaskRevokedError
from celery.result import AsyncResult, GroupResult

from tests.support.redis_server import RedisServer
from tests.support.waiting import eventually
from tests.worker.shared import PATIENCE, Shared, shared_workers

pytestmark = pytest.mark.xdist_group("canvas")

APP = "tests.worker.apps.contention_canvas"
# Celery logs the failure of a chord's header with a traceback.
EXPECTED = [r"Chord '\S+' raised", r"Chord callback"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Shared]:
    with shared_workers(tmp_path_factory.mktemp("canvas"), redis_server, APP, may_log=EXPECTED) as shared:
        yield shared


@pytest.fixture
def key() -> str:
    return f"key-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def holder(shared: Shared, key: str) -> Iterator[AsyncResult]:
    """A task that holds the key through the test."""
    with shared.held_by_a_task(key) as holder:
        yield holder


def members(result: Any) -> list[AsyncResult]:
    """Return the results of every task that a canvas's result stands for, itself, parents and groups included."""
    if isinstance(result, GroupResult):
        found = [leaf for member in result.results for leaf in members(member)]
    else:
        found = [result]
    return found + (members(result.parent) if result.parent is not None else [])


def outcome(result: AsyncResult) -> Any:
    """Return what a task returned or raised; fail if it has no result in time."""
    # Of several objects that stand for one task, Celery 5.5 tells only the first that the task is done.
    eventually(result.ready, PATIENCE, f"the result of {result.id}")
    return result.get(timeout=PATIENCE, propagate=False, disable_sync_subtasks=False)


class TestInAChain:
    def test_the_rest_does_not_run_and_names_the_holder(self, shared: Shared, key: str, holder: AsyncResult) -> None:
        tasks = shared.tasks
        last = chain(tasks.first.s(key), tasks.skipping_link.s(key), tasks.link.s(key), tasks.link.s(key)).apply_async()
        with pytest.raises(TaskRevokedError, match=holder.id):
            last.get(timeout=PATIENCE)
        third, skipped, before = last.parent, last.parent.parent, last.parent.parent.parent
        assert (outcome(before), outcome(skipped)) == (key, "skipped")
        assert before.state == skipped.state == states.SUCCESS
        for each in (third, last):
            error = outcome(each)
            assert isinstance(error, TaskRevokedError)
            assert each.state == states.REVOKED
            assert holder.id in str(error)
            assert skipped.id in str(error)
        shared.wait_until_idle()
        assert [entry["task"] for entry in shared.journal.entries("ran", key=key)] == ["first"]

    def test_the_last_link_may_be_skipped_like_any_task(self, shared: Shared, key: str, holder: AsyncResult) -> None:
        tasks = shared.tasks
        result = chain(tasks.first.s(key), tasks.skipping_link.s(key)).apply_async()
        assert result.get(timeout=PATIENCE) == "skipped"

    def test_it_runs_as_usual_when_nobody_holds_the_key(self, shared: Shared, key: str) -> None:
        tasks = shared.tasks
        result = chain(tasks.first.s(key), tasks.skipping_link.s(key), tasks.link.s(key)).apply_async()
        assert result.get(timeout=PATIENCE) == key


#: What can follow a link that is skipped.
SHAPES: dict[str, Callable[[Any, str], Any]] = {
    "a group": lambda t, k: t.skipping.s(k) | group(t.link.s(k), t.link.s(k)),
    "a group and a task": lambda t, k: t.skipping.s(k) | group(t.link.s(k), t.link.s(k)) | t.link.s(k),
    "a chord": lambda t, k: t.skipping.s(k) | chord([t.link.s(k), t.link.s(k)], t.link.s(k)),
    "a chord and a task": lambda t, k: t.skipping.s(k) | chord([t.link.s(k)] * 2, t.link.s(k)) | t.link.s(k),
    "two chords": lambda t, k: (
        t.skipping.s(k) | chord([t.link.s(k)] * 2, t.link.s(k)) | chord([t.link.s(k)] * 2, t.link.s(k))
    ),
    "a chord of chains": lambda t, k: (
        t.skipping.s(k) | chord([t.link.s(k) | t.link.s(k), t.link.s(k) | t.link.s(k)], t.link.s(k))
    ),
    "a chord whose body is a chain": lambda t, k: (
        t.skipping.s(k) | chord([t.link.s(k), t.link.s(k)], t.link.s(k) | t.link.s(k))
    ),
    "a chord in a chord": lambda t, k: (
        t.skipping.s(k) | chord([chord([t.link.s(k)] * 2, t.link.s(k)), t.link.s(k)], t.link.s(k))
    ),
    "a nested chain": lambda t, k: chain(t.skipping.s(k), chain(t.link.s(k), chain(t.link.s(k), t.link.s(k)))),
    "a group of chains": lambda t, k: t.skipping.s(k) | group(t.link.s(k) | t.link.s(k), t.link.s(k)),
    "a group of groups": lambda t, k: t.skipping.s(k) | group(group(t.link.s(k), t.link.s(k)), t.link.s(k)),
}


class TestAChainThatGoesOn:
    def test_what_stands_behind_it_runs_with_the_skip_result(
        self, shared: Shared, key: str, holder: AsyncResult
    ) -> None:
        last = chain(shared.tasks.passing.s(key), shared.tasks.link.s(key)).apply_async()
        assert last.get(timeout=PATIENCE) == "skipped"
        assert [entry["task"] for entry in shared.journal.entries("ran", key=key)] == ["link"]

    def test_callbacks_are_called_with_it(self, shared: Shared, key: str, holder: AsyncResult) -> None:
        callback = shared.tasks.link.s(key)
        result = callback.freeze()
        shared.tasks.passing.apply_async((key,), link=callback)
        assert result.get(timeout=PATIENCE) == "skipped"


class TestWhatStandsBehindIt:
    """Every shape that can follow a link: all of it is revoked, so that none of its results is waited for in vain."""

    @pytest.mark.parametrize("shape", SHAPES)
    def test_it_is_revoked(self, shared: Shared, key: str, holder: AsyncResult, shape: str) -> None:
        result = SHAPES[shape](shared.tasks, key).apply_async()
        everything = members(result)
        skipped = everything[-1]
        assert outcome(skipped) == "skipped"
        for each in everything[:-1]:
            error = outcome(each)
            assert isinstance(error, TaskRevokedError), f"{each.id} in {each.state}: {error!r}"
            assert holder.id in str(error)
        with pytest.raises(TaskRevokedError):
            result.get(timeout=PATIENCE)
        shared.wait_until_idle()
        assert shared.journal.entries("ran", key=key) == []

    @pytest.mark.parametrize("shape", SHAPES)
    def test_it_runs_when_nobody_holds_the_key(self, shared: Shared, key: str, shape: str) -> None:
        """The shapes above are sound: what keeps them from running is the lock."""
        result = SHAPES[shape](shared.tasks, key).apply_async()
        result.get(timeout=PATIENCE)
        # Celery publishes the next link, which may end first, before it stores the result of this one.
        all_of_it = members(result)
        eventually(lambda: {each.state for each in all_of_it} == {states.SUCCESS}, PATIENCE, "the success of all of it")


class TestInAChordsHeader:
    def test_a_skipped_member_counts_with_its_skip_result(self, shared: Shared, key: str, holder: AsyncResult) -> None:
        tasks = shared.tasks
        result = chord([tasks.skipping.s(key), tasks.first.s("other")], tasks.link.s(key)).apply_async()
        assert result.get(timeout=PATIENCE) == ["skipped", "other"]

    def test_a_member_that_is_a_chain_cut_short_fails_the_chord(
        self, shared: Shared, key: str, holder: AsyncResult
    ) -> None:
        tasks = shared.tasks
        cut = chain(tasks.skipping.s(key), tasks.link.s(key), tasks.link.s(key))
        result = chord([cut, tasks.first.s("other")], tasks.link.s(key)).apply_async()
        error = outcome(result)
        assert isinstance(error, ChordError)
        assert holder.id in str(error)
        shared.wait_until_idle()
        assert shared.journal.entries("ran", key=key) == []

    @pytest.mark.skipif(
        celery.VERSION < (5, 7), reason="what follows a chord that failed gets no result from Celery < 5.7"
    )
    def test_a_chord_of_chains_in_a_chain_fails_to_its_end(self, shared: Shared, key: str, holder: AsyncResult) -> None:
        tasks = shared.tasks
        cut = chain(tasks.skipping_link.s(key), tasks.link.s(key))
        whole = chain(tasks.first.s("other"), chord([cut, tasks.link.s("other")], tasks.link.s(key)), tasks.link.s(key))
        last = whole.apply_async()
        for each in members(last):
            outcome(each)
        with pytest.raises(Exception, match=holder.id):
            last.get(timeout=PATIENCE)

    def test_a_chord_behind_a_skipped_member_of_an_outer_chord_fails_that_chord(
        self, shared: Shared, key: str, holder: AsyncResult
    ) -> None:
        tasks = shared.tasks
        cut = chain(tasks.skipping.s(key), chord([tasks.link.s(key), tasks.link.s(key)], tasks.link.s(key)))
        result = chord([cut, tasks.first.s("other")], tasks.link.s(key)).apply_async()
        error = outcome(result)
        assert isinstance(error, ChordError)
        assert holder.id in str(error)
        shared.wait_until_idle()
        assert shared.journal.entries("ran", key=key) == []

    def test_a_skipped_body_is_the_chords_result(self, shared: Shared, key: str, holder: AsyncResult) -> None:
        tasks = shared.tasks
        result = chord([tasks.first.s("a"), tasks.first.s("b")], tasks.skipping_link.s(key)).apply_async()
        assert result.get(timeout=PATIENCE) == "skipped"


class TestInAGroup:
    def test_the_other_members_are_not_affected(self, shared: Shared, key: str, holder: AsyncResult) -> None:
        tasks = shared.tasks
        result = group(tasks.skipping.s(key), tasks.first.s("other"), tasks.skipping.s(key)).apply_async()
        assert result.get(timeout=PATIENCE) == ["skipped", "other", "skipped"]


class TestLinks:
    def test_callbacks_do_not_run_and_end_as_revoked(self, shared: Shared, key: str, holder: AsyncResult) -> None:
        callback = shared.tasks.link.s(key)
        callback_result = callback.freeze()
        nameless = shared.tasks.link.s(key)
        result = shared.tasks.skipping.apply_async((key,), link=[callback, nameless])
        assert result.get(timeout=PATIENCE) == "skipped"
        error = outcome(callback_result)
        assert isinstance(error, TaskRevokedError)
        assert holder.id in str(error)
        shared.wait_until_idle()
        assert shared.journal.entries("ran", key=key) == []

    def test_what_is_linked_to_a_callback_ends_too(self, shared: Shared, key: str, holder: AsyncResult) -> None:
        inner, callback = shared.tasks.link.s(key), shared.tasks.link.s(key)
        ends = [inner.freeze(), callback.freeze()]
        callback.link(inner)
        shared.tasks.skipping.apply_async((key,), link=callback)
        assert all(isinstance(outcome(each), TaskRevokedError) for each in ends)

    def test_errbacks_are_not_called_since_a_skip_is_no_failure(
        self, shared: Shared, key: str, holder: AsyncResult
    ) -> None:
        result = shared.tasks.skipping.apply_async((key,), link_error=shared.tasks.first.si(key))
        assert result.get(timeout=PATIENCE) == "skipped"
        shared.wait_until_idle()
        assert shared.journal.entries("ran", key=key) == []
