"""What an option may be, what the errors say, and how layers are merged."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import pytest

from celery_distlock import addresses, options, rules
from celery_distlock.errors import LockConfigError
from celery_distlock.options import (
    LockOptions,
    StoreSettings,
    call_options,
    check_wait,
    conf_options,
    merge,
    store_settings,
    task_options,
)

TASK = "task proj.tasks.charge"


def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Return the message of the LockConfigError that a call must raise."""
    with pytest.raises(LockConfigError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def by_task(name: str, value: Any) -> dict[str, Any]:
    return task_options({f"lock_{name}": value}, where=TASK)


def by_conf(name: str, value: Any) -> dict[str, Any]:
    return conf_options({f"distlock_{name}": value})


def by_call(name: str, value: Any) -> dict[str, Any]:
    return call_options({name: value}, where=TASK)


PLACES = pytest.mark.parametrize("place", [by_task, by_conf, by_call], ids=["task", "app", "call"])

ALLOWED: list[tuple[str, Any, Any]] = [
    ("key", None, None),
    ("key", "order:{order_id}", "order:{order_id}"),
    ("key", ("order_id",), ("order_id",)),
    ("key", ["order_id", "shop"], ("order_id", "shop")),
    ("ttl", 60, 60.0),
    ("ttl", 0.05, 0.05),
    ("limit", 1, 1),
    ("limit", 20, 20),
    *(("on_contention", name, name) for name in ("retry", "wait", "skip", "fail")),
    ("retry_delay", 2, 2.0),
    ("retry_backoff_max", 600, 600.0),
    ("retry_jitter", False, False),
    ("timeout", None, None),
    ("timeout", 10, 10.0),
    ("skip_result", {"skipped": True}, {"skipped": True}),
    ("on_lost", "warn", "warn"),
    ("on_unsure", "abort", "abort"),
    *(("on_store_error", name, name) for name in ("retry", "fail", "run")),
    ("max_parked", 0, 0),
    ("max_parked", 65_000, 65_000),
]

#: Option, a value that it cannot have, and what the error must offer instead.
REFUSED: list[tuple[str, Any, str]] = [
    ("key", 5, "a template (str)"),
    ("key", [], "a template (str)"),
    ("key", ["order_id", 2], "parameter names"),
    ("key", {"order_id": 1}, "parameter names"),
    *(
        (name, value, "a finite number of seconds")
        for name in ("ttl", "retry_delay", "retry_backoff_max", "timeout")
        for value in (-1, 0, True, "30", math.nan, math.inf, -math.inf, 1e12, 10**400, [30])
    ),
    ("ttl", 0.049, "at least 0.05"),
    ("ttl", None, "a finite number of seconds"),
    ("timeout", "never", "None, or a finite number"),
    *(("limit", value, "an int of at least 1") for value in (0, -1, True, 1.0, "1", None)),
    *(("max_parked", value, "an int of at least 0") for value in (-1, True, 1.5, 65_001, None)),
    *(("on_contention", value, "'retry' or 'wait' or 'skip' or 'fail'") for value in ("block", "", None, ["skip"])),
    *(("retry_jitter", value, "True or False") for value in (1, 0, "yes", None)),
    ("on_lost", "continue", "'abort' or 'warn'"),
    ("on_unsure", "warn", "'continue' or 'abort'"),
    ("on_store_error", "skip", "'retry' or 'fail' or 'run'"),
]


def short(value: Any) -> str | None:
    return "a huge int" if isinstance(value, int) and value > 1e300 else None


@PLACES
@pytest.mark.parametrize(("name", "value", "stored"), ALLOWED)
def test_an_allowed_value_is_stored_in_one_form_wherever_it_is_written(
    place: Callable[[str, Any], dict[str, Any]], name: str, value: Any, stored: Any
) -> None:
    result = place(name, value)
    assert result == {name: stored}
    assert type(result[name]) is type(stored)
    assert getattr(merge(result), name) == stored


@PLACES
@pytest.mark.parametrize(("name", "value", "offer"), REFUSED, ids=short)
def test_a_refused_value_is_answered_with_option_value_and_what_is_allowed(
    place: Callable[[str, Any], dict[str, Any]], name: str, value: Any, offer: str
) -> None:
    message = refusal(place, name, value)
    start = f"{TASK}: lock_{name}="
    if place is by_conf:
        start = f"app configuration: distlock_{name}="
    elif place is by_call:
        start = f"{TASK}: lock={{{name!r}: "
    assert message.startswith(f"{start}{value!r}"[:150])
    assert offer in message


@pytest.mark.parametrize("name", ["key", "limit", "on_contention"])
def test_a_function_is_an_option_of_a_task_but_cannot_travel_with_a_call(name: str) -> None:
    def choose(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the options only keep it")

    assert by_task(name, choose) == {name: choose}
    assert by_task(name, staticmethod(choose)) == {name: choose}
    assert by_conf(name, choose) == {name: choose}
    message = refusal(by_call, name, choose)
    assert "a callable cannot travel in a message; set it on the task" in message
    assert message.startswith(f"{TASK}: lock={{{name!r}: ")


@pytest.mark.parametrize("name", ["ttl", "retry_jitter", "on_lost", "max_parked"])
def test_a_function_is_no_number_flag_or_name(name: str) -> None:
    assert "is refused; allowed:" in refusal(by_task, name, lambda: 1)


def test_no_option_set_means_the_defaults_of_the_design() -> None:
    assert merge() == LockOptions()
    assert {each.name: each.default for each in fields(LockOptions)} == {
        "key": None,
        "ttl": 30.0,
        "limit": 1,
        "on_contention": "retry",
        "retry_delay": 1.0,
        "retry_backoff_max": 60.0,
        "retry_jitter": True,
        "timeout": None,
        "skip_result": None,
        "skip_chain": "stop",
        "on_lost": "abort",
        "on_unsure": "continue",
        "on_store_error": "retry",
        "max_parked": 1000,
        "min_hold": 0.0,
        "max_hold": None,
        "hold_on_retry": False,
        "unique_while": None,
        "unique_for": None,
        "unique_key": None,
        "unique_ttl": 3600.0,
        "on_duplicate": "return",
        "beat_unique_tick": False,
    }


def test_every_default_obeys_its_own_rule() -> None:
    for each in fields(LockOptions):
        assert task_options({options.SPELLED[each.name]: each.default}, where=TASK) == {each.name: each.default}


# --- names ------------------------------------------------------------------------------------------------------


def test_an_unknown_task_option_is_refused_with_the_one_that_was_meant_and_the_list() -> None:
    message = refusal(task_options, {"lock_tll": 5}, where=TASK)
    assert message.startswith(f"{TASK}: there is no option lock_tll; did you mean 'lock_ttl'?")
    assert all(options.SPELLED[each.name] in message for each in fields(LockOptions))


def test_an_unknown_option_that_resembles_none_gets_no_guess() -> None:
    message = refusal(task_options, {"lock_zzzzqqqq": 5}, where=TASK)
    assert "there is no option lock_zzzzqqqq; allowed: " in message
    assert "did you mean" not in message


def test_methods_of_the_users_own_may_begin_with_lock() -> None:
    class Charge:
        lock_ttl = 5
        name = "proj.tasks.charge"

        def lock_report(self) -> None: ...

        @staticmethod
        def lock_static() -> None: ...

        @classmethod
        def lock_class(cls) -> None: ...

        @property
        def lock_property(self) -> None: ...

        @functools.cached_property
        def lock_cached(self) -> None: ...

    assert task_options(vars(Charge), where=TASK) == {"ttl": 5.0}


def test_a_function_given_to_a_misspelt_option_is_not_taken_for_a_method() -> None:
    def order_key(order: int) -> str:
        return f"order:{order}"

    assert "did you mean 'lock_key'?" in refusal(task_options, {"lock_kye": order_key}, where=TASK)
    assert "did you mean 'lock_key'?" in refusal(task_options, {"lock_kye": lambda order: "x"}, where=TASK)
    assert "did you mean 'lock_limit'?" in refusal(task_options, {"lock_limits": len}, where=TASK)


def test_attributes_that_do_not_begin_with_lock_are_not_ours() -> None:
    assert task_options({"lock": 1, "locked": 2, "ttl": 3, "max_retries": 4}, where=TASK) == {}


# --- calls ------------------------------------------------------------------------------------------------------


def test_a_call_may_write_the_prefix_or_leave_it_out() -> None:
    assert call_options({"lock_ttl": 5, "on_contention": "fail"}, where=TASK) == {"ttl": 5.0, "on_contention": "fail"}


def test_a_call_that_gives_an_option_in_both_spellings_is_refused() -> None:
    assert "allowed: one of the two" in refusal(call_options, {"ttl": 5, "lock_ttl": 6}, where=TASK)


@pytest.mark.parametrize("given", [None, True, 30, "ttl", [("ttl", 30)]])
def test_a_call_must_give_a_mapping(given: Any) -> None:
    assert f"{TASK}: lock={given!r} is refused; allowed: a mapping" in refusal(call_options, given, where=TASK)


@pytest.mark.parametrize("name", ["tll", "", 5, None, ("ttl",)])
def test_a_call_with_an_unknown_option_is_refused(name: Any) -> None:
    assert f"there is no option lock={{{name!r}: 1}}" in refusal(call_options, {name: 1}, where=TASK)


@pytest.mark.parametrize("value", [object(), b"bytes", {1, 2}, {("a", 1): 2}, [print]])
def test_a_call_cannot_carry_what_json_cannot(value: Any) -> None:
    message = refusal(call_options, {"skip_result": value}, where=TASK)
    assert "lock={'skip_result': " in message
    assert "cannot travel in a message" in message


def test_a_value_that_contains_itself_cannot_travel() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert "cannot travel in a message" in refusal(call_options, {"skip_result": loop}, where=TASK)


@pytest.mark.parametrize(
    "given",
    [
        {"key": ("order_id", "shop"), "ttl": 5},
        {"skip_result": {"pair": (1, 2), 3: "three"}},
        {"timeout": None, "limit": 3, "retry_jitter": False},
    ],
)
def test_the_options_of_a_call_are_the_same_before_and_after_the_wire(given: Mapping[str, Any]) -> None:
    sent = call_options(given, where=TASK)
    arrived = call_options(json.loads(json.dumps(sent)), where=TASK)
    assert arrived == sent
    assert merge(arrived) == merge(sent)


# --- layers -----------------------------------------------------------------------------------------------------


def test_a_call_overrides_the_task_and_the_task_overrides_the_app() -> None:
    merged = merge(
        conf_options({"distlock_ttl": 10, "distlock_timeout": 20, "distlock_retry_delay": 3}),
        task_options({"lock_ttl": 11, "lock_timeout": 21}, where=TASK),
        call_options({"ttl": 12}, where=TASK),
    )
    assert (merged.ttl, merged.timeout, merged.retry_delay) == (12.0, 21.0, 3.0)


def test_none_is_a_value_that_overrides() -> None:
    merged = merge(conf_options({"distlock_timeout": 20}), task_options({"lock_timeout": None}, where=TASK))
    assert merged.timeout is None


def test_contradicting_options_are_named_as_and_where_they_were_written() -> None:
    message = refusal(
        merge,
        conf_options({"distlock_retry_backoff_max": 5}),
        task_options({"lock_retry_delay": 5}, where=TASK),
        call_options({"retry_delay": 6}, where="call of proj.tasks.charge"),
    )
    assert "lock={'retry_delay': 6.0} (call of proj.tasks.charge)" in message
    assert "distlock_retry_backoff_max=5.0 (app configuration)" in message
    assert "contradict each other" in message


def test_an_option_may_contradict_a_default_which_is_then_named() -> None:
    message = refusal(merge, {"retry_delay": 61.0})
    assert "lock_retry_delay=61.0 and lock_retry_backoff_max=60.0 (the default) contradict each other" in message
    assert merge({"retry_delay": 60.0}).retry_delay == 60.0


def test_doubt_cannot_weigh_more_than_certain_loss() -> None:
    message = refusal(merge, task_options({"lock_on_unsure": "abort", "lock_on_lost": "warn"}, where=TASK))
    assert "lock_on_unsure='abort'" in message
    assert "lock_on_lost='warn'" in message


@pytest.mark.parametrize(
    ("policy", "name", "value"),
    [
        ("skip", "timeout", 5.0),
        ("fail", "timeout", 5.0),
        ("fail", "skip_result", "skipped"),
        ("retry", "skip_result", "skipped"),
        ("wait", "skip_result", "skipped"),
    ],
)
def test_an_option_that_its_own_policy_never_uses_is_refused(policy: str, name: str, value: Any) -> None:
    for message in (
        refusal(task_options, {"lock_on_contention": policy, f"lock_{name}": value}, where=TASK),
        refusal(call_options, {"on_contention": policy, name: value}, where=TASK),
    ):
        assert message.startswith(TASK)
        assert repr(policy) in message
        assert f"{name}" in message
        assert repr(value) in message
    # An app's default is for those tasks that use it.
    app = conf_options({"distlock_on_contention": policy, f"distlock_{name}": value})
    assert getattr(merge(app), name) == value


@pytest.mark.parametrize(
    ("policy", "name", "value"),
    [
        ("retry", "timeout", 5.0),
        ("wait", "timeout", 5.0),
        ("skip", "skip_result", "skipped"),
        ("skip", "timeout", None),
    ],
)
def test_an_option_that_its_policy_uses_is_accepted(policy: str, name: str, value: Any) -> None:
    given = task_options({"lock_on_contention": policy, f"lock_{name}": value}, where=TASK)
    assert given == {"on_contention": policy, name: value}


def test_wait_without_late_acknowledgement_is_refused_and_explained() -> None:
    message = refusal(check_wait, LockOptions(on_contention="wait"), False, TASK)
    assert message.startswith(f"{TASK}: lock_on_contention='wait' needs acks_late=True")
    assert "unacknowledged" in message
    assert "run again" in message


@pytest.mark.parametrize(
    ("policy", "acks_late"),
    [("wait", True), ("retry", False), ("skip", False), ("fail", False), (lambda task, contention: "wait", False)],
)
def test_late_acknowledgement_or_another_policy_passes(policy: Any, acks_late: bool) -> None:
    check_wait(LockOptions(on_contention=policy), acks_late, TASK)


# --- the store's settings ---------------------------------------------------------------------------------------

URL = "redis://localhost:6379/0"


def test_an_explicit_address_wins_over_celerys_own() -> None:
    conf = {"distlock_url": "memory://", "result_backend": URL, "broker_url": URL, "broker_use_ssl": {"a": 1}}
    assert store_settings(conf) == StoreSettings(url="memory://", prefix="distlock", options={}, max_park=900.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("prefix", value) for value in ("", "a b", "a{b", "a}", "a\n", None, 5)),
        *(("store_options", value) for value in (None, 5, [("a", 1)], {1: 2})),
        *(("max_park", value) for value in (0, -1, True, math.nan, math.inf, "900", None)),
        *(("url", value) for value in ("", "localhost:6379", 5, [URL], "redis:// x")),
    ],
)
def test_a_wrong_store_setting_is_named_with_its_value(name: str, value: Any) -> None:
    message = refusal(store_settings, {"distlock_url": URL, f"distlock_{name}": value})
    assert message.startswith(f"app configuration: distlock_{name}={value!r} is refused; allowed: ")


