"""The fixtures for users, used as a user would: in a project of its own."""

from __future__ import annotations

import textwrap
import time

import pytest

from celery_distlock.errors import LockContended
from celery_distlock.stores.memory import MemoryStore
from celery_distlock.testing import hold

pytest_plugins = ["pytester"]

CONFTEST = """
import pytest
from celery import Celery
from celery_distlock.testing import plugin

pytest_plugins = ["celery_distlock.testing.plugin"]

class Settings:
    APP_DISTLOCK_URL = "redis://127.0.0.1:1/0"
    APP_DISTLOCK_STORE_OPTIONS = {"socket_timeout": 0.5}

app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
app.config_from_object(Settings, namespace="APP")

@pytest.fixture
def distlock_app():
    return app
"""


def passes(pytester: pytest.Pytester, tests: str, count: int, conftest: str = CONFTEST) -> None:
    pytester.makeconftest(conftest)
    pytester.makepyfile(textwrap.dedent(tests))
    pytester.runpytest_inprocess("-p", "no:celery", "-p", "no:cacheprovider").assert_outcomes(passed=count)


def test_the_app_has_an_empty_memory_store_for_one_test_and_its_own_settings_before_and_after(
    pytester: pytest.Pytester,
) -> None:
    passes(
        pytester,
        """
        from celery_distlock.lease import Claim, Lease
        from celery_distlock.stores.of_app import forget_store, store_of

        def own(app):
            assert app.conf.distlock_url == "redis://127.0.0.1:1/0"
            assert app.conf.distlock_store_options == {"socket_timeout": 0.5}
            assert store_of(app).name.startswith("redis://")

        def test_before(distlock_app):
            own(distlock_app)

        def test_with(distlock_memory, distlock_app):
            assert store_of(distlock_app) is distlock_memory
            assert isinstance(distlock_memory.acquire(Claim("k", "me", 30.0)), Lease)

        def test_with_another(distlock_memory):
            assert distlock_memory.holders() == []

        def test_after(distlock_app):
            own(distlock_app)
            forget_store(distlock_app)
        """,
        4,
    )


def test_the_configuration_is_not_touched(pytester: pytest.Pytester) -> None:
    passes(
        pytester,
        """
        def test_with(distlock_memory, distlock_app):
            assert distlock_app.conf.distlock_url == "redis://127.0.0.1:1/0"
        """,
        1,
    )


def test_a_locked_task_meets_a_holder_of_its_key(pytester: pytest.Pytester) -> None:
    passes(
        pytester,
        """
        import pytest
        from celery_distlock.errors import LockContended
        from celery_distlock.task import LockedTask
        from conftest import app

        @app.task(base=LockedTask, lock_key="order:{order}", lock_on_contention="skip", lock_skip_result="skipped")
        def charge(order):
            return "charged"

        @app.task(base=LockedTask, lock_on_contention="fail")
        def refund(order, reason="none"):
            return "refunded"

        def test_uncontended(distlock_memory):
            assert charge.apply(args=(7,)).get() == "charged"
            assert distlock_memory.holders() == []

        def test_contended(held_lock):
            with held_lock("order:7"):
                assert charge.apply(args=(7,)).get() == "skipped"
                assert charge.apply(args=(8,)).get() == "charged"
            assert charge.apply(args=(7,)).get() == "charged"

        def test_contended_by_the_key_of_a_call(held_lock):
            with held_lock(refund, args=(7,), identifier="the test"):
                with pytest.raises(LockContended, match="the test"):
                    refund.apply(args=(7, "none")).get()
                assert refund.apply(args=(7, "broken")).get() == "refunded"
        """,
        3,
    )


def test_without_an_app_the_fixture_says_what_to_define(pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = ["celery_distlock.testing.plugin"]')
    pytester.makepyfile("def test_nothing(distlock_memory): pass")
    result = pytester.runpytest_inprocess("-p", "no:celery", "-p", "no:cacheprovider")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*define a fixture distlock_app*"])


def test_the_app_of_celerys_own_pytest_plugin_is_used(pytester: pytest.Pytester) -> None:
    passes(
        pytester,
        """
        from celery_distlock.stores.of_app import store_of

        def test_with(distlock_memory, celery_app):
            assert store_of(celery_app) is distlock_memory
        """,
        1,
        'pytest_plugins = ["celery.contrib.pytest", "celery_distlock.testing.plugin"]',
    )


def test_hold_occupies_a_key_names_itself_and_gives_it_back() -> None:
    store = MemoryStore("hold")
    with hold(store, "k", identifier="the test") as lease:
        [holder] = store.holders("k")
        assert (holder["owner"], holder["identifier"]) == (lease.owner, "the test")
        assert holder["since"] == pytest.approx(time.time(), abs=60)
        with pytest.raises(LockContended, match="the test"), hold(store, "k"):
            pass
    assert store.holders() == []
    store.drop()


def test_hold_gives_the_key_back_when_the_block_raises() -> None:
    store = MemoryStore("hold")
    with pytest.raises(KeyError), hold(store, "k"):
        raise KeyError
    assert store.holders() == []
    store.drop()
