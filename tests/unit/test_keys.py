from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import math
import sys
import threading
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from kombu.utils import json as kombu_json

from celery_distlock.errors import LockConfigError, LockKeyError
from celery_distlock.keys import MAX_BYTES, compile_key

TASK = "shop.charge"


def add(a: Any, b: Any = 2) -> None: ...


def one(value: Any) -> None: ...


def anything(*args: Any, **kwargs: Any) -> None: ...


def charge(order_id: Any, amount: Any = 5, *, shop: Any = "main") -> None: ...


def text_of(template: str, value: Any) -> str | None:
    return compile_key(TASK, template, one)((value,), {})


def hash_of(value: Any) -> str | None:
    return compile_key(TASK, None, one)((value,), {})


def after_the_wire(value: Any) -> Any:
    return kombu_json.loads(kombu_json.dumps(value))


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1


class Country(str, enum.Enum):
    FRANCE = "fr"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass
class Address:
    street: str
    number: Any
    seen: Any = field(default=None, compare=False)


class Model:
    def __init__(self, pk: Any) -> None:
        self.pk = pk

    def __json__(self) -> Any:
        return {"pk": self.pk}


# -- all arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((1, 2), {}), ((1,), {"b": 2}), ((), {"a": 1, "b": 2}), ((1,), {}), ((), {"a": 1}), ([1, 2], {})],
)
def test_every_way_to_pass_the_same_arguments_gives_one_key(args: Any, kwargs: Any) -> None:
    key = compile_key(TASK, None, add)
    assert key(args, kwargs) == key((1, 2), {})


def test_the_key_of_all_arguments_is_the_task_and_the_hash_of_layout_one() -> None:
    hashed = b"celery-distlock:1\narguments\n" + b"s1:ai1;" + b"s1:bi2;"
    assert compile_key(TASK, None, add)((1,), {}) == f"{TASK}:{hashlib.sha256(hashed).hexdigest()}"


def test_tasks_with_the_same_arguments_have_different_keys() -> None:
    assert compile_key("shop.charge", None, add)((1,), {}) != compile_key("shop.refund", None, add)((1,), {})


def test_a_task_without_arguments_has_a_key() -> None:
    key = compile_key(TASK, None, lambda: None)
    assert key((), {}) == key([], {})


def test_extra_positional_and_keyword_arguments_count() -> None:
    key = compile_key(TASK, None, anything)
    keys = [key((), {}), key((1,), {}), key((1, 2), {}), key((2, 1), {}), key((), {"a": 1}), key((), {"args": [1]})]
    assert len(set(keys)) == len(keys)
    assert key((), {"a": 1, "b": 2}) == key((), {"b": 2, "a": 1})


def test_positional_only_names_are_free_for_extra_keywords() -> None:
    def run(a: Any, /, **others: Any) -> None: ...

    key = compile_key(TASK, None, run)
    assert key((1,), {"a": 2}) != key((2,), {"a": 1})
    assert compile_key(TASK, "{a}", run)((1,), {"a": 2}) == "1"


@pytest.mark.parametrize("bound", [True, False])
def test_a_bound_methods_self_never_counts(bound: bool) -> None:
    class Task:
        def run(self, a: Any, b: Any = 2) -> None: ...

    key = compile_key(TASK, None, Task().run, bound=bound)
    assert key((1,), {}) == compile_key(TASK, None, add)((1, 2), {})


def test_a_bound_tasks_function_loses_its_first_parameter() -> None:
    def run(self: Any, a: Any, b: Any = 2) -> None: ...

    key = compile_key(TASK, None, run, bound=True)
    assert key((1,), {}) == compile_key(TASK, None, add)((1, 2), {})
    with pytest.raises(LockConfigError, match="names 'self', which is no parameter"):
        compile_key(TASK, ("self",), run, bound=True)


def test_a_bound_task_that_takes_its_self_from_args_keeps_args() -> None:
    def run(*args: Any) -> None: ...

    assert compile_key(TASK, "{args[0]}", run, bound=True)(("first",), {}) == "first"


