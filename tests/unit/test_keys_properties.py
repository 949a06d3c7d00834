"""What must hold of the keys of any arguments. The wire is kombu's own; pickle stands for serialisers of objects."""

from __future__ import annotations

import enum
import inspect
import json
import math
import pickle
import re
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from itertools import zip_longest
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kombu.utils import json as kombu_json

from celery_distlock.errors import LockConfigError, LockKeyError
from celery_distlock.keys import MAX_BYTES, KeyFunction, compile_key

TASK = "shop.charge"

#: The machine may be busy with servers and workers of other tests.
unhurried = settings(deadline=None)


def anything(*args: Any, **kwargs: Any) -> None: ...


def three(a: Any, b: Any, c: Any) -> None: ...


def one(value: Any) -> None: ...


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Right(enum.IntFlag):
    READ = 1
    WRITE = 2


class Country(str, enum.Enum):
    FRANCE = "fr"
    NUMBER = "7"


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


Point = namedtuple("Point", "x y")


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "not what is sent"


class Model:
    def __init__(self, data: Any) -> None:
        self.data = data

    def __repr__(self) -> str:
        return f"Model({self.data!r})"

    def __json__(self) -> Any:
        return self.data


@dataclass(frozen=True)
class Pair:
    left: Any
    right: Any


# -- values ------------------------------------------------------------------------------------------------------------

