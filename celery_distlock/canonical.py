"""Values → canonical bytes, by type and as they are after the wire.

Authority
    Celery's JSON serialiser (:mod:`kombu.utils.json`) decides what a value is after the wire. A key is computed by
    the publisher, the worker, an eager call and a direct call, and must be the same in all four. So a value is first
    turned into what a worker would be given (:func:`arrive`), then encoded.

The rule
    Two values have one encoding exactly if they are of one type after the wire and compare equal there. So ``1``,
    ``1.0``, ``"1"``, ``True`` and ``None`` all differ; a tuple is a list; ``0.0`` is ``-0.0``, ``Decimal("1.0")`` is
    ``Decimal("1.00")``, and two aware datetimes are one if they denote one instant. NaN is itself.

Layout 1
    Every encoding is self-delimiting (a type letter, then a length or a terminator), so concatenations are as unique
    as their parts. Any change to the bytes below needs a new :data:`LAYOUT`: old and new workers of a rolling
    deployment would not exclude each other. The golden file of the tests guards this.

    ===================================  =========================================================================
    None, True, False                    ``n`` ``t`` ``f``
    int                                  ``i`` hexadecimal ``;``
    float                                ``d`` shortest repr ``;``
    str                                  ``s`` number of bytes ``:`` UTF-8
    bytes, bytearray                     ``b`` number of bytes ``:`` the bytes
    list, tuple                          ``[`` items ``]``
    dict                                 ``{`` key, value … sorted by the encoded key ``}``
    set, frozenset                       ``<`` items, sorted ``>``
    anything else                        ``x``, its type as a str, then what tells its values apart
    ===================================  =========================================================================
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from types import ModuleType
from typing import Any
from uuid import UUID

__all__ = ["LAYOUT", "MAX_DEPTH", "Unencodable", "arrive", "encode", "find", "utf8"]

#: What every hashed text begins with.
LAYOUT = b"celery-distlock:1\n"

#: How deep values may be nested. Far from where the interpreter's own stack ends, whoever calls.
MAX_DEPTH = 100

_MICROSECOND = timedelta(microseconds=1)


class Unencodable(Exception):
    """A value has no canonical encoding.

    Attributes:
        path: where in the argument it is, as in ``['items'][2]``.
        reason: what it is, to stand after the argument's name.
    """

    def __init__(self, reason: str) -> None:
        self.path = ""
        self.reason = reason
        super().__init__(reason)

    def within(self, step: str) -> Unencodable:
        """Prefix the path by the step that led to the value."""
        self.path = step + self.path
        return self


def encode(value: Any, _active: set[int] | None = None) -> bytes:
    """Return the canonical bytes of ``value``.

    Raises:
        Unencodable: it, or something inside it, is of a type without a canonical encoding; it contains itself; it is
            nested more than :data:`MAX_DEPTH` deep; two keys of a dict become one on the wire.
    """
    scalar = _SCALARS.get(type(value))
    if scalar is not None:
        return scalar(value)
    if isinstance(value, str):
        return _encode_str(str.__str__(value))
    if isinstance(value, int):
        return _encode_int(int.__index__(value))
    if isinstance(value, float):
        return _encode_float(float.__float__(value))
    active = set() if _active is None else _active
    if id(value) in active:
        raise Unencodable("contains itself")
    if len(active) >= MAX_DEPTH:
        raise Unencodable(f"is nested more than {MAX_DEPTH} levels deep")
    active.add(id(value))
    try:
        return _encode_container(value, active)
    finally:
        active.discard(id(value))


def _encode_container(value: Any, active: set[int]) -> bytes:
    arrived = arrive(value)
    if arrived is not value:
        return encode(arrived, active)
    if isinstance(value, (list, tuple)):
        return b"[" + b"".join(_encode_items(value, active)) + b"]"
    if isinstance(value, dict):
        return _encode_dict(value, active)
    if isinstance(value, (bytes, bytearray)):
        return b"b%d:%b" % (len(value), bytes(value))
    return _encode_object(value, active)


def _encode_items(items: Any, active: set[int]) -> list[bytes]:
    encoded: list[bytes] = []
    try:
        for item in items:
            encoded.append(encode(item, active))
    except Unencodable as error:
        raise error.within(f"[{len(encoded)}]") from error.__cause__
    return encoded


def _encode_dict(value: dict[Any, Any], active: set[int]) -> bytes:
    encoded: dict[bytes, bytes] = {}
    key: Any = None
    try:
        for key, item in value.items():
            text = _key_text(key)
            head = encode(key, active) if text is None else _encode_str(text)
            if head in encoded:
                raise Unencodable("has a second key that is the same after the wire")
            encoded[head] = encode(item, active)
    except Unencodable as error:
        raise error.within(f"[{_short(key)}]") from error.__cause__
    return b"{" + b"".join([head + encoded[head] for head in sorted(encoded)]) + b"}"


def _encode_object(value: Any, active: set[int]) -> bytes:
    if isinstance(value, Enum):
        # A combination of flags has a name in some Pythons and none in others.
        member = value.value if isinstance(value, Flag) else value.name
        return _encode_tagged("enum", _class_name(value), member, active)
    if isinstance(value, (set, frozenset)):
        encoded = []
        for item in value:
            try:
                encoded.append(encode(item, active))
            except Unencodable as error:
                raise error.within(f"{{{_short(item)}}}") from error.__cause__
        return b"<" + b"".join(sorted(encoded)) + b">"
    for kind, tag, describe in _KINDS:
        if isinstance(value, kind):
            return b"x" + _encode_str(tag) + _encode_str(describe(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.compare}
        try:
            return _encode_tagged("dataclass", _class_name(value), fields, active)
        except Unencodable as error:
            error.path = re.sub(r"^\['(\w+)'\]", r".\1", error.path)
            raise
    sent = _sent_by_json(value)
    if _is_envelope(sent):
        return _encode_tagged("json", sent["__type__"], sent["__value__"], active)
    raise Unencodable(f"is of type {_class_name(value)}, which has no canonical form; pass plain data, such as an id")


def _encode_tagged(tag: str, name: Any, value: Any, active: set[int]) -> bytes:
    return b"x" + _encode_str(tag) + encode(name, active) + encode(value, active)


# -- scalars -----------------------------------------------------------------------------------------------------------


def utf8(text: str) -> bytes:
    """Return the UTF-8 of any str, one with lone surrogates too."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        # JSON sends lone surrogates as they are, and joins a pair of them to the character they spell.
        joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        return joined.encode("utf-8", "surrogatepass")


