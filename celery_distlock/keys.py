"""Arguments → the key of the lock.

``lock_key`` has four forms::

    None                                  "<task>:<64 hex>"   the task's name and all arguments
    ("order_id", "shop")                  "<task>:<64 hex>"   the task's name and these arguments, in any order
    "order:{order_id}"                    "order:7"           exactly this text, so that tasks can share a lock
    lambda order, **_: f"order:{…}"       its result          a pure callable of the call's arguments; None: no lock

Arguments are bound to the task's signature and defaults applied, so ``add(1, 2)``, ``add(1, b=2)``, ``add(a=1, b=2)``
and a default spelled out give one key. Values are taken as they are after the wire; :mod:`~celery_distlock.canonical`
says which of them are the same, and what is hashed.

Fields of a template
    A field is a parameter, or something inside of one: ``{order[id]}``, ``{rows[0][name]}``. There are no attributes,
    because there are no objects after the wire, and no conversions or formats, because they make different values
    look the same. Between two fields stands at least one character that no rendered value contains; then no argument
    can imitate a separator, and different values never make one text. ``:`` ``/`` ``|`` ``#`` are such characters
    anyway; where only ``_ . - @`` stand between two fields, these are escaped in the template's values, too:

    =====================================  ==========================================================================
    int                                    its digits: ``7``, ``-7``
    str                                    itself, everything outside of ``A-Z a-z 0-9 _ . - @`` as ``%`` and two
                                           hexadecimal digits per UTF-8 byte; ``~s`` before it if it is empty or
                                           looks like an int: ``eu-west``, ``a%2Fb``, ``~s7``, ``~s``
    True, False, None                      ``~true``, ``~false``, ``~none``
    float                                  ``~f1.5``
    UUID                                   ``~u12345678-1234-5678-1234-567812345678``
    date                                   ``~d2026-11-20``
    everything else                        ``~h`` and 32 hexadecimal digits: half of the SHA-256 of its encoding
    =====================================  ==========================================================================

Length
    A text of more than 196 bytes (UTF-8) becomes its first 135 bytes, or up to three fewer so as not to cut a
    character, a colon, and the SHA-256 of the whole: 197 to 200 bytes. So no key is longer than 200 bytes, and no
    short text can imitate a shortened one.

Apart from that the literal text of a template, and what a callable returns, go into the key as they are, control
characters and NUL included; stores treat keys as bytes.
"""

from __future__ import annotations

import inspect
import re
import string
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from hashlib import sha256
from typing import Any, NoReturn
from uuid import UUID

from celery_distlock.canonical import LAYOUT, MAX_DEPTH, Unencodable, arrive, encode, find, utf8
from celery_distlock.errors import LockConfigError, LockKeyError

__all__ = ["MAX_BYTES", "KeyFunction", "KeySpec", "compile_key"]

#: What ``lock_key`` may be.
KeySpec = None | str | Sequence[str] | Callable[..., str | None]

#: Positional and keyword arguments of a call → its key, or None: this call needs no lock.
KeyFunction = Callable[[Sequence[Any], Mapping[str, Any]], str | None]

#: No key has more bytes (UTF-8).
MAX_BYTES = 200

_MAX_VERBATIM = MAX_BYTES - 4
_SHORTENED_PREFIX = MAX_BYTES - 1 - 64

_FORMS = "None, a tuple of parameter names, a template such as 'order:{order_id}', or a callable that returns a str"


def compile_key(
    task: str, spec: KeySpec, run: Callable[..., Any], *, bound: bool = False, option: str = "lock_key"
) -> KeyFunction:
    """Turn a ``lock_key`` into a function of the arguments of a call.

    Arguments:
        task: name of the task, or qualified name of a plain function.
        spec: the option's value, one of the four forms.
        run: whose signature the arguments are bound to.
        bound: its first parameter is the task itself and does not count (Celery's ``bind=True``). A bound method has
            lost that parameter already and may be passed with either value.
        option: name of the option, for messages.

    Returns:
        A function of ``(args, kwargs)``. It raises :class:`~celery_distlock.errors.LockKeyError` if these arguments
        make no key: they do not fit the signature, one of them cannot be encoded, a template's field is missing, the
        callable failed or returned neither a str nor None.

    Raises:
        LockConfigError: ``spec`` is of no known form, names something that is no parameter, or is a template whose
            keys could collide.
    """
    origin = _Origin(task, option, spec)
    if not _is_utf8(task):
        raise origin.config_error("the task's name is not valid Unicode")
    if spec is None:
        return _by_arguments(origin, _parameters(origin, run, bound), None)
    if isinstance(spec, str):
        return _by_template(origin, _parameters(origin, run, bound), spec)
    if isinstance(spec, (list, tuple)):
        return _by_arguments(origin, _parameters(origin, run, bound), spec)
    if callable(spec):
        return _by_callable(origin, spec)
    raise origin.config_error(f"is of type {type(spec).__name__}; allowed are {_FORMS}")