def test_a_bound_task_without_a_self_is_refused() -> None:
    with pytest.raises(LockConfigError, match="takes no self"):
        compile_key(TASK, None, lambda: None, bound=True)


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2, 3), {}), ((1,), {"a": 1}), ((1,), {"c": 1})])
def test_arguments_that_do_not_fit_the_task_are_named(args: Any, kwargs: Any) -> None:
    with pytest.raises(LockKeyError, match=r"task 'shop\.charge', lock_key=None: .* do not fit the task: charge\(\)"):
        compile_key(TASK, None, add)(args, kwargs)


# -- chosen arguments --------------------------------------------------------------------------------------------------


def test_chosen_arguments_ignore_the_others() -> None:
    key = compile_key(TASK, ("order_id",), charge)
    assert key((7, 1), {}) == key((7,), {"shop": "other"})
    assert key((7, 1), {}) != key((8, 1), {})


def test_the_order_of_chosen_names_is_irrelevant() -> None:
    there = compile_key(TASK, ("order_id", "shop"), charge)
    back = compile_key(TASK, ["shop", "order_id"], charge)
    assert there((1,), {"shop": 2}) == back((1,), {"shop": 2}) != back((2,), {"shop": 1})


def test_choosing_every_argument_is_choosing_none() -> None:
    assert compile_key(TASK, ("b", "a"), add)((1,), {}) == compile_key(TASK, None, add)((1,), {})


def test_a_name_among_the_extra_keywords_may_be_chosen() -> None:
    key = compile_key(TASK, ("order",), anything)
    assert key((1,), {"order": 7}) == key((2,), {"order": 7, "more": 1})
    with pytest.raises(LockKeyError, match="needs the argument 'order', which this call does not have"):
        key((7,), {})


def test_args_and_kwargs_themselves_may_be_chosen() -> None:
    assert compile_key(TASK, ("args",), anything)((1,), {}) == compile_key(TASK, ("args",), anything)((1,), {"b": 1})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (("ordr_id",), r"'ordr_id', which is no parameter .*; allowed: 'order_id', 'amount', 'shop'"),
        ((), "is empty"),
        ([], "is empty"),
        (("shop", "shop"), "names 'shop' twice"),
        (("shop", 3), "contains 3, of type int"),
        (7, "is of type int; allowed are None, a tuple of parameter names, a template"),
        (b"order", "is of type bytes"),
        ({"shop"}, "is of type set"),
        ("", "is empty"),
        ("order:{", "malformed template"),
        ("order:}", "malformed template"),
        ("order:{}", "positional field {}"),
        ("order:{0}", "positional field {0}"),
        ("order:{0[a]}", "positional field"),
        ("order:{[a]}", "positional field"),
        ("order:{order_id!r}", "conversion or a format"),
        ("order:{order_id:>5}", "conversion or a format"),
        ("order:{order_id.pk}", r"asks for an attribute .* use an index"),
        ("order:{order_id[a].b}", "malformed field"),
        ("order:{order_id[]}", "malformed"),
        ("order:{ordr_id}", "'ordr_id', which is no parameter"),
        ("order:{ordr_id[pk]}", "'ordr_id', which is no parameter"),
        ("{order_id}{shop}", r"nothing between \{order_id\} and \{shop\}"),
        ("{order_id}x1~%41{shop}", "nothing between"),
        ("order_id", r"one lock for all calls; write \('order_id',\) or '\{order_id\}'"),
        ("\ud800", "not valid Unicode"),
    ],
)
def test_a_wrong_spec_is_refused_where_the_task_is_defined(spec: Any, message: str) -> None:
    with pytest.raises(LockConfigError, match=message) as caught:
        compile_key(TASK, spec, charge, option="unique_key")
    assert str(caught.value).startswith(f"task 'shop.charge', unique_key={spec!r}: ")


def test_what_separates_two_fields_is_escaped_in_them() -> None:
    key = compile_key(TASK, "order_{order_id}_{shop}", charge)
    assert key(("a",), {"shop": "b"}) == "order_a_b"
    assert key(("a_b",), {"shop": "c"}) == "order_a%5Fb_c"
    assert key(("a",), {"shop": "b_c"}) == "order_a_b%5Fc"
    assert compile_key(TASK, "{order_id}-{shop}", charge)((-7,), {"shop": "eu-west"}) == "%2D7-eu%2Dwest"


