"""Every way in which a Celery app is configured, with real apps."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from celery_distlock.errors import LockConfigError
from celery_distlock.options import conf_options, merge, store_settings

URL = "redis://locks.example:6379/3"


@pytest.fixture(autouse=True)
def _no_celery_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BROKER_URL", "BROKER_READ_URL", "BROKER_WRITE_URL", "RESULT_BACKEND", "CONFIG_MODULE"):
        monkeypatch.delenv(f"CELERY_{name}", raising=False)


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("proj", set_as_current=False)
    yield app
    app.close()


def refusal(conf: Any) -> str:
    with pytest.raises(LockConfigError) as caught:
        conf_options(conf)
    return str(caught.value)


def test_an_app_without_settings_has_the_defaults(app: Celery) -> None:
    assert conf_options(app.conf) == {}


def test_settings_given_as_attributes(app: Celery) -> None:
    app.conf.distlock_ttl = 7
    app.conf.distlock_url = URL
    assert conf_options(app.conf) == {"ttl": 7.0}
    assert store_settings(app.conf).url == URL


def test_settings_given_by_update_and_by_item(app: Celery) -> None:
    app.conf.update(distlock_ttl=7, distlock_on_contention="skip")
    app.conf["distlock_limit"] = 3
    assert conf_options(app.conf) == {"ttl": 7.0, "on_contention": "skip", "limit": 3}


def test_settings_given_after_the_configuration_was_read(app: Celery) -> None:
    assert conf_options(app.conf) == {}
    app.conf.distlock_ttl = 7
    app.conf.update(distlock_limit=2)
    assert conf_options(app.conf) == {"ttl": 7.0, "limit": 2}


def test_settings_given_to_the_app_itself() -> None:
    with Celery("proj", set_as_current=False, changes={"distlock_ttl": 7}) as app:
        assert conf_options(app.conf) == {"ttl": 7.0}


def test_settings_given_as_defaults(app: Celery) -> None:
    app.add_defaults({"distlock_ttl": 7, "distlock_limit": 2})
    app.conf.distlock_limit = 3
    assert conf_options(app.conf) == {"ttl": 7.0, "limit": 3}


class LowerCase:
    distlock_url = URL
    distlock_ttl = 7
    distlock_store_options = {"socket_timeout": 2.0}  # noqa: RUF012 - as users write it
    broker_url = "memory://"


def test_settings_of_an_object_with_lower_case_names(app: Celery) -> None:
    app.config_from_object(LowerCase)
    assert conf_options(app.conf) == {"ttl": 7.0}
    assert store_settings(app.conf).options == {"socket_timeout": 2.0}


def test_settings_of_a_mapping(app: Celery) -> None:
    app.config_from_object({"distlock_ttl": 7})
    assert conf_options(app.conf) == {"ttl": 7.0}


def test_settings_of_a_module_which_may_import_what_it_likes(
    app: Celery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.joinpath("distlock_helpers_for_test.py").write_text("def distlock_help(): ...\n")
    tmp_path.joinpath("distlock_config_for_test.py").write_text(
        "import distlock_helpers_for_test\n"
        "from distlock_helpers_for_test import distlock_help\n"
        "import celery_distlock\n"
        "DISTLOCK_URL = 'redis://one/1'\n"
        "distlock_url = DISTLOCK_URL\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    app.config_from_object("distlock_config_for_test")
    assert conf_options(app.conf) == {}
    assert store_settings(app.conf).url == "redis://one/1"


def test_settings_of_a_module_named_by_the_environment(
    app: Celery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.joinpath("distlock_envvar_for_test.py").write_text("distlock_ttl = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PROJ_CONFIG", "distlock_envvar_for_test")
    app.config_from_envvar("PROJ_CONFIG")
    assert conf_options(app.conf) == {"ttl": 7.0}


class Django:
    """As ``django.conf.settings``: upper case, with much that is not Celery's."""

    INSTALLED_APPS = ("shop",)
    TIME_ZONE = "Europe/Berlin"
    CELERY_BROKER_URL = "memory://"
    CELERY_TASK_ACKS_LATE = True
    CELERY_DISTLOCK_URL = URL
    CELERY_DISTLOCK_TTL = 7
    CELERY_DISTLOCK_ON_CONTENTION = "skip"
    CELERY_DISTLOCK_PREFIX = "shop"
    CELERY_DISTLOCK_MAX_PARK = 60