#: Lone surrogates are sent too.
any_text = st.text(st.characters(codec=None), max_size=12)
zones = st.one_of(
    st.none(),
    st.just(timezone.utc),
    # Whole seconds: datetime.fromisoformat, and so the wire, drops an offset of microseconds alone.
    st.integers(-86399, 86399).map(lambda seconds: timezone(timedelta(seconds=seconds))),
    st.sampled_from(["Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]).map(ZoneInfo),
)
texts = st.one_of(
    any_text, st.sampled_from(["", "1", "-1", "True", "null", "~s1", "%", ":", "a:b", "~", "\ud83d\ude00"])
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-2, 2),
    st.floats(),
    st.sampled_from([0.0, -0.0, 1.0, 1e16, math.inf]),
    texts,
    texts.map(Text),
    st.sampled_from([*Size, *Right, Right.READ | Right.WRITE, *Country]),
)
sendable_objects = st.one_of(
    st.binary(max_size=8),
    st.datetimes(timezones=zones),
    st.dates(),
    st.times(timezones=zones),
    st.decimals(),
    st.decimals(allow_nan=False, places=1, min_value=-3, max_value=3),
    st.uuids(),
)
dict_keys = st.one_of(any_text, st.integers(-3, 3), st.floats(), st.booleans(), st.none(), st.sampled_from(Size))


def text_keys(value: dict[Any, Any]) -> list[str]:
    return list(json.loads(json.dumps(dict.fromkeys(value)), object_pairs_hook=lambda pairs: [key for key, _ in pairs]))


def no_keys_merge(value: dict[Any, Any]) -> bool:
    return len(set(text_keys(value))) == len(value)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    dicts = st.dictionaries(dict_keys, inner, max_size=4).filter(no_keys_merge)
    lists = st.lists(inner, max_size=4)
    return st.one_of(
        lists,
        lists.map(tuple),
        dicts,
        dicts.map(OrderedDict),
        st.builds(Point, inner, inner),
        st.builds(Model, inner),
    )


#: Everything that kombu's JSON can send.
sendable = st.recursive(st.one_of(scalars, sendable_objects), containers, max_leaves=8)


def with_one_more_digit(value: Decimal) -> Decimal:
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    return Decimal((sign, (*digits, 0), exponent - 1))


def is_hashable(value: Any) -> bool:
    return not (isinstance(value, Decimal) and value.is_snan())


hashables = (
    st.one_of(scalars, sendable_objects, st.sampled_from(Colour))
    .filter(is_hashable)
    .flatmap(lambda value: st.sampled_from([value, (value,), frozenset([value])]))
)
#: Everything that pickle brings as it was and that has a key.
picklable = st.recursive(
    st.one_of(scalars, sendable_objects, st.sampled_from(Colour)),
    lambda inner: st.one_of(
        containers(inner),
        st.sets(hashables, max_size=3),
        st.frozensets(hashables, max_size=3),
        st.builds(Pair, inner, inner),
        st.builds(bytearray, st.binary(max_size=4)),
        st.dictionaries(st.one_of(st.uuids(), st.tuples(scalars)), inner, max_size=2),
    ),
    max_leaves=8,
)


def over_the_wire(value: Any) -> Any:
    return kombu_json.loads(kombu_json.dumps(value))


def same(left: Any, right: Any) -> bool:
    """Say whether two values that came over the wire are the same, by comparing instead of encoding."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, Decimal) and not (left.is_finite() and right.is_finite()):
        return str(left) == str(right)
    return bool(left == right) or (left != left and right != right)


key_of_all = compile_key(TASK, None, anything)


@unhurried
@given(st.lists(sendable, max_size=3), st.dictionaries(st.text(max_size=5), sendable, max_size=3))
def test_the_worker_computes_the_publishers_key(args: list[Any], kwargs: dict[str, Any]) -> None:
    sent_args, sent_kwargs = over_the_wire([args, kwargs])
    assert key_of_all(args, kwargs) == key_of_all(tuple(sent_args), sent_kwargs)


@unhurried
@given(sendable)
def test_the_worker_renders_the_publishers_template(value: Any) -> None:
    key = compile_key(TASK, "order:{value}", one)
    assert key((value,), {}) == key((over_the_wire(value),), {})


@unhurried
@given(st.dictionaries(dict_keys, sendable, min_size=1, max_size=4).filter(no_keys_merge), st.data())
def test_the_worker_finds_what_the_publisher_indexed(value: dict[Any, Any], data: st.DataObject) -> None:
    index = data.draw(st.sampled_from(text_keys(value)))
    assume(re.fullmatch(r"[^\[\]{}]+", index) and index.isprintable())
    key = compile_key(TASK, f"{{value[{index}]}}", one)
    assert key((value,), {}) == key((over_the_wire(value),), {})


@unhurried
@given(picklable)
def test_a_serialiser_of_objects_changes_no_key(value: Any) -> None:
    arrived = pickle.loads(pickle.dumps(value))
    assert key_of_all((value,), {}) == key_of_all((arrived,), {})
    template = compile_key(TASK, "{value}", one)
    assert template((value,), {}) == template((arrived,), {})


#: Mostly related values, so that equal ones and near misses occur.
pairs = st.one_of(
    st.tuples(*[st.sampled_from([0, 0.0, -0.0, False, "0", "-0", None, "", "0.0", b"0"])] * 2),
    st.tuples(sendable, sendable),
    st.tuples(scalars, scalars),
    sendable.flatmap(lambda value: st.tuples(st.just(value), st.just(over_the_wire(value)))),
    st.lists(scalars, min_size=1, max_size=3).flatmap(lambda items: st.tuples(st.just(items), st.permutations(items))),
    st.decimals(allow_nan=False, allow_infinity=False).map(lambda value: (value, with_one_more_digit(value))),
    st.tuples(st.datetimes(timezones=zones), zones).map(
        lambda pair: (pair[0], pair[0].replace(tzinfo=pair[1])),
    ),
)


@settings(unhurried, max_examples=300)
@given(pairs)
def test_keys_are_equal_exactly_if_the_values_are_after_the_wire(pair: tuple[Any, Any]) -> None:
    left, right = pair
    equal = same(over_the_wire(left), over_the_wire(right))
    assert (key_of_all((left,), {}) == key_of_all((right,), {})) is equal
    template = compile_key(TASK, "order:{value}", one)
    assert (template((left,), {}) == template((right,), {})) is equal


@unhurried
@given(st.dictionaries(dict_keys, scalars, max_size=5).filter(no_keys_merge), st.randoms(use_true_random=False))
def test_the_order_of_a_dict_and_of_keywords_is_irrelevant(value: dict[Any, Any], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert key_of_all((value,), {}) == key_of_all((dict(items),), {})
    names = {f"k{index}": item for index, item in enumerate(value.values())}
    shuffled = list(names.items())
    random.shuffle(shuffled)
    assert key_of_all((), names) == key_of_all((), dict(shuffled))


# -- templates ---------------------------------------------------------------------------------------------------------

literals = st.text(
    st.one_of(st.sampled_from(list("az09_.-@%~:/{}| ")), st.characters(codec="utf-8")), max_size=6
)  # fmt: skip
#: What makes collisions if anything does: separators, escapes and markers.
tricky = st.one_of(
    st.text(st.sampled_from(list("0127afsh~%:/-_.@ {}é")), max_size=4),
    st.integers(-12, 12),
    st.sampled_from([None, True, 1.0, b"1", "1.0", "~f1.0", "%31", "31", "%7E", "~"]),
)


def key_of(before: str, between: str, more: str, after: str) -> KeyFunction | None:
    escaped = [text.replace("{", "{{").replace("}", "}}") for text in (before, between, more, after)]
    try:
        return compile_key(TASK, "{}{{a}}{}{{b}}{}{{c}}{}".format(*escaped), three)
    except LockConfigError:
        return None


@settings(unhurried, max_examples=500)
@given(literals, literals, literals, literals, st.tuples(tricky, tricky, tricky), st.tuples(tricky, tricky, tricky))
def test_different_arguments_never_fill_a_template_alike(
    before: str, between: str, more: str, after: str, left: tuple[Any, ...], right: tuple[Any, ...]
) -> None:
    key = key_of(before, between, more, after)
    assume(key is not None)
    assert key is not None
    assert (key(left, {}) == key(right, {})) is all(map(same, left, right))


@settings(unhurried, max_examples=300)
@given(
    st.sampled_from([":", "/", "a:b", "{", "é", "-:", "", "-", "_", "x_", "0", "~", "%", "%3A", "x", "@."]),
    st.lists(st.text(st.sampled_from("01-_~:/é"), max_size=2), min_size=4, max_size=4),
)
def test_moving_a_separator_into_another_argument_makes_another_key(separator: str, pieces: list[str]) -> None:
    key = key_of("", separator, separator, "")
    if key is None:  # refused, because values can contain it
        return
    first, second, third, last = pieces
    left = [first + separator + second, third, last]
    right = [first, second + separator + third, last]
    assert (key(left, {}) == key(right, {})) is (left == right)


@settings(unhurried, max_examples=300)
@given(st.one_of(tricky, scalars, sendable_objects))
def test_no_text_imitates_the_rendering_of_another_value(value: Any) -> None:
    key = compile_key(TASK, "{value}", one)
    text = key((value,), {})
    assert (key((text,), {}) == text) is (over_the_wire(value) == text)


@unhurried
@given(sendable)
def test_a_rendered_value_contains_no_separator(value: Any) -> None:
    text = compile_key(TASK, "{value}", one)((value,), {})
    assert text is not None
    assert re.fullmatch(r"[A-Za-z0-9_.@~%:-]+", text)
    assert ":" not in text or len(text) > 196


@unhurried
@given(st.text(max_size=4), st.text(max_size=4), st.integers(0, 400), st.integers(0, 400))
def test_texts_are_bounded_and_stay_different(left: str, right: str, more: int, less: int) -> None:
    texts = (left + "é" * more, "é" * less + right)
    assume(all(texts))
    keys = [compile_key(TASK, lambda text=text: text, one)((), {}) for text in texts]
    assert all(key is not None and len(key.encode()) <= MAX_BYTES for key in keys)
    assert (keys[0] == keys[1]) is (texts[0] == texts[1])


# -- binding -----------------------------------------------------------------------------------------------------------

KINDS = list(inspect._ParameterKind)
MISSING = inspect.Parameter.empty


@st.composite
def signatures(draw: st.DrawFn) -> inspect.Signature:
    parameters: list[inspect.Parameter] = []
    defaulting = False
    names = draw(st.lists(st.sampled_from(["a", "b", "c", "d", "_0", "args"]), unique=True, max_size=5))
    kinds = sorted(draw(st.lists(st.sampled_from(KINDS), min_size=len(names), max_size=len(names))))
    for name, kind in zip(names, kinds, strict=True):
        if kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            if any(parameter.kind is kind for parameter in parameters):
                continue
            parameters.append(inspect.Parameter(name, kind))
            continue
        positional = kind is not inspect.Parameter.KEYWORD_ONLY
        has_default = (defaulting and positional) or draw(st.booleans())
        defaulting = defaulting or (positional and has_default)
        default = draw(st.integers(-9, -1)) if has_default else MISSING
        parameters.append(inspect.Parameter(name, kind, default=default))
    return inspect.Signature(parameters)


def function(signature: inspect.Signature) -> Callable[..., dict[str, Any]]:
    """Return a real function of this signature that returns its arguments: Python is the judge."""
    namespace: dict[str, Any] = {}
    exec(f"def charge{signature}: return dict(locals())", namespace)
    run: Callable[..., dict[str, Any]] = namespace["charge"]
    return run


@st.composite
def calls(draw: st.DrawFn, signature: inspect.Signature) -> tuple[list[Any], dict[str, Any]]:
    """Draw arguments that mostly fit the signature."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    by_name = False
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            args += [] if by_name else draw(st.lists(st.integers(0, 2), max_size=2))
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            kwargs |= draw(st.dictionaries(st.sampled_from(["a", "b", "z"]), st.integers(0, 2), max_size=2))
        elif parameter.default is not MISSING and draw(st.booleans()):
            by_name = True
        else:
            value = draw(
                st.one_of(st.integers(0, 2), st.just(parameter.default).filter(lambda each: each is not MISSING))
            )
            by_name = by_name or parameter.kind is inspect.Parameter.KEYWORD_ONLY or draw(st.booleans())
            if by_name and parameter.kind is not inspect.Parameter.POSITIONAL_ONLY:
                kwargs[name] = value
            else:
                args.append(value)
    if draw(st.integers(0, 9)) == 0:
        kwargs["misfit"] = 0
    return args, kwargs


@settings(unhurried, max_examples=400)
@given(st.data())
def test_arguments_are_bound_as_python_binds_them(data: st.DataObject) -> None:
    signature = data.draw(signatures())
    run = function(signature)
    args, kwargs = data.draw(calls(signature))
    key = compile_key(TASK, None, run)
    text = compile_key(TASK, ":".join(f"{{{name}}}" for name in signature.parameters) or "none", run)
    try:
        arguments = run(*args, **kwargs)
    except TypeError as error:
        with pytest.raises(LockKeyError, match=re.escape(str(error))):
            key(args, kwargs)
        with pytest.raises(LockKeyError, match=re.escape(str(error))):
            text(args, kwargs)
        return
    rendered = [compile_key(TASK, "{value}", one)((arguments[name],), {}) for name in signature.parameters]
    assert text(args, kwargs) == (":".join(map(str, rendered)) or "none")


@settings(unhurried, max_examples=300)
@given(st.data())
def test_calls_have_one_key_exactly_if_python_binds_them_alike(data: st.DataObject) -> None:
    signature = data.draw(signatures())
    run = function(signature)
    key = compile_key(TASK, None, run)
    keys, arguments = [], []
    for _ in range(2):
        args, kwargs = data.draw(calls(signature))
        try:
            arguments.append(run(*args, **kwargs))
        except TypeError:
            return
        keys.append(key(args, kwargs))
    assert (keys[0] == keys[1]) is (arguments[0] == arguments[1])


# The strategies must reach what they are for.


def test_the_strategies_cover_the_standard_types_of_kombu() -> None:
    registered = {datetime, date, time, Decimal, UUID}
    assert set(kombu_json._encoders) == registered
    for value in (datetime(2026, 1, 1), date(2026, 1, 1), time(1), Decimal(1), UUID(int=1), b"\xff"):
        assert same(over_the_wire(value), value)
    assert not any(same(*pair) for pair in zip_longest([1, True, "1"], [1.0, 1, 1]))