def _encode_str(value: str) -> bytes:
    data = utf8(value)
    return b"s%d:%b" % (len(data), data)


def _encode_int(value: int) -> bytes:
    # Hexadecimal: decimal digits take quadratic time, and Python refuses more than 4300 of them.
    return b"i%x;" % value


def _encode_float(value: float) -> bytes:
    return b"d%a;" % (value or 0.0)


_SCALARS: dict[type, Callable[[Any], bytes]] = {
    str: _encode_str,
    int: _encode_int,
    float: _encode_float,
    bool: lambda value: b"t" if value else b"f",
    type(None): lambda value: b"n",
}


def _describe_datetime(value: datetime) -> str:
    offset = value.utcoffset()
    since = (value.toordinal() * 24 + value.hour) * 60 + value.minute
    micros = (since * 60 + value.second) * 1_000_000 + value.microsecond
    # Whole numbers, because the instant may lie outside of what a datetime in UTC can say.
    return f"local {micros}" if offset is None else f"utc {micros - offset // _MICROSECOND}"


def _describe_time(value: time) -> str:
    offset = value.utcoffset()
    micros = ((value.hour * 60 + value.minute) * 60 + value.second) * 1_000_000 + value.microsecond
    return f"local {micros}" if offset is None else f"utc {micros - offset // _MICROSECOND}"


def _describe_decimal(value: Decimal) -> str:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        return str(value)
    # Not Decimal.normalize(): that rounds to the context's precision.
    text = "".join(map(str, digits)).lstrip("0")
    significant = text.rstrip("0")
    if not significant:
        return "0"
    return f"{'-' if sign else ''}{significant}e{exponent + len(text) - len(significant)}"


#: In this order: a datetime is a date too.
_KINDS: tuple[tuple[type, str, Callable[[Any], str]], ...] = (
    (datetime, "datetime", _describe_datetime),
    (date, "date", lambda value: str(value.toordinal())),
    (time, "time", _describe_time),
    (Decimal, "decimal", _describe_decimal),
    (UUID, "uuid", lambda value: f"{value.int:032x}"),
)


# -- the wire ----------------------------------------------------------------------------------------------------------

#: What kombu itself registers: these arrive as they were sent, and are encoded here.
_NATIVE: dict[str, type] = {
    "datetime": datetime,
    "date": date,
    "time": time,
    "decimal": Decimal,
    "uuid": UUID,
    "bytes": bytes,
    "base64": bytes,
}