def test_no_password_appears_in_an_error_or_a_repr() -> None:
    assert "s3cr/t" not in refusal(store_settings, {"distlock_url": "redis://me:s3cr/t@h /0"})
    assert "s3cret" not in repr(store_settings({"distlock_url": "redis://:s3cret@h/0"}))
    assert "s3cret" not in repr(store_settings({"distlock_url": URL, "distlock_store_options": {"password": "s3cret"}}))
    assert "s3cret" not in refusal(store_settings, {"broker_url": "amqp://me:s3cret@h//"})


def test_a_very_long_value_is_cut_in_an_error() -> None:
    assert len(refusal(by_task, "on_lost", "x" * 10_000)) < 400


@pytest.mark.parametrize(
    ("conf", "url"),
    [
        ({"result_backend": "redis://a/1", "broker_url": "redis://b/2"}, "redis://a/1"),
        ({"result_backend": "rpc://", "broker_url": "redis://b/2"}, "redis://b/2"),
        ({"result_backend": "sentinel://s:26379", "broker_url": "rediss://b/2"}, "rediss://b/2"),
        ({"broker_url": "redis://b/2;redis://c/3"}, "redis://b/2"),
        ({"broker_url": ["redis://b/2", "redis://c/3"]}, "redis://b/2"),
        (
            {"broker_url": "amqp://h", "broker_read_url": "redis://r/1", "broker_write_url": "redis://w/1"},
            "redis://w/1",
        ),
        ({"result_backend": "redis+socket:///run/redis.sock"}, "redis+socket:///run/redis.sock"),
        ({"result_backend": "redis+socket:///r.sock?virtual_host=3"}, "redis+socket:///r.sock?db=3"),
        ({"result_backend": "redis://:p%40w@a:1/1?virtual_host=/2"}, "redis://:p%40w@a:1/1?db=2"),
        ({"result_backend": "rediss://a/1?ssl_cert_reqs=CERT_NONE"}, "rediss://a/1?ssl_cert_reqs=none"),
        ({"result_backend": "rediss://a/1?ssl_cert_reqs=required"}, "rediss://a/1?ssl_cert_reqs=required"),
        (
            {"result_backend": "rediss://a?ssl_ca_certs=%2Fetc%2Fca.pem&ssl_cert_reqs=CERT_REQUIRED"},
            "rediss://a?ssl_ca_certs=%2Fetc%2Fca.pem&ssl_cert_reqs=required",
        ),
    ],
)
def test_the_address_is_celerys_own_redis_as_redis_py_spells_it(conf: Mapping[str, Any], url: str) -> None:
    assert store_settings(conf).url == url


