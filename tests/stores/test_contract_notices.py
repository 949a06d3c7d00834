"""The contract is not vacuous: each deliberate mistake makes the test that is named beside it fail."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from celery_distlock.stores.memory import MemoryStore
from celery_distlock.testing import StoreContract
from tests.stores import broken_stores as broken

pytest_plugins = ["pytester"]

MISTAKES: list[tuple[type, str]] = [
    (broken.ReleasesForAnybody, "test_release_by_another_owner_changes_nothing"),
    (broken.ReleasesForAnybody, "test_release_after_a_takeover_leaves_the_new_holder_alone"),
    (broken.ContendsWithItself, "test_asking_again_returns_the_same_lease_with_the_same_fence"),
    (broken.ContendsWithItself, "test_an_expired_owner_who_asks_again_while_nobody_came_is_granted"),
    (broken.GrantsAnewWhenAskedAgain, "test_asking_again_returns_the_same_lease_with_the_same_fence"),
    (broken.GrantsAnewWhenAskedAgain, "test_asking_again_when_all_places_are_taken_is_still_granted"),
    (broken.AnswersButDoesNotExtendWhenAskedAgain, "test_asking_again_starts_the_time_anew"),
    (broken.HasOneFenceForAll, "test_fences_grow_from_grant_to_grant"),
    (broken.HasOneFenceForAll, "test_a_takeover_has_a_greater_fence"),
    (broken.HasOneFenceForAll, "test_holders_of_one_key_have_different_fences"),
    (broken.ReCreatesWhatWasReleased, "test_a_released_lease_is_gone_and_never_re_created"),
    (broken.ReCreatesWhatWasReleased, "test_an_owner_who_was_never_granted_the_key_is_gone"),
    (broken.KnowsNoLimit, "test_as_many_as_the_limit_may_hold_a_key_and_no_more"),
    (broken.KnowsNoLimit, "test_as_many_threads_as_the_limit_get_the_key"),
    (broken.GrantsOneTooMany, "test_as_many_as_the_limit_may_hold_a_key_and_no_more"),
    (broken.GrantsOneTooMany, "test_one_released_place_lets_one_in"),
    (broken.ForgetsTombstones, "test_a_lease_whose_place_was_given_away_is_lost"),
    (broken.TellsOfALossOnlyWhileTheKeyIsHeld, "test_a_lost_lease_stays_lost_after_the_new_holder_is_done"),
    (broken.SaysLostForEveryOtherHolder, "test_a_released_lease_is_gone_although_somebody_else_holds_the_key_now"),
    (broken.IgnoresCompletions, "test_a_completed_run_is_told_so"),
    (broken.KeepsCompletionsForEver, "test_a_completion_vanishes_with_its_ttl"),
    (broken.RecordsOnlyWhatItReleased, "test_a_completion_is_recorded_although_the_lease_was_lost_meanwhile"),
    (broken.ForgetsEveryCompletionOfTheKey, "test_a_forgotten_completion_is_granted"),
    (broken.NeverForgets, "test_a_forgotten_completion_is_granted"),
    (broken.AsksForTheLockBeforeTheCompletion, "test_a_completed_run_is_told_so_although_somebody_holds_the_key"),
    (broken.DropsHoldersWhenTheyExpire, "test_an_expired_lease_is_held_again_when_nobody_came"),
    (broken.DropsHoldersWhenTheyExpire, "test_an_expired_holder_stays_listed_until_it_is_replaced"),
    (broken.ReplacesEveryExpiredHolder, "test_an_expired_holder_keeps_its_place_while_another_one_is_free"),
    (broken.ReplacesEveryExpiredHolder, "test_one_newcomer_replaces_one_expired_holder"),
    (broken.NeverExpires, "test_a_silent_holders_key_is_granted_after_its_deadline_and_within_ttl_and_slack"),
    (broken.NeverExpires, "test_only_the_expired_one_of_several_holders_is_replaced"),
    (broken.ExpiresTooSoon, "test_a_silent_holders_key_is_granted_after_its_deadline_and_within_ttl_and_slack"),
    (broken.RenewsEverythingWithTheFirstTtl, "test_each_lease_is_renewed_for_its_own_ttl"),
    (broken.RenewsWithoutExtending, "test_a_renewed_lease_is_held_beyond_its_first_ttl"),
    (broken.BarsNobody, "test_an_unknown_lease_that_was_released_is_never_granted_later"),
    (broken.BarsNobody, "test_an_unknown_lease_that_was_granted_is_given_back_and_barred"),
    (broken.BarsEverybody, "test_an_ordinary_release_bars_nobody"),
    (broken.BarsWithoutReleasing, "test_an_unknown_lease_that_was_granted_is_given_back_and_barred"),
    (broken.AnswersInAnyOrder, "test_renewals_are_answered_in_order"),
    (broken.AnswersInAnyOrder, "test_a_lease_named_twice_in_one_release_is_released_once"),
    (broken.AlwaysSaysReleased, "test_releasing_twice_answers_false_the_second_time"),
    (broken.TakesPrefixesForPatterns, "test_a_prefix_is_text_and_no_pattern"),
    (broken.NamesNoHolder, "test_contention_names_the_holder"),
    (broken.ListsTheYoungestFirst, "test_holders_of_one_key_are_listed_oldest_first"),
    (
        broken.CountsTheDeadlineFromTheAnswer,
        "test_a_lease_is_believed_for_its_ttl_less_the_drift_from_before_the_request",
    ),
    (broken.ChecksAndThenActs, "test_one_of_many_threads_gets_the_key"),
    (broken.ChecksAndThenActs, "test_a_takeover_happens_once"),
]

# Time is skipped instead of waited for.
BASE = """
import time
import uuid
import pytest
from celery_distlock.testing import StoreContract
from tests.stores import broken_stores as broken

