"""What an option may be, and how an error says that it is not.

A :class:`Rule` is the check of one option; a :class:`Layer` holds the checked options of one place (an app, a task, a
call) together with the way their author wrote them, so that an error found later can still repeat it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from celery_distlock.errors import LockConfigError

__all__ = [
    "Layer",
    "Rule",
    "Spelling",
    "anything",
    "choice",
    "flag",
    "integer",
    "keywords",
    "parameters",
    "seconds",
    "text",
    "unknown",
]

#: A longer time is a mistake of unit, and would overflow dates and the stores' own clocks.
_LONGEST = 366 * 86_400.0


class Rule(NamedTuple):
    """What the values of one option must be."""

    #: Completes the sentence "allowed: …".
    allowed: str
    #: Returns the value as it is stored; raises TypeError, ValueError or OverflowError for one that is not allowed.
    convert: Callable[[Any], Any]


def seconds(least: float | None = None, *, optional: bool = False) -> Rule:
    """Allow a finite time, as int or float: at least ``least``, or above 0."""

    def convert(value: Any) -> float | None:
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError
        seconds = float(value)
        # "not >=" instead of "<": a NaN fails every comparison.
        if not (seconds > 0 if least is None else seconds >= least) or seconds > _LONGEST:
            raise ValueError
        return seconds

    bound = "above 0" if least is None else f"of at least {least:g}"
    none = "None, or " if optional else ""
    return Rule(f"{none}a finite number of seconds {bound} and at most {_LONGEST:.0f}", convert)


def integer(least: int, most: int | None = None, *, or_callable: bool = False) -> Rule:
    """Allow an int between two bounds."""

    def convert(value: Any) -> Any:
        if or_callable and callable(value):
            return value
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError
        if value < least or (most is not None and value > most):
            raise ValueError
        return value

    upper = "" if most is None else f" and at most {most}"
    return Rule(f"an int of at least {least}{upper}{', or a callable' if or_callable else ''}", convert)


def choice(*names: str, or_callable: bool = False, optional: bool = False) -> Rule:
    """Allow one of these names."""

    def convert(value: Any) -> Any:
        if value is None and optional:
            return None
        if or_callable and callable(value):
            return value
        if not isinstance(value, str) or value not in names:
            raise ValueError
        return value

    none = "None or " if optional else ""
    return Rule(none + " or ".join(map(repr, names)) + (", or a callable" if or_callable else ""), convert)


def flag() -> Rule:
    """Allow True and False."""

    def convert(value: Any) -> bool:
        if not isinstance(value, bool):
            raise TypeError
        return value

    return Rule("True or False", convert)


def anything() -> Rule:
    """Allow every value."""
    return Rule("anything", lambda value: value)


def text(allowed: str, pattern: str, *, optional: bool = False) -> Rule:
    """Allow a str that the pattern matches as a whole, described by ``allowed``."""

    def convert(value: Any) -> str | None:
        if value is None and optional:
            return None
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError
        return value

    return Rule(allowed, convert)


def parameters() -> Rule:
    """Allow what ``lock_key`` may be, by its type only; the names are compared with the task's signature elsewhere."""

    def convert(value: Any) -> Any:
        if value is None or isinstance(value, str) or callable(value):
            return value
        if not isinstance(value, Sequence) or not value or not all(isinstance(name, str) for name in value):
            raise TypeError
        return tuple(value)

    return Rule("None, a template (str), a tuple or list of parameter names, or a callable", convert)


def keywords(allowed: str) -> Rule:
    """Allow a mapping whose keys are str, described by ``allowed``."""

    def convert(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise TypeError
        return dict(value)

    return Rule(allowed, convert)


class Spelling(NamedTuple):
    """How the user wrote one option: what stands before its value, and after it."""

    before: str
    after: str = ""

    def show(self, value: Any) -> str:
        """Return the option as written, cut short, and without the password of a URL."""
        shown = repr(value)
        shown = re.sub(r"(://[^/\s:@]*):\S*@", r"\1:***@", shown)
        return self.before + (shown if len(shown) <= 200 else shown[:197] + "…") + self.after


class Layer(dict[str, Any]):
    """Checked options of one place (field → value) that remember where they were written, and how."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.spellings: dict[str, Spelling] = {}

    def take(self, name: str, value: Any, rule: Rule, spelling: Spelling) -> None:
        """Check one value and store it.

        Raises:
            LockConfigError: the rule does not allow it.
        """
        try:
            self[name] = rule.convert(value)
        except (TypeError, ValueError, OverflowError):
            raise LockConfigError(f"{self.where}: {spelling.show(value)} is refused; allowed: {rule.allowed}") from None
        self.spellings[name] = spelling

    def show(self, name: str) -> str:
        """Return an option of this layer as its author wrote it."""
        return self.spellings[name].show(self[name])


def unknown(where: str, written: str, name: str, allowed: Iterable[str]) -> LockConfigError:
    """Return the error for an option that does not exist, naming the one that was probably meant."""
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return LockConfigError(f"{where}: there is no option {written}; {hint}allowed: {', '.join(names)}")