def test_a_task_without_parameters_says_so() -> None:
    with pytest.raises(LockConfigError, match="allowed: none, the task takes no arguments"):
        compile_key(TASK, ("a",), lambda: None)


def test_a_function_without_a_signature_is_refused_unless_the_key_is_a_callable() -> None:
    def unknown() -> None: ...

    unknown.__signature__ = 7  # type: ignore[attr-defined]
    with pytest.raises(LockConfigError, match="signature"):
        compile_key(TASK, None, unknown)
    assert compile_key(TASK, lambda: "x", unknown)((), {}) == "x"


def test_a_wrapped_function_has_the_signature_of_what_it_wraps() -> None:
    @functools.wraps(add)
    def wrapper(*args: Any, **kwargs: Any) -> None: ...

    assert compile_key(TASK, None, wrapper)((1,), {}) == compile_key(TASK, None, add)((1, 2), {})


# -- values ------------------------------------------------------------------------------------------------------------

DIFFERENT = [
    1, 1.0, "1", True, None, 0, 0.5, False, "", "True", "None", b"", b"1", [], {}, [1], ["1"], [[1]], [[], 1], {"a": 1},
    {"a": [1]}, {"a": None}, [("a", 1)], set(), {1}, {"1"}, math.nan, math.inf, -math.inf, -1, 10**400, "nan",
    datetime(2026, 11, 20), datetime(2026, 11, 20, tzinfo=timezone.utc), date(2026, 11, 20), time(0, 0),
    time(0, 0, tzinfo=timezone.utc), "2026-11-20", Decimal(1), Decimal("1.1"), Decimal("-1"), Decimal("NaN"),
    Decimal("1e2"), UUID(int=1), UUID(int=1).hex, Colour.RED, Colour.BLUE, "red", Right.READ, Right.READ | Right.WRITE,
    Address("a", 1), Address("a", 2), Address("a", "1"), {"street": "a", "number": 1}, {"__type__": "x"}, "\ud800",
]  # fmt: skip


def test_values_that_differ_by_type_or_content_have_different_keys() -> None:
    assert len({hash_of(value) for value in DIFFERENT}) == len(DIFFERENT)
    assert len({text_of("{value}", value) for value in DIFFERENT}) == len(DIFFERENT)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((1, (2,)), [1, [2]]),
        (namedtuple("Point", "x y")(1, 2), [1, 2]),
        ({1: "a"}, {"1": "a"}),
        ({True: 1, None: 2, 1.5: 3}, {"true": 1, "null": 2, "1.5": 3}),
        ({1.0: "a"}, {"1.0": "a"}),
        ({math.nan: 1, math.inf: 2, -math.inf: 3}, {"NaN": 1, "Infinity": 2, "-Infinity": 3}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(list, a=1), {"a": 1}),
        (set("abc"), frozenset("cba")),
        (0.0, -0.0),
        (math.nan, -math.nan),
        (Decimal("1.0"), Decimal("1.00")),
        (Decimal("100"), Decimal("1E+2")),
        (Decimal("0"), Decimal("-0.00")),
        (bytearray(b"ab"), b"ab"),
        (datetime(2026, 11, 20, 12, tzinfo=ZoneInfo("Europe/Paris")), datetime(2026, 11, 20, 11, tzinfo=timezone.utc)),
        (datetime(2026, 10, 25, 2, 30, fold=1), datetime(2026, 10, 25, 2, 30, fold=0)),
        (time(9, tzinfo=timezone(timedelta(hours=1))), time(8, tzinfo=timezone.utc)),
        (time(9, tzinfo=ZoneInfo("Europe/Paris")), time(9)),
        (Size.SMALL, 1),
        (Country.FRANCE, "fr"),
        (Model(7), {"pk": 7}),
        (Model(Model(7)), {"pk": {"pk": 7}}),
        (Address("a", 1, seen="now"), Address("a", 1, seen="then")),
        ("\ud83d\ude00", "😀"),
        ({"__type__": "uuid", "__value__": {"hex": "0" * 32}}, UUID(int=0)),
    ],
)
def test_values_that_are_one_after_the_wire_have_one_key(left: Any, right: Any) -> None:
    assert hash_of(left) == hash_of(right)
    assert text_of("{value}", left) == text_of("{value}", right)
    assert hash_of([{"in": left}]) == hash_of([{"in": right}])


