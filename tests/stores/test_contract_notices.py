"""The contract is not vacuous: each deliberate mistake makes the test that is named beside it fail."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from celery_distlock.stores.memory import MemoryStore
from celery_distlock.testing import QueueingContract, StoreContract, queueing
from tests.stores import broken_queues as queues
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
    (queues.ServesTheLastFirst, "test_waiters_are_served_first_in_first_out"),
    (queues.ServesTheLastFirst, "test_tickets_grow_in_order_of_arrival_and_count_who_is_ahead"),
    (queues.ServesTheLastFirst, "test_a_thousand_waiters_are_served_in_order"),
    (queues.KnowsNoTickets, "test_who_declined_an_offer_keeps_its_ticket"),
    (queues.KnowsNoTickets, "test_a_ticket_may_be_used_by_another_owner"),
    (queues.GivesTheSameNumberTwice, "test_threads_that_enqueue_at_once_get_one_lease_and_a_place_each"),
    (queues.OffersOneTooMany, "test_who_enqueues_for_a_held_key_gets_a_ticket"),
    (queues.OffersOneTooMany, "test_each_place_of_several_is_offered_to_the_next_waiter"),
    (queues.KnowsNoLimitInTheLine, "test_several_places_that_become_free_at_once_are_all_offered"),
    (queues.KnowsNoLimitInTheLine, "test_a_larger_limit_takes_effect_at_once"),
    (queues.LetsLargerLimitsOvertake, "test_a_newcomer_with_a_larger_limit_does_not_overtake"),
    (queues.LetsLargerLimitsOvertake, "test_who_stands_behind_a_smaller_limit_waits_too"),
    (queues.IgnoresCompletionsInTheLine, "test_who_enqueues_a_completed_run_is_told_so"),
    (queues.IgnoresCompletionsInTheLine, "test_a_copy_that_is_offered_the_place_of_its_completed_original_is_told_so"),
    (queues.GivesNewPlacesWhenAskedAgain, "test_enqueueing_again_keeps_the_place"),
    (queues.ContendsWithItsOwnOffer, "test_who_was_offered_the_key_may_just_as_well_ask_for_it"),
    (queues.ContendsWithItsOwnOffer, "test_who_was_offered_the_key_may_ask_for_it_in_another_process"),
    (queues.ContendsWithItsOwnLease, "test_who_was_granted_the_key_may_ask_for_it_in_another_process"),
    (queues.GivesNumbersUnasked, "test_a_number_that_was_drawn_is_a_place_once_it_is_enqueued_with"),
    (queues.LetsNewcomersOvertake, "test_a_newcomer_does_not_overtake_who_was_offered_the_key"),
    (queues.LetsNewcomersOvertake, "test_a_newcomer_does_not_overtake_who_waits"),
    (queues.LetsNewcomersReplaceDeadHolders, "test_a_newcomer_does_not_overtake_who_waits_for_an_expired_holder"),
    (queues.ForgetsNobody, "test_a_silent_waiter_loses_its_place"),
    (queues.ForgetsNobody, "test_an_unanswered_offer_passes_on_to_the_next"),
    (queues.ForgetsNobody, "test_a_dead_waiter_in_front_costs_the_claim_ttl_at_most"),
    (queues.ForgetsNobody, "test_an_offer_that_has_ended_cannot_be_confirmed"),
    (queues.ForgetsNobody, "test_silent_waiters_are_in_nobodys_way"),
    (queues.ForgetsNobody, "test_an_offer_ends_at_its_deadline_and_no_later"),
    (queues.ForgetsTooSoon, "test_a_silent_waiter_loses_its_place"),
    (queues.ForgetsTooSoon, "test_an_unanswered_offer_passes_on_to_the_next"),
    (queues.DoesNotKeepPlaces, "test_polling_keeps_places"),
    (queues.ExtendsOffersWhenPolled, "test_polling_does_not_extend_an_offer"),
    (queues.GivesNewNumbersToWhoComesBack, "test_who_was_taken_for_gone_stands_in_its_old_place_when_it_polls_again"),
    (queues.GivesNewNumbersToWhoComesBack, "test_who_let_an_offer_pass_stands_in_its_old_place_when_it_polls_again"),
    (queues.NeverLetsAnybodyComeBack, "test_who_was_taken_for_gone_stands_in_its_old_place_when_it_polls_again"),
    (queues.LetsDeadHoldersBlockTheLine, "test_a_dead_holder_s_key_is_offered_to_the_first_waiter"),
    (queues.LetsWaitersReplaceTheLiving, "test_a_holder_that_renews_is_not_replaced_by_a_waiter"),
    (queues.AnswersPollsInAnyOrder, "test_waiters_of_many_keys_are_polled_at_once_and_answered_in_order"),
    (queues.AnswersPollsInAnyOrder, "test_different_keys_have_different_lines"),
    (queues.ForgetsTheListenerOfWhoComesBack, "test_who_is_entered_again_by_a_poll_is_given_hints"),
    (queues.SaysThatNobodyIsAhead, "test_a_released_key_is_offered_to_the_first_waiter_only"),
    (queues.ConfirmsAnything, "test_who_was_offered_nothing_can_confirm_nothing"),
    (queues.ConfirmsForTheTimeOfTheOffer, "test_a_confirmed_offer_is_a_lease_with_the_claims_ttl"),
    (queues.LeavesConfirmedOffersOnOffer, "test_a_confirmed_offer_is_a_lease_with_the_claims_ttl"),
    (queues.ConfirmsOnce, "test_confirming_twice_returns_the_same_lease"),
    (queues.WithdrawsLeases, "test_withdrawing_leaves_leases_alone"),
    (queues.WithdrawsTheWholeLine, "test_a_declined_offer_passes_on_at_once"),
    (queues.KeepsWhatWasDeclined, "test_a_declined_offer_passes_on_at_once"),
    (queues.WithdrawsNobody, "test_who_withdraws_is_not_offered_the_key"),
    (queues.WithdrawsNobody, "test_nothing_is_listed_after_much_waiting"),
    (queues.LeavesTheUnknownInTheLine, "test_releasing_an_unknown_lease_takes_its_owner_out_of_the_line_for_good"),
    (queues.ListsWaitersAsHolders, "test_waiters_are_no_holders"),
    (queues.HidesWhatIsOnOffer, "test_an_offered_place_is_listed_as_offered"),
    (queues.GivesNoHints, "test_a_release_gives_the_waiter_s_listener_a_hint"),
    (queues.GivesHintsOfReleasesOnly, "test_everything_that_frees_a_place_gives_a_hint"),
    (queues.TellsEveryListener, "test_each_listener_hears_of_its_own_waiters"),
    (queues.HearsOnAfterItIsClosed, "test_a_lost_hint_costs_nothing_but_the_time_until_the_next_poll"),
    (queues.HearsOnAfterItIsClosed, "test_a_listener_can_be_closed_twice"),
]

# Time is skipped instead of waited for.
BASE = """
import time
import uuid
import pytest
from celery_distlock.testing import QueueingContract, StoreContract
from tests.stores import broken_queues as queues
from tests.stores import broken_stores as broken

