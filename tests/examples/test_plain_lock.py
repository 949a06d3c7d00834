"""The example ``plain_lock``."""

from __future__ import annotations

from tests.examples.conftest import RunExample


def test_thread_b_starts_when_a_is_done(run_example: RunExample) -> None:
    log = [line.split("  ", 1)[1].strip() for line in run_example("plain_lock", "1.0").splitlines()]
    assert log[:7] == [
        "A wants the lock",
        "A starts",
        "is the lock taken? yes",
        "B wants the lock",
        "A is done",
        "B starts",
        "B is done",
    ]


def test_a_locked_function_asks_again_and_gives_up_after_its_retries(run_example: RunExample) -> None:
    log = run_example("plain_lock", "1.0")
    events = [line.split("  ", 1)[1].strip() for line in log.splitlines()]
    assert events.index("the auditor gives checking back") < events.index("transfer of 20 from checking")
    assert "transfer of 40 from savings" in events
    assert "transfer of 30 from checking" not in events
    assert "no transfer of 30: lock 'example:account:checking' is held by 'the auditor'" in log