def test_an_hour_that_the_clock_shows_twice_is_two_instants() -> None:
    paris = ZoneInfo("Europe/Paris")
    first = datetime(2026, 10, 25, 2, 30, tzinfo=paris)
    second = first.replace(fold=1)
    assert hash_of(first) != hash_of(second)
    assert hash_of(second) == hash_of(after_the_wire(second))


def test_the_first_and_last_instants_have_keys_in_every_zone() -> None:
    east, west = timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))
    assert hash_of(datetime.min.replace(tzinfo=east)) != hash_of(datetime.min.replace(tzinfo=west))
    assert hash_of(datetime.max.replace(tzinfo=east)) != hash_of(datetime.max.replace(tzinfo=west))


def test_a_decimal_longer_than_the_context_is_not_rounded() -> None:
    digits = "1" * 60
    assert hash_of(Decimal(digits + "1")) != hash_of(Decimal(digits + "2"))


def test_nothing_else_is_made_of_a_dict_that_only_looks_like_an_envelope() -> None:
    unknown = {"__type__": "no such type", "__value__": 1}
    assert hash_of(unknown) == hash_of({"__value__": 1, "__type__": "no such type"})
    assert hash_of({"__type__": "uuid", "__value__": {1}}) != hash_of({"__type__": "uuid", "__value__": {2}})


class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents


class Reading:
    def __init__(self, value: int) -> None:
        self.value = value


@pytest.fixture
def registered_types() -> Any:
    encoders, decoders = dict(kombu_json._encoders), dict(kombu_json._decoders)
    kombu_json.register_type(Money, "money", lambda money: {"cents": money.cents}, lambda data: Money(**data))
    kombu_json.register_type(Reading, "reading", lambda reading: reading.value, lambda data: [data])
    kombu_json.register_type(Colour, None, lambda colour: colour.value)
    yield
    for registry, before in ((kombu_json._encoders, encoders), (kombu_json._decoders, decoders)):
        registry.clear()
        registry.update(before)


@pytest.mark.usefixtures("registered_types")
@pytest.mark.parametrize(("make", "other"), [(Money, Money(2)), (Reading, Reading(2)), (lambda _: Colour.RED, 1)])
def test_types_registered_with_kombu_have_the_key_they_have_after_the_wire(make: Any, other: Any) -> None:
    assert hash_of(make(1)) == hash_of(after_the_wire(make(1))) != hash_of(other)
    assert text_of("{value}", make(1)) == text_of("{value}", after_the_wire(make(1)))


@pytest.mark.usefixtures("registered_types")
def test_a_standard_type_registered_anew_is_followed() -> None:
    kombu_json.register_type(Decimal, None, str)
    assert hash_of(Decimal("1.50")) == hash_of("1.50")


def test_a_django_lazy_text_is_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    class Promise:
        def __str__(self) -> str:
            return "bonjour"

    module = type(sys)("django.utils.functional")
    module.Promise = Promise  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "django.utils.functional", module)
    assert hash_of(Promise()) == hash_of("bonjour")
    assert text_of("{value}", Promise()) == "bonjour"


def test_a_pydantic_model_is_what_celery_sends_of_it() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Order(pydantic.BaseModel):
        id: UUID
        day: date

    order = Order(id=UUID(int=7), day=date(2026, 11, 20))
    assert hash_of(order) == hash_of(order.model_dump(mode="json"))
    assert text_of("{value[day]}", order) == "2026-11-20"


# -- values without a key ----------------------------------------------------------------------------------------------


class Broken:
    def __json__(self) -> Any:
        raise RuntimeError("no")