class Clock:
    skipped = 0.0

    def __call__(self):
        return time.monotonic() + self.skipped

class Contract(StoreContract):
    @pytest.fixture
    def store(self):
        self.clock = Clock()
        store = self.store_class(str(uuid.uuid4()), clock=self.clock)
        yield store
        store.drop()

    def wait(self, seconds):
        self.clock.skipped += seconds
"""

RUN = """
class Test{name}(Contract):
    store_class = broken.{name}
"""


def run(pytester: pytest.Pytester, store_names: set[str], tests: Iterable[str] = ()) -> tuple[list[str], list[str]]:
    """Run the contract on these stores, or some of its tests; return the names of those that passed and failed."""
    file = pytester.makepyfile(BASE + "".join(RUN.format(name=name) for name in sorted(store_names)))
    reports = pytester.inline_run("-p", "no:celery", *[f"{file}::{test}" for test in tests]).listoutcomes()
    passed, skipped, failed = [[report.nodeid.partition("::")[2] for report in group] for group in reports]
    assert skipped == []
    return passed, failed


def test_a_store_without_a_mistake_passes(pytester: pytest.Pytester) -> None:
    passed, failed = run(pytester, {"MemoryStore"})
    assert failed == []
    assert len(passed) >= len([name for name in vars(StoreContract) if name.startswith("test_")])


def test_each_mistake_is_noticed_by_the_test_named_beside_it(pytester: pytest.Pytester) -> None:
    wanted = {f"Test{store.__name__}::{test}" for store, test in MISTAKES}
    _, failed = run(pytester, {store.__name__ for store, _ in MISTAKES}, sorted(wanted))
    assert wanted - {name.partition("[")[0] for name in failed} == set()


def test_each_broken_store_is_used() -> None:
    classes = {value for value in vars(broken).values() if isinstance(value, type)}
    mistakes = {cls for cls in classes if issubclass(cls, MemoryStore)} - {MemoryStore}
    assert mistakes == {store for store, _ in MISTAKES}