def check_django(app: Celery) -> None:
    assert conf_options(app.conf) == {"ttl": 7.0, "on_contention": "skip"}
    store = store_settings(app.conf)
    assert (store.url, store.prefix, store.max_park) == (URL, "shop", 60.0)


def test_settings_of_an_object_with_a_namespace(app: Celery) -> None:
    app.config_from_object(Django, namespace="CELERY")
    check_django(app)


def test_settings_of_django_named_by_a_string(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("distlock_django_conf")
    module.settings = Django()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "distlock_django_conf", module)
    app.config_from_object("distlock_django_conf:settings", namespace="CELERY")
    check_django(app)


def test_the_store_may_be_asked_for_first_when_there_is_a_namespace(app: Celery) -> None:
    # Celery learns its namespace only when it reads the configuration, which the first look at a setting causes.
    app.config_from_object(Django, namespace="CELERY")
    assert store_settings(app.conf).url == URL


@pytest.mark.parametrize("namespace", ["LOCAL", "CELERY_", "celery"])
def test_any_namespace_that_celery_accepts(app: Celery, namespace: str) -> None:
    name = f"{namespace.rstrip('_')}_distlock_ttl"
    name = name.upper() if namespace.isupper() else name
    app.config_from_object(SimpleNamespace(**{name: 7}), namespace=namespace)
    assert conf_options(app.conf) == {"ttl": 7.0}


def test_a_setting_with_its_namespace_on_the_app_wins_over_the_object(app: Celery) -> None:
    app.config_from_object(Django, namespace="CELERY")
    app.conf.CELERY_DISTLOCK_TTL = 9
    assert conf_options(app.conf)["ttl"] == 9.0


def test_a_setting_given_twice_is_taken_from_where_celery_takes_its_own(app: Celery) -> None:
    # Since Celery 5.7 a bare name on the app wins over a name with the namespace in the object; before, it loses.
    app.config_from_object(Django, namespace="CELERY")
    app.conf.update(distlock_ttl=9, task_acks_late=False)
    ours = conf_options(app.conf)["ttl"]
    assert ours == (7.0 if app.conf.task_acks_late else 9.0)


def test_errors_repeat_the_name_with_its_namespace(app: Celery) -> None:
    app.config_from_object(SimpleNamespace(CELERY_DISTLOCK_TTL="7"), namespace="CELERY")
    assert refusal(app.conf).startswith("app configuration: CELERY_DISTLOCK_TTL='7' is refused")


def test_a_contradiction_repeats_the_name_with_its_namespace(app: Celery) -> None:
    app.config_from_object(SimpleNamespace(CELERY_DISTLOCK_RETRY_DELAY=90), namespace="CELERY")
    with pytest.raises(LockConfigError, match=r"CELERY_DISTLOCK_RETRY_DELAY=90\.0 \(app configuration\)"):
        merge(conf_options(app.conf))


def test_without_a_store_the_error_names_the_setting_with_its_namespace(app: Celery) -> None:
    app.config_from_object(SimpleNamespace(CELERY_BROKER_URL="memory://"), namespace="CELERY")
    with pytest.raises(LockConfigError, match="CELERY_DISTLOCK_URL is not set"):
        store_settings(app.conf)


# --- names that nothing would read ------------------------------------------------------------------------------


def test_a_misspelt_setting_is_refused(app: Celery) -> None:
    app.conf.distlock_tll = 7
    assert "there is no option distlock_tll; did you mean 'distlock_ttl'?" in refusal(app.conf)