class Endless:
    def __json__(self) -> Any:
        return [Endless()]


class Itself:
    def __json__(self) -> Any:
        return self


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (threading.Lock(), r"argument value is of type _thread\.lock, which has no canonical form"),
        ((i for i in ()), "argument value is of type generator"),
        (object(), "argument value is of type object"),
        (Colour, r"argument value is of type enum\.Enum"),
        (Address, "argument value is of type type"),
        (Itself(), r"argument value is of type .*Itself, which has no canonical form"),
        ([1, [object()]], r"argument value\[1\]\[0\] is of type object"),
        ({"items": [1, 2, object()]}, r"argument value\['items'\]\[2\] is of type object"),
        ({"a": {5: object()}}, r"argument value\['a'\]\[5\] is of type object"),
        ([{frozenset([add])}], r"argument value\[0\]\{.*\}\{.*\} is of type function"),
        (Address("a", [object()]), r"argument value\.number\[0\] is of type object"),
        ({1: "a", "1": "b"}, r"argument value\['1'\] has a second key that is the same after the wire"),
        ([{True: 1, "true": 2}], r"argument value\[0\]\['true'\] has a second key"),
        (Broken(), r"argument value is of type .*Broken, which could not be turned into JSON: RuntimeError\('no'\)"),
        (Endless(), "nested more than 100 levels deep"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_an_argument_without_a_key_is_named_with_its_place_and_type(value: Any, message: str) -> None:
    with pytest.raises(LockKeyError, match=message) as caught:
        hash_of(value)
    assert str(caught.value).startswith("task 'shop.charge', lock_key=None: ")
    with pytest.raises(LockKeyError, match=message):
        text_of("{value}", value)


def test_the_failure_of_an_arguments_own_json_is_chained() -> None:
    with pytest.raises(LockKeyError) as caught:
        hash_of([Broken()])
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_value_that_contains_itself_is_refused() -> None:
    cycle: list[Any] = [1]
    cycle.append({"again": cycle})
    with pytest.raises(LockKeyError, match=r"argument value\[1\]\['again'\] contains itself"):
        hash_of(cycle)


def test_a_value_that_occurs_twice_does_not_contain_itself() -> None:
    shared = [1]
    assert hash_of([shared, shared]) == hash_of([[1], [1]])


def nested(levels: int) -> Any:
    value: Any = "core"
    for _ in range(levels):
        value = [value]
    return value


def test_nesting_is_bounded() -> None:
    assert hash_of(nested(100)) != hash_of(nested(99))
    with pytest.raises(LockKeyError, match=r"argument value(\[0\])+ is nested more than 100 levels deep"):
        hash_of(nested(101))
    with pytest.raises(LockKeyError, match="is nested more than 100 levels deep"):
        hash_of(nested(100_000))


def test_a_stack_that_is_almost_used_up_is_no_recursion_error() -> None:
    key = compile_key(TASK, None, one)
    value = nested(90)

    def descend() -> None:
        try:
            descend()
        except RecursionError:
            key((value,), {})

    with pytest.raises(LockKeyError, match="what is left of the stack"):
        descend()


# -- templates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        (-7, "-7"),
        ("eu-west_1.a@b", "eu-west_1.a@b"),
        ("7", "~s7"),
        ("-7", "~s-7"),
        ("007", "~s007"),
        ("", "~s"),
        ("~s7", "%7Es7"),
        ("a:b/c%{}", "a%3Ab%2Fc%25%7B%7D"),
        ("é\n\0", "%C3%A9%0A%00"),
        ("٣", "%D9%A3"),
        (True, "~true"),
        (False, "~false"),
        (None, "~none"),
        ("True", "True"),
        (1.5, "~f1.5"),
        (-0.0, "~f0.0"),
        (1e16, "~f1e%2B16"),
        (math.nan, "~fnan"),
        (UUID(int=7), "~u00000000-0000-0000-0000-000000000007"),
        (date(2026, 11, 20), "~d2026-11-20"),
        (Size.SMALL, "1"),
        (Country.FRANCE, "fr"),
    ],
)
def test_a_template_renders_a_value_readably(value: Any, text: str) -> None:
    assert text_of("order:{value}", value) == f"order:{text}"