def arrive(value: Any) -> Any:
    """Return what a worker is given in place of ``value``, one level deep.

    ``value`` itself is returned if it arrives as it is, and also if JSON cannot send it: then only a serialiser that
    keeps objects (pickle, yaml) can have brought it.

    Raises:
        Unencodable: its ``__json__`` method, or an encoder registered with kombu, failed.
    """
    if isinstance(value, (str, int, float, list, tuple)) or value is None:
        return value
    if isinstance(value, dict):
        return _open_envelope(value) if _is_envelope(value) else value
    reducer = getattr(value, "__json__", None)
    if reducer is not None:
        return _call(value, reducer)
    # A lazily translated text; its class can only be known where Django has been imported.
    functional = sys.modules.get("django.utils.functional")
    if functional is not None and isinstance(value, functional.Promise):
        return _call(value, lambda: str(value))
    sent = _sent_by_json(value)
    if sent is not value:
        if not _is_envelope(sent):
            return sent
        native = _NATIVE.get(sent["__type__"])
        if native is not None and isinstance(value, native):
            return value
        arrived = _open_envelope(sent)
        return value if type(arrived) is type(value) or arrived is sent else arrived
    # Celery's pydantic=True dumps models like this before it sends them.
    pydantic = sys.modules.get("pydantic")
    if pydantic is not None and isinstance(value, pydantic.BaseModel):
        return _call(value, lambda: value.model_dump(mode="json"))
    return value


def find(value: Any, index: str) -> Any:
    """Return ``value[index]`` as it is after the wire.

    Raises:
        LookupError: there is no such key or position; its text says so.
        Unencodable: see :func:`arrive`.
    """
    for _ in range(MAX_DEPTH):
        value, before = arrive(value), value
        if value is before:
            break
    if isinstance(value, dict):
        if index in value and _OTHER_KEY.match(index) is None:
            return value[index]
        found = [item for key, item in value.items() if _key_text(key) == index]
        if len(found) != 1:
            raise LookupError(f"has {'several keys' if found else 'no key'} {index!r}")
        return found[0]
    if isinstance(value, (list, tuple)):
        if not (index.isascii() and index.isdigit()) or int(index[:18]) >= len(value):
            raise LookupError(f"is a list of {len(value)} without a position {index}")
        return value[int(index)]
    raise LookupError(f"is of type {_class_name(value)}, neither a dict nor a list, and has no {index!r}")


#: What a key that was no str may look like after the wire.
_OTHER_KEY = re.compile(r"-?[0-9]|true$|false$|null$|NaN$|-?Infinity$")


def _key_text(key: Any) -> str | None:
    """Return what JSON makes of a dict's key; None if JSON has no text for it."""
    if isinstance(key, str):
        return str.__str__(key)
    if key is None:
        return "null"
    if isinstance(key, bool):
        return "true" if key else "false"
    if isinstance(key, float):
        text = float.__repr__(key)
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(text, text)
    if isinstance(key, int):
        try:
            return int.__repr__(key)
        except ValueError as error:
            raise Unencodable("is a key with too many digits") from error
    return None


def _kombu_json() -> ModuleType:
    # Late: only values which are rare in arguments need it, and this module is imported by stores that do without.
    import kombu.utils.json

    return kombu.utils.json


def _sent_by_json(value: Any) -> Any:
    """Return what kombu's encoder puts in the place of an object; the object itself if it has nothing."""
    try:
        return _kombu_json().JSONEncoder().default(value)
    except TypeError:
        return value
    except Exception as error:
        raise Unencodable(f"is of type {_class_name(value)}, whose JSON encoder failed: {error!r}") from error


def _is_envelope(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 2 and "__type__" in value and "__value__" in value


def _open_envelope(value: dict[str, Any]) -> Any:
    """Return what the receiver makes of an envelope; the dict itself if it is none after all."""
    json = _kombu_json()
    try:
        arrived = json.loads(json.dumps(value))
    except Exception:  # not an envelope that kombu could send or read: it can only be somebody's dict
        return value
    return value if _is_envelope(arrived) else arrived


def _call(value: Any, reduce: Callable[[], Any]) -> Any:
    try:
        return reduce()
    except Exception as error:
        raise Unencodable(f"is of type {_class_name(value)}, which could not be turned into JSON: {error!r}") from error


def _class_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"<{_class_name(value)}>"
    return text if len(text) <= 60 else text[:57] + "..."
