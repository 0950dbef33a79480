"""Values of types that the wire has no place for, which equal plain data all the same: what stands for them.

An instance of a subclass goes out as what it extends; a view, a wrapper or another library's number as the plain value
that it equals, found by asking it on the sandbox's side, where a lie only sends another value. What arrives is of the
classes here: equal to the same data, of another type where EvalPlus compares types, and no stranger's equality in them.
"""

from __future__ import annotations

import collections
import datetime
import numbers
import types
import zoneinfo
from collections.abc import Callable, ItemsView, KeysView, Mapping
from typing import Any


class ForeignInt(int):
    __slots__ = ()


class ForeignFloat(float):
    __slots__ = ()


class ForeignStr(str):
    __slots__ = ()


class ForeignBytes(bytes):
    __slots__ = ()


class ForeignTuple(tuple[Any, ...]):
    __slots__ = ()


class ForeignList(list[Any]):
    __slots__ = ()


class ForeignDict(dict[Any, Any]):
    __slots__ = ()


class ForeignSet(set[Any]):
    __slots__ = ()


class ForeignFrozenset(frozenset[Any]):
    __slots__ = ()


class NoFloat(ForeignInt):
    """Such as sympy's Integer since 1.13: 2, and not 2.0."""

    __slots__ = ()
    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        return not isinstance(other, float) and int.__eq__(self, other) is True


class OnlyFloat(ForeignFloat):
    """Such as sympy's Float since 1.13: 2.0, and not 2."""

    __slots__ = ()
    __hash__ = float.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and float.__eq__(self, other)


class OnlyBool(ForeignInt):
    """Such as sympy's true: True, and not 1."""

    __slots__ = ()
    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, bool) and int.__eq__(self, other)


class NoNumber(ForeignFloat):
    """Such as sympy's Rational(1, 2) since 1.13: to be calculated with, and equal to no float."""

    __slots__ = ()
    __hash__ = float.__hash__

    def __eq__(self, other: object) -> bool:
        return False


# What is extended -> what stands for it, and its data by methods that a subclass cannot override.
EXTENDED: Mapping[type, tuple[type, Callable[[Any], Any]]] = {
    int: (ForeignInt, int.__int__),
    float: (ForeignFloat, float.__float__),
    str: (ForeignStr, str.__str__),
    bytes: (ForeignBytes, lambda value: bytes(memoryview(value))),
    tuple: (ForeignTuple, lambda value: tuple(tuple.__iter__(value))),
    list: (ForeignList, lambda value: list(list.__iter__(value))),
    dict: (ForeignDict, lambda value: dict(dict.items(value))),
    set: (ForeignSet, lambda value: set(set.__iter__(value))),
    frozenset: (ForeignFrozenset, lambda value: frozenset(frozenset.__iter__(value))),
}
# Of exactly these types: a subclass may have another equality. Names in `collections` may be others by then.
WRAPPERS: Mapping[type, tuple[type, Callable[[Any], Any]]] = {
    collections.UserList: (ForeignList, lambda value: list(value.data)),
    collections.UserDict: (ForeignDict, lambda value: dict(value.data)),
    collections.UserString: (ForeignStr, lambda value: str(value.data)),
    collections.ChainMap: (ForeignDict, dict),
    types.MappingProxyType: (ForeignDict, dict),
    KeysView: (ForeignSet, set),
    ItemsView: (ForeignSet, set),
    type({}.keys()): (ForeignSet, set),
    type({}.items()): (ForeignSet, set),
    type(collections.OrderedDict().keys()): (ForeignSet, set),
    type(collections.OrderedDict().items()): (ForeignSet, set),
}
STANDING_IN = (
    *(kind for kind, _ in EXTENDED.values()),
    *(NoFloat, OnlyFloat, OnlyBool, NoNumber),
)
FIXED_ZONES = (datetime.timezone, zoneinfo.ZoneInfo)
SYMPY_BOOLEANS = tuple(("sympy.logic.boolalg", name) for name in ("BooleanTrue", "BooleanFalse"))


def plain(value: Any) -> tuple[type, Any] | None:
    """What stands for a value, and of what it is to be made; None where nothing plain equals it."""
    kind = type(value)
    if kind in WRAPPERS:
        stand_in, data = WRAPPERS[kind]
        return stand_in, data(value)
    if kind is memoryview:  # of other formats or dimensions it equals no bytes
        return (ForeignBytes, value.tobytes()) if (value.format, value.ndim) == ("B", 1) else None
    for extended, (stand_in, data) in EXTENDED.items():
        if isinstance(value, extended):
            return stand_in, data(value)
    if isinstance(value, numbers.Real):
        return _number(value)
    if (kind.__module__, kind.__name__) in SYMPY_BOOLEANS:
        return OnlyBool, int(bool(value))
    if kind.__module__.startswith("sympy.") and getattr(value, "is_extended_real", False):
        return _number(value)  # pi, sqrt(2), infinity
    return None


def _number(value: Any) -> tuple[type, Any]:
    """By what the number itself says that it equals."""
    if isinstance(value, numbers.Integral):
        return (ForeignInt if _equals_float(value) else NoFloat), int(value)
    number = float(value)
    if not _equals_float(value):
        return NoNumber, number
    return (ForeignFloat if number.is_integer() and value == int(number) else OnlyFloat), number


def _equals_float(value: Any) -> bool:
    try:
        return bool(value == float(value))
    except OverflowError:  # a large integer, which no float is near to
        return True