@pytest.mark.parametrize("value", [[1], {"a": 1}, b"a", datetime(2026, 1, 1), Decimal(1), Colour.RED, 2**300, {1}])
def test_a_template_renders_what_has_no_text_as_half_a_hash(value: Any) -> None:
    text = text_of("{value}", value)
    assert text is not None
    assert text.startswith("~h")
    assert len(text) == 34


def test_no_argument_can_imitate_a_separator() -> None:
    key = compile_key(TASK, "{a}:{b}", add)
    assert key(("1:2", "3"), {}) == "1%3A2:~s3"
    assert key(("1", "2:3"), {}) == "~s1:2%3A3"


def test_tasks_with_one_template_share_the_lock() -> None:
    def refund(order_id: Any) -> None: ...

    template = "order:{order_id}"
    assert compile_key(TASK, template, charge)((7,), {}) == compile_key("shop.refund", template, refund)((7,), {})


def test_a_template_without_fields_is_one_lock_for_all_calls() -> None:
    key = compile_key(TASK, "nightly {{job}}", charge)
    assert key((1,), {}) == key((2, 3), {}) == "nightly {job}"


def test_arguments_must_fit_the_task_even_where_the_template_does_not_need_them() -> None:
    with pytest.raises(LockKeyError, match="do not fit"):
        compile_key(TASK, "nightly", charge)((), {})


def test_defaults_fill_a_template() -> None:
    assert compile_key(TASK, "{shop}/{amount}", charge)((7,), {}) == "main/5"


def test_braces_are_a_separator() -> None:
    assert compile_key(TASK, "{a}{{{b}}}", add)((1, 2), {}) == "1{2}"


def test_a_parameter_called_like_the_binders_own_names_is_no_problem() -> None:
    def run(_0: Any, _1: Any = "b", KeyError: Any = "c") -> None: ...

    assert compile_key(TASK, "{_0}/{_1}/{KeyError}", run)(("a",), {}) == "a/b/c"


@pytest.mark.parametrize(
    ("template", "value", "text"),
    [
        ("{value[id]}", {"id": 7}, "7"),
        ("{value[id]}", Model(0), None),
        ("{value[pk]}", Model("x"), "x"),
        ("{value[1]}", ["a", "b"], "b"),
        ("{value[1]}", ("a", "b"), "b"),
        ("{value[1]}", {1: "a"}, "a"),
        ("{value[1]}", {"1": "a"}, "a"),
        ("{value[true]}", {True: "a"}, "a"),
        ("{value[a b.c]}", {"a b.c": "x"}, "x"),
        ("{value[rows][0][id]}", {"rows": [{"id": "x"}]}, "x"),
    ],
)
def test_indexes_look_up_what_is_there_after_the_wire(template: str, value: Any, text: str | None) -> None:
    for each in (value, after_the_wire(value)):
        if text is None:
            with pytest.raises(LockKeyError, match="has no key 'id'"):
                text_of(template, each)
        else:
            assert text_of(template, each) == text


@pytest.mark.parametrize(
    ("template", "value", "message"),
    [
        ("{value[id]}", {"pk": 7}, "argument value has no key 'id'"),
        ("{value[a][id]}", {"a": {}}, r"argument value\['a'\] has no key 'id'"),
        ("{value[2]}", [1, 2], "argument value is a list of 2 without a position 2"),
        ("{value[-1]}", [1, 2], "without a position -1"),
        ("{value[id]}", [1, 2], "without a position id"),
        ("{value[0]}", "text", "argument value is of type str, neither a dict nor a list"),
        ("{value[id]}", object(), "neither a dict nor a list"),
        ("{value[1]}", {1: "a", "1": "b"}, "has several keys '1'"),
        ("{value[a]}", {"a": object()}, r"argument value\['a'\] is of type object"),
    ],
)
def test_a_field_that_is_not_there_is_named(template: str, value: Any, message: str) -> None:
    with pytest.raises(LockKeyError, match=message) as caught:
        text_of(template, value)
    assert str(caught.value).startswith(f"task 'shop.charge', lock_key={template!r}: ")


