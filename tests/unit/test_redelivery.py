"""What is said of a run that has left its completion record, when its message is delivered again."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from celery import states

from celery_distlock.task.parked import WAITING
from celery_distlock.task.redelivery import check_result


def said(state: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what is logged when the run's result is in this state."""
    backend = SimpleNamespace(get_task_meta=lambda task_id: {"status": state})
    task: Any = SimpleNamespace(name="work", ignore_result=False, backend=backend)
    with caplog.at_level(logging.WARNING):
        check_result(task, SimpleNamespace(id="8c1f"))
    return caplog.messages


@pytest.mark.parametrize("state", [states.PENDING, states.STARTED, states.RETRY, WAITING])
def test_a_result_that_nobody_will_store_any_more_is_told_of(state: str, caplog: pytest.LogCaptureFixture) -> None:
    (message,) = said(state, caplog)
    assert f"its worker died after the work was done; the result is {state}" in message


@pytest.mark.parametrize("state", sorted(states.READY_STATES))
def test_a_result_that_is_there_is_nothing_to_speak_of(state: str, caplog: pytest.LogCaptureFixture) -> None:
    assert said(state, caplog) == []