def test_tls_configured_beside_the_address_is_carried_over() -> None:
    backend = store_settings(
        {
            "result_backend": "redis://a/1",
            "redis_backend_use_ssl": {"ssl_cert_reqs": "CERT_REQUIRED", "ssl_ca_certs": "/etc/ca.pem"},
            "broker_use_ssl": {"ssl_ca_certs": "/the/brokers.pem"},
            "distlock_store_options": {"socket_timeout": 2},
        }
    )
    assert backend.url == "rediss://a/1"
    assert backend.options == {"ssl_cert_reqs": "required", "ssl_ca_certs": "/etc/ca.pem", "socket_timeout": 2}
    broker = store_settings({"broker_url": "redis://b/2", "broker_use_ssl": True})
    assert (broker.url, broker.options) == ("rediss://b/2", {})


@pytest.mark.parametrize(
    ("conf", "setting"),
    [
        ({"result_backend": "redis://", "redis_host": "db.example"}, "redis_host"),
        ({"result_backend": "redis://db.example/1", "redis_port": 6390}, "redis_port"),
        ({"result_backend": "redis://db.example:1/1", "redis_password": "s3cret"}, "redis_password"),
        ({"broker_url": "redis://db.example/1", "broker_port": 6390}, "broker_port"),
    ],
)
def test_an_address_that_celery_completes_from_elsewhere_is_not_guessed(conf: Mapping[str, Any], setting: str) -> None:
    message = refusal(store_settings, conf)
    assert f"its address is completed by {setting}" in message
    assert "set distlock_url" in message
    assert "s3cret" not in message


