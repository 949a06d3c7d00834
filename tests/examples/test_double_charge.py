"""The example ``double_charge``: one test for each accident."""

from __future__ import annotations

import re
from typing import NamedTuple

from tests.examples.conftest import RunExample


class Charges(NamedTuple):
    """What the example printed about one accident."""

    orders: int
    unlocked: int
    locked: int


def charges(output: str) -> Charges:
    found = re.search(r"orders (\d+), charges without a lock (\d+), with a lock (\d+)$", output, re.MULTILINE)
    assert found is not None, output
    return Charges(*map(int, found.groups()))


def test_customers_who_click_twice_are_charged_once(run_example: RunExample) -> None:
    seen = charges(run_example("double_charge", "clicked_twice"))
    assert seen.locked == seen.orders == 4
    assert seen.unlocked > seen.orders


def test_a_message_that_is_delivered_again_while_it_runs_charges_once(run_example: RunExample) -> None:
    assert charges(run_example("double_charge", "delivered_again")) == (1, 2, 1)


def test_a_charge_whose_process_is_killed_is_made_once_by_the_next(run_example: RunExample) -> None:
    output = run_example("double_charge", "child_killed")
    assert charges(output) == (3, 3, 3)
    (free,) = re.findall(r"the key was free (.*) after the kill", output)
    # Far below the lease's 30 s.
    assert all(int(each.removesuffix(" ms")) < 5000 for each in free.split(", ")), output


def test_a_charge_whose_worker_is_killed_before_it_acknowledges_is_not_made_again(run_example: RunExample) -> None:
    assert charges(run_example("double_charge", "worker_killed")) == (1, 2, 1)
