"""The keys that other versions of this library compute, byte for byte.

During a rolling deployment old and new workers run side by side, and exclude each other only if both compute the same
keys. So **no line of golden_keys.json may change**. Lines are added for new types and forms. Whoever must change
what a key is made of gives ``celery_distlock.canonical.LAYOUT`` a new number, writes in the change log that this
version must not run beside older ones, and only then replaces the file by what
``python -m tests.unit.test_keys_golden`` prints.
"""

from __future__ import annotations

import enum
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from celery_distlock.canonical import LAYOUT
from celery_distlock.keys import KeySpec, compile_key

GOLDEN = Path(__file__).with_name("golden_keys.json")
TASK = "shop.charge"


class Colour(enum.Enum):
    RED = "r"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Size(enum.IntEnum):
    SMALL = 1


class Country(str, enum.Enum):
    FRANCE = "fr"


@dataclass
class Address:
    street: str
    number: int


class Model:
    def __json__(self) -> Any:
        return {"pk": 7}


# A fixed module name: the same file may be imported as a script.
for _kind in (Colour, Right, Address):
    _kind.__module__ = "golden"


def one(value: Any) -> None: ...


def charge(order_id: Any, amount: Any = 5, *rest: Any, shop: Any = "main", **more: Any) -> None: ...


_cest = timezone(timedelta(hours=2))

VALUES: dict[str, Any] = {
    "None": None,
    "True": True,
    "False": False,
    "int 0": 0,
    "int 1": 1,
    "int -255": -255,
    "int 2**300": 2**300,
    "float 0.0": 0.0,
    "float 1.0": 1.0,
    "float 0.1": 0.1,
    "float -1.5e-300": -1.5e-300,
    "float 1e16": 1e16,
    "float nan": math.nan,
    "float inf": math.inf,
    "float -inf": -math.inf,
    "str empty": "",
    "str abc": "abc",
    "str 1": "1",
    "str of every escape": "a:b/c%d~e{f} é😀\n\0",
    "str lone surrogate": "\ud800",
    "bytes": b"abc",
    "bytes not UTF-8": b"\xff\x00",
    "bytearray": bytearray(b"abc"),
    "list empty": [],
    "list": [1, "a", None, [2.5]],
    "tuple": (1, "a", None, (2.5,)),
    "dict empty": {},
    "dict": {"b": 1, "a": [2], "ä": {"c": None}},
    "dict of JSON keys": {3: "a", 2.5: "b", None: "c", True: "d", math.inf: "e"},
    "dict of other keys": {UUID(int=7): 1, (1, 2): 2, b"a": 3},
    "set empty": set(),
    "set": {"a", 1, None, (1, 2)},
    "frozenset": frozenset({"a", 1, None, (1, 2)}),
    "datetime naive": datetime(2026, 11, 20, 10, 30, 15, 123456),
    "datetime UTC": datetime(2026, 11, 20, 10, 30, tzinfo=timezone.utc),
    "datetime +02:00": datetime(2026, 11, 20, 10, 30, tzinfo=_cest),
    "date": date(2026, 11, 20),
    "time naive": time(10, 30, 15, 5),
    "time +02:00": time(1, 30, tzinfo=_cest),
    "Decimal 1.50": Decimal("1.50"),
    "Decimal -3E+7": Decimal("-3E+7"),
    "Decimal 0": Decimal("0.00"),
    "Decimal NaN": Decimal("NaN"),
    "Decimal Infinity": Decimal("-Infinity"),
    "UUID": UUID("12345678-1234-5678-1234-567812345678"),
    "Enum": Colour.RED,
    "Flag": Right.READ | Right.WRITE,
    "IntEnum": Size.SMALL,
    "str Enum": Country.FRANCE,
    "dataclass": Address("High Street", 7),
    "__json__": Model(),
}

FORMS: dict[str, tuple[KeySpec, tuple[Any, ...], dict[str, Any]]] = {
    "all arguments, defaults": (None, (7,), {}),
    "all arguments, more": (None, (7, 5, 6), {"shop": "main", "note": "x"}),
    "chosen": (("order_id", "shop"), (7,), {}),
    "chosen among keywords": (("note",), (7,), {"note": "x"}),
    "template": ("order:{order_id}", (7,), {}),
    "template of two": ("{shop}/{order_id}", ("a/b",), {}),
    "template of indexes": ("{order_id[rows][0][id]}|{rest}", ({"rows": [{"id": "x"}]},), {}),
    "template without fields": ("nightly {{all}}", (7,), {}),
    "template, long": ("order:{order_id}", ("é" * 500,), {}),
    "callable": (lambda order_id: f"order:{order_id}", (7,), {}),
    "callable, no lock": (lambda order_id: None, (7,), {}),
    "callable, 196 bytes": (lambda order_id: "x" * 196, (7,), {}),
    "callable, 197 bytes": (lambda order_id: "x" * 197, (7,), {}),
    "callable, cut inside a character": (lambda order_id: "xx" + "😀" * 60, (7,), {}),
}


def _computed() -> dict[str, Any]:
    by_hash = compile_key(TASK, None, one)
    by_template = compile_key(TASK, "{value}", one)
    return {
        "layout": LAYOUT.decode().strip(),
        "values": {name: [by_hash((value,), {}), by_template((value,), {})] for name, value in VALUES.items()},
        "forms": {name: compile_key(TASK, spec, charge)(args, kwargs) for name, (spec, args, kwargs) in FORMS.items()},
        "long task name": compile_key("pkg." * 60 + "charge", None, charge)((7,), {}),
    }


def _spelled(computed: dict[str, Any]) -> str:
    return json.dumps(computed, indent=1, ensure_ascii=True) + "\n"


def test_the_golden_file_is_what_this_version_computes_byte_for_byte() -> None:
    assert GOLDEN.read_text("ascii") == _spelled(_computed())


@pytest.mark.parametrize("name", VALUES)
def test_no_key_of_a_value_has_changed(name: str) -> None:
    assert _computed()["values"][name] == json.loads(GOLDEN.read_text("ascii"))["values"][name]


@pytest.mark.parametrize("name", FORMS)
def test_no_key_of_a_form_has_changed(name: str) -> None:
    assert _computed()["forms"][name] == json.loads(GOLDEN.read_text("ascii"))["forms"][name]


def test_keys_do_not_depend_on_the_seed_of_hashes(in_another_process: Callable[[str], str]) -> None:
    assert in_another_process("1") == in_another_process("2") == GOLDEN.read_text("ascii")


@pytest.fixture
def in_another_process() -> Callable[[str], str]:
    def run(seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-m", "tests.unit.test_keys_golden"]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60).stdout

    return run


if __name__ == "__main__":
    print(_spelled(_computed()), end="")