def test_a_malformed_address_of_celerys_own_is_an_error_of_configuration() -> None:
    assert "set distlock_url" in refusal(store_settings, {"broker_url": "redis://h:port/0"})


@pytest.mark.parametrize(
    ("conf", "seen"),
    [
        ({}, "result backend: not set; broker: not set"),
        ({"result_backend": "rpc://", "broker_url": "amqp://h//"}, "result backend: rpc://; broker: amqp://"),
        ({"broker_url": "sentinel://s:26379;sentinel://t:26379"}, "broker: sentinel://, no store yet"),
        ({"result_backend": "db+sqlite:///x", "broker_url": "localhost"}, "db+sqlite://; broker: not a URL"),
        ({"broker_url": ["amqp://h", "redis://h"]}, "broker: amqp://"),
        ({"broker_url": []}, "broker: not set"),
        ({"result_backend": object()}, "result backend: not set"),
    ],
)
def test_without_a_redis_the_error_names_the_setting_with_an_example(conf: Mapping[str, Any], seen: str) -> None:
    message = refusal(store_settings, conf)
    assert "distlock_url is not set" in message
    assert seen in message
    assert "'redis://localhost:6379/0'" in message


def test_a_misspelt_store_setting_is_found_by_both_readers() -> None:
    for read in (store_settings, conf_options):
        assert "did you mean 'distlock_prefix'?" in refusal(read, {"distlock_url": URL, "distlock_prefx": "p"})


def test_options_are_read_without_celery() -> None:
    for module in (options, rules, addresses):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] in ("celery", "kombu")]