class _Origin:
    """Where a key function comes from, for its messages."""

    def __init__(self, task: str, option: str, spec: Any) -> None:
        self.task = task
        self.option = option
        self._spec: str = getattr(spec, "__qualname__", None) or repr(spec)

    def __str__(self) -> str:
        return f"task {self.task!r}, {self.option}={self._spec}"

    def config_error(self, reason: str) -> LockConfigError:
        return LockConfigError(f"{self}: {reason}")

    def key_error(self, reason: str) -> LockKeyError:
        return LockKeyError(f"{self}: {reason}")

    def fail(self, argument: str, error: Exception) -> NoReturn:
        """Raise what the failure to encode or look up an argument means to the caller."""
        if isinstance(error, Unencodable):
            raise self.key_error(f"argument {argument}{error.path} {error.reason}") from error.__cause__
        if isinstance(error, RecursionError):
            raise self.key_error(f"argument {argument} is nested too deeply for what is left of the stack") from None
        raise self.key_error(f"argument {argument} could not be read: {error!r}") from error


# -- binding -----------------------------------------------------------------------------------------------------------


def _parameters(origin: _Origin, run: Callable[..., Any], bound: bool) -> list[inspect.Parameter]:
    try:
        parameters = list(inspect.signature(run).parameters.values())
    except (TypeError, ValueError) as error:
        raise origin.config_error(f"needs the signature of {run!r}, which has none: {error}") from error
    if bound and not inspect.ismethod(inspect.unwrap(run)):
        if not parameters or parameters[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
            raise origin.config_error("belongs to a bound task whose function takes no self")
        if parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:
            del parameters[0]
    return parameters


def _check_names(origin: _Origin, parameters: list[inspect.Parameter], names: Sequence[str]) -> None:
    known = [parameter.name for parameter in parameters]
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return
    for name in names:
        if name not in known:
            allowed = ", ".join(map(repr, known)) or "none, the task takes no arguments"
            raise origin.config_error(f"names {name!r}, which is no parameter of the task; allowed: {allowed}")


def _binder(
    origin: _Origin, parameters: list[inspect.Parameter], names: Sequence[str]
) -> Callable[[Sequence[Any], Mapping[str, Any]], tuple[Any, ...]]:
    """Return a function of ``(args, kwargs)`` that gives the arguments of these names, defaults applied.

    The interpreter itself binds: the arguments are passed to a function with the task's own parameters, which returns
    them. That takes 0.3 µs where :meth:`inspect.Signature.bind` takes 3 µs and more.
    """
    known = {parameter.name for parameter in parameters}
    others = next((each.name for each in parameters if each.kind is inspect.Parameter.VAR_KEYWORD), None)
    results = [name if name in known else f"{others}[{name!r}]" for name in names]
    defaults = {
        f"_{index}": parameter.default
        for index, parameter in enumerate(parameters)
        if parameter.default is not inspect.Parameter.empty
    }
    # Parameter names are identifiers and nothing else of the source comes from outside, except for keys, as literals.
    source = f"lambda {_declare(parameters)}: ({''.join(f'{result}, ' for result in results)})"
    bind: Callable[..., tuple[Any, ...]] = eval(source, defaults)
    bind.__qualname__ = origin.task.rpartition(".")[2] or origin.task

    def bound(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        try:
            return bind(*args, **kwargs)
        except TypeError as error:
            raise origin.key_error(f"cannot be applied to arguments that do not fit the task: {error}") from error
        except KeyError as error:
            raise origin.key_error(f"needs the argument {error.args[0]!r}, which this call does not have") from None

    return bound


_STARS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def _declare(parameters: list[inspect.Parameter]) -> str:
    declared: list[str] = []
    kinds = [parameter.kind for parameter in parameters]
    for index, parameter in enumerate(parameters):
        if (
            parameter.kind is inspect.Parameter.KEYWORD_ONLY
            and inspect.Parameter.VAR_POSITIONAL not in kinds
            and inspect.Parameter.KEYWORD_ONLY not in kinds[:index]
        ):
            declared.append("*")
        star = _STARS.get(parameter.kind, "")
        default = "" if parameter.default is inspect.Parameter.empty else f"=_{index}"
        declared.append(f"{star}{parameter.name}{default}")
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY and kinds[index + 1 : index + 2] != [parameter.kind]:
            declared.append("/")
    return ", ".join(declared)


# -- None and tuples ---------------------------------------------------------------------------------------------------


def _by_arguments(origin: _Origin, parameters: list[inspect.Parameter], chosen: Sequence[Any] | None) -> KeyFunction:
    if chosen is None:
        names = [parameter.name for parameter in parameters]
    else:
        names = list(chosen)
        if not names:
            raise origin.config_error("is empty; for one lock shared by all calls use a template without fields")
        for name in names:
            if not isinstance(name, str):
                raise origin.config_error(f"contains {name!r}, of type {type(name).__name__}; parameter names are str")
            if names.count(name) > 1:
                raise origin.config_error(f"names {name!r} twice")
        _check_names(origin, parameters, names)
    names.sort()
    bind = _binder(origin, parameters, names)
    heads = [encode(name) for name in names]
    start = LAYOUT + b"arguments\n"
    prefix = origin.task + ":"
    verbatim = len(prefix.encode()) + 64 <= _MAX_VERBATIM

    def key(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        values = bind(args, kwargs)
        encoded = [start]
        index = 0
        try:
            for value in values:
                encoded += (heads[index], encode(value))
                index += 1
        except Exception as error:
            origin.fail(names[index], error)
        text = prefix + sha256(b"".join(encoded)).hexdigest()
        return text if verbatim else _bounded(text)

    return key


# -- templates ---------------------------------------------------------------------------------------------------------

_PLAIN = re.compile(r"[A-Za-z0-9_.@-]+").fullmatch
_LIKE_INT = re.compile(r"-?[0-9]+").fullmatch
_UNSAFE = re.compile(rb"[^A-Za-z0-9_.@-]")
#: A character that no rendered value contains, and those that are escaped where a template needs them to separate.
_SEPARATOR = re.compile(r"[^A-Za-z0-9_.@~%-]")
_SPARE_SEPARATORS = frozenset("_.@-")
_FIELD = re.compile(r"([^.\[\]]+)((?:\[[^\[\]]+\])*)").fullmatch
_INDEX = re.compile(r"\[([^\[\]]+)\]")


def _by_template(origin: _Origin, parameters: list[inspect.Parameter], template: str) -> KeyFunction:
    literals, fields = _parse(origin, template)
    names = [parameter.name for parameter in parameters]
    if not fields and template in names:
        raise origin.config_error(
            f"names a parameter, but as a template it is one lock for all calls; write ({template!r},) "
            f"or '{{{template}}}'"
        )
    _check_names(origin, parameters, [root for root, _ in fields])
    spare = {char for literal in literals[1:-1] if not _SEPARATOR.search(literal) for char in literal}
    escapes = {ord(char): f"%{ord(char):02X}" for char in spare & _SPARE_SEPARATORS}
    bind = _binder(origin, parameters, [root for root, _ in fields])
    first, rest = literals[0], literals[1:]
    steps = [(root, indexes, literal) for (root, indexes), literal in zip(fields, rest, strict=True)]

    def key(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        text = first
        for value, (root, indexes, literal) in zip(bind(args, kwargs), steps, strict=True):
            where = root
            try:
                for index in indexes:
                    value = find(value, index)
                    where += f"[{index!r}]"
                rendered = _render(value)
                text += (rendered.translate(escapes) if escapes else rendered) + literal
            except LookupError as error:
                raise origin.key_error(f"cannot be filled: argument {where} {error.args[0]}") from error
            except Exception as error:
                origin.fail(where, error)
        return _bounded(text)

    return key


def _parse(origin: _Origin, template: str) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Split a template into n + 1 literal texts around n fields, each a parameter and the indexes behind it."""
    if not template:
        raise origin.config_error("is empty; a template has a text, a field, or both")
    if not _is_utf8(template):
        raise origin.config_error("is not valid Unicode")
    literals = [""]
    fields: list[tuple[str, list[str]]] = []
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise origin.config_error(f"is a malformed template: {error}") from error
    for literal, field, format_spec, conversion in pieces:
        literals[-1] += literal
        if field is None:
            continue
        if conversion or format_spec:
            raise origin.config_error(
                f"has a conversion or a format on {field!r}; different values could make one key, so write {{{field}}}"
            )
        if not field or field[0].isdigit() or field[0] == "[":
            raise origin.config_error(f"has the positional field {{{field}}}; fields are named, as in {{order_id}}")
        match = _FIELD(field)
        if match is None:
            if "." in field.partition("[")[0]:
                raise origin.config_error(
                    f"asks for an attribute in {{{field}}}; arguments are plain data after the wire, so use an index, "
                    f"as in {{order[id]}}, or a callable"
                )
            raise origin.config_error(f"has the malformed field {{{field}}}; indexes are written as in {{order[id]}}")
        if fields and not _SEPARATOR.search(literals[-1]) and not _SPARE_SEPARATORS & set(literals[-1]):
            raise origin.config_error(
                f"has nothing between {{{_spell(*fields[-1])}}} and {{{field}}} that a value cannot contain, so "
                f"different arguments could make one key; put one of : / | # - _ between them"
            )
        fields.append((match[1], _INDEX.findall(match[2])))
        literals.append("")
    return literals, fields


def _spell(root: str, indexes: list[str]) -> str:
    return root + "".join(f"[{index}]" for index in indexes)


def _render(value: Any) -> str:
    if type(value) is str:
        if _PLAIN(value):
            return "~s" + value if _LIKE_INT(value) else value
        return _UNSAFE.sub(_percent, utf8(value)).decode("ascii") or "~s"
    if type(value) is int and value.bit_length() <= 256:
        return repr(value)
    return _render_other(value)


def _render_other(value: Any) -> str:
    for _ in range(MAX_DEPTH):
        value, before = arrive(value), value
        if value is before:
            break
    if value is None:
        return "~none"
    if isinstance(value, bool):
        return "~true" if value else "~false"
    if isinstance(value, str):
        return _render(str.__str__(value))
    if isinstance(value, int) and value.bit_length() <= 256:
        return int.__repr__(value)
    if isinstance(value, float):
        return "~f" + _render(float.__repr__(value or 0.0))
    if isinstance(value, UUID):
        return f"~u{UUID(int=value.int)}"
    if isinstance(value, date) and not isinstance(value, datetime):
        return f"~d{date.isoformat(value)}"
    return "~h" + sha256(LAYOUT + b"value\n" + encode(value)).hexdigest()[:32]


def _percent(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % match[0][0]


# -- callables ---------------------------------------------------------------------------------------------------------


def _by_callable(origin: _Origin, spec: Callable[..., str | None]) -> KeyFunction:
    if inspect.iscoroutinefunction(spec) or inspect.isgeneratorfunction(spec) or inspect.isasyncgenfunction(spec):
        raise origin.config_error("is a coroutine or generator function; a plain function returning a str is needed")

    def key(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        try:
            text = spec(*args, **kwargs)
        except Exception as error:
            raise origin.key_error(f"raised {error!r}") from error
        if text is None:
            return None
        if not isinstance(text, str):
            raise origin.key_error(f"returned {type(text).__name__}; a str is needed, or None for no lock")
        if not text:
            raise origin.key_error("returned an empty text; return None for no lock")
        try:
            return _bounded(str.__str__(text))
        except UnicodeEncodeError as error:
            raise origin.key_error(f"returned a text that is not valid Unicode: {error}") from error

    return key


# -- texts -------------------------------------------------------------------------------------------------------------


def _bounded(text: str) -> str:
    if len(text) <= _MAX_VERBATIM and text.isascii():
        return text
    data = text.encode()
    if len(data) <= _MAX_VERBATIM:
        return text
    return f"{data[:_SHORTENED_PREFIX].decode(errors='ignore')}:{sha256(data).hexdigest()}"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