class Clock:
    skipped = 0.0

    def __call__(self):
        return time.monotonic() + self.skipped

class Contract(QueueingContract):
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
    store_class = getattr(queues, "{name}", None) or broken.{name}
    ttl = {ttl}
"""
#: Seconds of which a tenth is noticed by a busy machine, too.
TTLS = {"ExpiresTooSoon": 6.0}


def _class_of(name: str) -> str:
    return RUN.format(name=name, ttl=TTLS.get(name, StoreContract.ttl))


def run(pytester: pytest.Pytester, store_names: set[str], tests: Iterable[str] = ()) -> tuple[list[str], list[str]]:
    """Run the contract on these stores, or some of its tests; return the names of those that passed and failed."""
    file = pytester.makepyfile(BASE + "".join(_class_of(name) for name in sorted(store_names)))
    reports = pytester.inline_run("-p", "no:celery", "--tb=no", *[f"{file}::{test}" for test in tests]).listoutcomes()
    passed, skipped, failed = [[report.nodeid.partition("::")[2] for report in group] for group in reports]
    assert skipped == []
    return passed, failed


def test_a_store_without_a_mistake_passes(pytester: pytest.Pytester) -> None:
    passed, failed = run(pytester, {"MemoryStore"})
    assert failed == []
    behaviours = {**vars(StoreContract), **vars(QueueingContract)}
    assert len(passed) >= len([name for name in behaviours if name.startswith("test_")])


def test_each_mistake_is_noticed_by_the_test_named_beside_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Hints that never come are waited for in vain.
    monkeypatch.setattr(queueing, "HINT_PATIENCE", 0.2)
    wanted = {f"Test{store.__name__}::{test}" for store, test in MISTAKES}
    _, failed = run(pytester, {store.__name__ for store, _ in MISTAKES}, sorted(wanted))
    assert wanted - {name.partition("[")[0] for name in failed} == set()


def test_each_broken_store_is_used() -> None:
    classes = {value for module in (broken, queues) for value in vars(module).values() if isinstance(value, type)}
    mistakes = {cls for cls in classes if issubclass(cls, MemoryStore)} - {MemoryStore, queues.EnqueuesDifferently}
    assert mistakes == {store for store, _ in MISTAKES}