def test_a_misspelt_setting_with_a_namespace_is_refused(app: Celery) -> None:
    app.config_from_object(SimpleNamespace(CELERY_DISTLOCK_TLL=7), namespace="CELERY")
    assert "there is no option CELERY_DISTLOCK_TLL; did you mean 'distlock_ttl'?" in refusal(app.conf)


@pytest.mark.parametrize("name", ["DISTLOCK_TTL", "CELERY_DISTLOCK_TTL", "celery_distlock_ttl"])
def test_upper_case_without_a_namespace_is_refused_because_celery_would_not_find_it(app: Celery, name: str) -> None:
    app.config_from_object(SimpleNamespace(**{name: 7}))
    assert app.conf.get("distlock_ttl") is None
    message = refusal(app.conf)
    assert f"{name} would not be read; allowed: distlock_ttl, or CELERY_DISTLOCK_TTL with namespace='CELERY'" in message


@pytest.mark.parametrize("name", ["DISTLOCK_TTL", "CELERY_distlock_ttl"])
def test_a_name_outside_of_the_namespace_is_refused(app: Celery, name: str) -> None:
    app.config_from_object(SimpleNamespace(**{name: 7}), namespace="CELERY")
    assert app.conf.get("distlock_ttl") is None
    assert f"{name} would not be read; allowed: CELERY_DISTLOCK_TTL" in refusal(app.conf)


def test_a_constant_of_the_users_own_that_only_looks_like_a_setting_is_left_alone(app: Celery) -> None:
    app.config_from_object(
        SimpleNamespace(DISTLOCK_URL=URL, DISTLOCK_SERVER="a", CELERY_DISTLOCK_URL=URL), namespace="CELERY"
    )
    assert conf_options(app.conf) == {}
    assert store_settings(app.conf).url == URL


# --- where the locks live ---------------------------------------------------------------------------------------


def test_the_result_backend_given_to_the_app_is_the_store() -> None:
    with Celery("proj", broker="redis://b/1", backend="redis://a/1", set_as_current=False) as app:
        assert store_settings(app.conf).url == "redis://a/1"


def test_the_broker_given_to_the_app_is_the_store() -> None:
    with Celery("proj", broker="redis://b/1", set_as_current=False) as app:
        assert store_settings(app.conf).url == "redis://b/1"


def test_the_environment_overrides_broker_and_result_backend(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    app.conf.update(broker_url="redis://b/1", result_backend="redis://a/1")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "rpc://")
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://environment/1")
    assert app.conf.broker_url == "redis://environment/1"
    assert store_settings(app.conf).url == "redis://environment/1"


def test_reading_and_writing_apart_the_lock_belongs_to_where_is_written(app: Celery) -> None:
    app.conf.update(broker_url="redis://b/1", broker_read_url="redis://r/1", broker_write_url="redis://w/1")
    assert store_settings(app.conf).url == "redis://w/1"


def test_old_upper_case_celery_settings_are_understood_as_celery_does(app: Celery) -> None:
    app.config_from_object(SimpleNamespace(BROKER_URL="redis://b/1", CELERY_RESULT_BACKEND="redis://a/1"))
    assert store_settings(app.conf).url == "redis://a/1"


def test_tls_and_completing_settings_of_an_app_are_seen_with_a_namespace(app: Celery) -> None:
    app.config_from_object(
        SimpleNamespace(
            CELERY_RESULT_BACKEND="redis://a:1/1", CELERY_REDIS_BACKEND_USE_SSL={"ssl_cert_reqs": "CERT_NONE"}
        ),
        namespace="CELERY",
    )
    store = store_settings(app.conf)
    assert (store.url, store.options) == ("rediss://a:1/1", {"ssl_cert_reqs": "none"})


def test_celerys_default_broker_is_no_store(app: Celery) -> None:
    with pytest.raises(LockConfigError, match=r"result backend: not set; broker: not set"):
        store_settings(app.conf)
