"""A task's own retry, its replacement and the next link of its chain never meet its lock.

Each of them can arrive a moment before the lock is released, since that happens after the result is stored. The policy
of all the tasks here is ``fail``: what is refused even once is a failure.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from celery import chain, chord, group

from celery_distlock import LockContended
from celery_distlock.task.run import PREDECESSOR_PATIENCE
from tests.support.redis_server import RedisServer
from tests.support.waiting import eventually
from tests.worker.shared import PATIENCE, Shared, shared_workers

pytestmark = pytest.mark.xdist_group("successors")

APP = "tests.worker.apps.contention_successors"
ROUNDS = 50
EXPECTED = [r"LockContended", r"ValueError"]


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer
) -> Iterator[Shared]:
    """A worker with one or two processes."""
    folder = tmp_path_factory.mktemp("successors")
    with shared_workers(folder, redis_server, APP, concurrency=request.param, may_log=EXPECTED) as shared:
        yield shared


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Shared]:
    """A worker with two processes, for what needs a running predecessor."""
    folder = tmp_path_factory.mktemp("successors")
    with shared_workers(folder, redis_server, APP, concurrency=2, may_log=EXPECTED) as shared:
        yield shared


@pytest.fixture
def key() -> str:
    return f"key-{uuid.uuid4().hex[:8]}"


def nothing_was_refused(shared: Shared, key: str, runs: int) -> None:
    assert shared.journal.entries("contended", key=key) == []
    assert len(shared.journal.runs(key)) == runs
    assert shared.journal.overlaps(key) == []


class TestNeverRefused:
    @pytest.mark.parametrize(
        ("name", "expected"), [("retry_itself", ROUNDS), ("retry_by_itself", ROUNDS), ("replace_itself", 0)]
    )
    def test_a_task_that_comes_again_under_its_own_id(self, shared: Shared, key: str, name: str, expected: int) -> None:
        result = getattr(shared.tasks, name).delay(key, ROUNDS)
        assert result.get(timeout=60) == expected
        nothing_was_refused(shared, key, ROUNDS + 1)

    def test_the_next_link_of_a_chain(self, shared: Shared, key: str) -> None:
        links = chain(shared.tasks.link.s(0, key), *(shared.tasks.link.s(key) for _ in range(ROUNDS - 1)))
        assert links.apply_async().get(timeout=60) == ROUNDS
        nothing_was_refused(shared, key, ROUNDS)

    def test_the_chain_that_replaces_a_task(self, shared: Shared, key: str) -> None:
        for _ in range(5):
            assert shared.tasks.replace_by_chain.delay(key).get(timeout=PATIENCE) == 3
            shared.wait_until_free(key)
        nothing_was_refused(shared, key, 20)

    def test_a_callback(self, shared: Shared, key: str) -> None:
        for _ in range(5):
            callback = shared.tasks.link.s(key)
            after = callback.freeze()
            shared.tasks.link.apply_async((0, key), link=callback)
            assert after.get(timeout=PATIENCE) == 2
            shared.wait_until_free(key)
        nothing_was_refused(shared, key, 10)

    def test_a_child_whose_parent_ends(self, shared: Shared, key: str) -> None:
        for _ in range(5):
            child = shared.tasks.app.AsyncResult(shared.tasks.publish_and_go.delay(key).get(timeout=PATIENCE))
            assert child.get(timeout=PATIENCE) == 1
            shared.wait_until_free(key)
        nothing_was_refused(shared, key, 10)

    def test_the_body_of_a_chord_with_its_last_member(self, shared: Shared, key: str) -> None:
        for number in range(5):
            other, gate = f"{key}-other", f"{key}-{number}"
            result = chord([shared.tasks.link.s(0, other), shared.tasks.gated.s(key, gate)])(shared.tasks.body.s(key))
            first = result.parent.children[0]
            assert first.get(timeout=PATIENCE) == 1
            shared.open_gate(gate)
            assert result.get(timeout=PATIENCE) == [1, key]
            shared.wait_until_free(key, other)
        nothing_was_refused(shared, key, 10)

    def test_errbacks_of_both_styles(self, shared: Shared) -> None:
        tasks = shared.tasks
        before = len(shared.journal.entries("broken"))
        for number in range(1, 6):
            result = tasks.break_down_with_errbacks.apply_async(
                link_error=[tasks.errback_old.s(), tasks.errback_new.s()]
            )
            with pytest.raises(ValueError, match="on purpose"):
                result.get(timeout=PATIENCE)
            shared.journal.wait_for("errback", style="new", id=result.id)
            shared.journal.wait_for("errback", style="old", id=result.id)
            broken = shared.journal.entries("broken")[before:]
            (new,) = shared.journal.entries("errback", style="new", id=result.id)
            # Celery calls it within the run that failed: it runs under that run's lock.
            assert len(broken) == number
            assert new["owner"] == broken[-1]["owner"]
            shared.wait_until_free("shared-errback")
        assert shared.journal.entries("contended", key="shared-errback") == []


class TestAChildOfARunningBody:
    """It has the parent id of a next link, and its parent may go on for hours."""

    def test_it_waits_in_place_for_a_bounded_time_and_then_follows_its_policy(self, two: Shared, key: str) -> None:
        parent = two.tasks.publish_and_stay.delay(key)
        (published,) = two.journal.wait_for("published", key=key)
        child = two.tasks.app.AsyncResult(published["child"])
        with pytest.raises(LockContended) as caught:
            child.get(timeout=PATIENCE)
        assert caught.value.holder is not None
        assert caught.value.holder["id"] == parent.id
        (contended,) = two.journal.entries("contended", id=child.id)
        assert contended["t"] - published["began"] >= PREDECESSOR_PATIENCE
        assert contended["t"] - published["t"] < PREDECESSOR_PATIENCE + 1.0
        assert not parent.ready()
        two.open_gate(key)
        assert parent.get(timeout=PATIENCE) == child.id

    def test_it_is_granted_the_lock_if_the_parent_ends_meanwhile(self, two: Shared, key: str) -> None:
        parent = two.tasks.publish_and_stay.delay(key)
        (published,) = two.journal.wait_for("published", key=key)
        child = two.tasks.app.AsyncResult(published["child"])
        two.worker.wait_for_log(rf"link\[{child.id}\] received")
        two.open_gate(key)
        assert child.get(timeout=PATIENCE) == 1
        assert parent.get(timeout=PATIENCE) == child.id
        nothing_was_refused(two, key, 2)

    def test_it_waits_so_once_only(self, two: Shared, key: str) -> None:
        parent = two.tasks.publish_and_stay.delay(key, "retries_once")
        (published,) = two.journal.wait_for("published", key=key)
        child = two.tasks.app.AsyncResult(published["child"])
        with pytest.raises(LockContended):
            child.get(timeout=PATIENCE)
        first, second = two.journal.entries("contended", id=child.id)
        assert first["t"] - published["began"] >= PREDECESSOR_PATIENCE
        # How long the second try was on its way to a process is another matter.
        _, asked_again = two.journal.entries("asking", key=key)
        assert second["t"] - asked_again["t"] < PREDECESSOR_PATIENCE / 2
        two.open_gate(key)
        parent.get(timeout=PATIENCE)

    def test_siblings_are_no_predecessors_of_each_other(self, two: Shared, key: str) -> None:
        children = two.tasks.publish_group.delay(key).get(timeout=PATIENCE)
        (contended,) = two.journal.wait_for("contended", key=key)
        assert contended["holder"] in children
        assert {contended["id"], contended["holder"]} == set(children)
        two.open_gate(key)
        granted, refused = (two.tasks.app.AsyncResult(contended[name]) for name in ("holder", "id"))
        # Celery 5.5 tells the end of a task to the first object that stands for it: here, that of the parent's result.
        eventually(lambda: granted.ready() and refused.ready(), PATIENCE, "the ends of both")
        assert granted.get() == 0
        with pytest.raises(LockContended):
            refused.get()


class TestTheSameExecutionStack:
    """Nested calls on the key that the running code holds already run under its lock, in a worker's process."""

    @pytest.mark.parametrize("how", ["call", "apply"])
    def test_a_nested_call_runs_under_the_outer_lock(self, two: Shared, key: str, how: str) -> None:
        told = two.tasks.nest.delay(key, how).get(timeout=PATIENCE)
        assert told["inner"] == told["outer"]
        assert told["outer"][0] == key
        assert told["outer"][2] is True
        assert two.journal.entries("contended", key=key) == []
        two.wait_until_free(key)

    def test_a_task_that_calls_itself_holds_its_lock_until_the_outermost_call_ends(self, two: Shared, key: str) -> None:
        told = two.tasks.nest.delay(key, "itself").get(timeout=PATIENCE)
        assert told["inner"]["outer"] == told["inner"]["inner"] == told["outer"]
        two.wait_until_free(key)

    def test_another_key_is_another_lock_and_is_released_at_once(self, two: Shared, key: str) -> None:
        told = two.tasks.nest.delay(key, "other").get(timeout=PATIENCE)
        assert told["inner"][0] == f"{key}-other"
        assert told["inner"][1] != told["outer"][1]
        assert told["outer"][2] is True
        two.wait_until_free(key, f"{key}-other")


def test_members_of_a_group_are_refused_by_each_other(two: Shared, key: str) -> None:
    """The guard against the tests above: on this worker, the policy does fail whoever meets a stranger's lock."""
    result = group(two.tasks.gated.s(key), two.tasks.gated.s(key)).apply_async()
    two.journal.wait_for("contended", key=key)
    two.open_gate(key)
    outcomes = [member.get(timeout=PATIENCE, propagate=False) for member in result.children]
    assert key in outcomes
    assert any(isinstance(outcome, LockContended) for outcome in outcomes)