# -- callables ---------------------------------------------------------------------------------------------------------


def test_a_callables_text_is_the_key_and_agrees_with_a_template() -> None:
    by_callable = compile_key(TASK, lambda order_id, **_: f"order:{order_id}", charge)
    by_template = compile_key(TASK, "order:{order_id}", charge)
    assert by_callable((7,), {"shop": "x"}) == by_template((7,), {"shop": "x"}) == "order:7"


def test_a_callable_that_returns_none_wants_no_lock() -> None:
    assert compile_key(TASK, lambda order_id: None, charge)((7,), {}) is None


def test_a_str_subclass_from_a_callable_counts_by_its_characters() -> None:
    key = compile_key(TASK, lambda: Country.FRANCE, charge)((), {})
    assert key == "fr"
    assert type(key) is str


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (lambda *_: 7, "returned int; a str is needed, or None for no lock"),
        (lambda *_: b"x", "returned bytes"),
        (lambda *_: "", "returned an empty text"),
        (lambda *_: "\ud800", "returned a text that is not valid Unicode"),
        (lambda *_: 1 / 0, r"raised ZeroDivisionError"),
        (lambda: "x", "raised TypeError"),
    ],
)
def test_a_callable_that_gives_no_text_is_an_error_of_the_call(spec: Any, message: str) -> None:
    with pytest.raises(LockKeyError, match=rf"task 'shop.charge', lock_key=.*<lambda>: {message}"):
        compile_key(TASK, spec, charge)((7,), {})


def test_what_a_callable_raised_is_chained() -> None:
    with pytest.raises(LockKeyError) as caught:
        compile_key(TASK, lambda order: order["id"], charge)(({},), {})
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_coroutine_function_cannot_give_a_key() -> None:
    async def later(order_id: Any) -> str:
        return "x"

    with pytest.raises(LockConfigError, match="coroutine"):
        compile_key(TASK, later, charge)


# -- length ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["x" * 196, "é" * 98, "😀" * 49, "a\0b\n"])
def test_a_text_of_up_to_196_bytes_is_kept(text: str) -> None:
    assert compile_key(TASK, lambda: text, charge)((), {}) == text


@pytest.mark.parametrize("text", ["x" * 197, "é" * 99, "x" + "😀" * 50, "xx" + "😀" * 50, "xxx" + "😀" * 5000])
def test_a_longer_text_is_cut_at_a_character_and_ends_in_its_hash(text: str) -> None:
    key = compile_key(TASK, lambda: text, charge)((), {})
    assert key is not None
    head, _, tail = key.rpartition(":")
    assert text.startswith(head)
    assert tail == hashlib.sha256(text.encode()).hexdigest()
    assert 197 <= len(key.encode()) <= MAX_BYTES


def test_a_shortened_key_cannot_be_written_out() -> None:
    long = compile_key(TASK, lambda: "x" * 1000, charge)((), {})
    assert compile_key(TASK, lambda: long, charge)((), {}) != long


@pytest.mark.parametrize("task", ["t" * 131, "t" * 132, "t" * 5000, "é" * 66])
def test_long_task_names_are_bounded_in_every_form(task: str) -> None:
    keys = {
        compile_key(task, None, add)((1,), {}),
        compile_key(task, None, add)((2,), {}),
        compile_key(task, ("a",), add)((1,), {}),
        compile_key(task, "{a}" + "/x" * 150, add)((1,), {}),
    }
    assert len(keys) == 4
    assert all(key is not None and len(key.encode()) <= MAX_BYTES for key in keys)


def test_a_template_with_a_long_value_is_bounded() -> None:
    left, right = text_of("{value}", "x" * 5000), text_of("{value}", "x" * 5001)
    assert left != right
    assert len(left or "") == len(right or "") == MAX_BYTES


def test_the_signature_of_the_contract_is_kept() -> None:
    assert list(inspect.signature(compile_key).parameters) == ["task", "spec", "run", "bound", "option"]
