"""Values of an untrusted program, as bytes that admit no code.

The bytes are a restricted pickle. JSON loses tuples and sets, and fails on integers of millions of bits;
`ast.literal_eval` knows builtin types only and is slow; a common pickle runs code. The reader admits one name,
`tagged`, which makes an inert pair of a tag and data, and builds the values from these pairs by the tables below; every
other name is refused. Reading can still use memory and time without bound: the caller bounds both.

A value of a type that the tables lack arrives as `Opaque`, which equals nothing, or as a stand-in, which equals the
same plain data and has another type: a named tuple, an enumeration's member, a view, a wrapper of `collections` or a
number of sympy passes as it would in its own process. None of 870 solutions of HumanEval and MBPP returned one.
"""

from __future__ import annotations

import collections
import datetime
import io
import math
import numbers
import pickle
import re
import sys
import types
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, ItemsView, KeysView, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, SupportsFloat

import numpy as np

FORMAT = 3  # number of this format, for values that are kept in files
CONSTRUCTOR = (__name__, "tagged")
NUMPY_TYPE = re.compile(r"[<>|=][biufcSUmM][0-9]{1,9}(\[[0-9]{0,6}[a-zA-Z]{1,2}\])?")
Tagged = tuple[str, object]
# Any: each entry of a table takes apart, or builds, values of one type, which is known only when they arrive.
Convert = Callable[[Any], object]


class DecodeError(ValueError):
    """Bytes that `encode` does not write."""


class Opaque:
    """An instance of a class that the tables lack: it exists, and equals nothing."""

    __slots__ = ("type_name",)

    def __init__(self, type_name: str) -> None:
        self.type_name = type_name

    def __eq__(self, _: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Decoded:
    """A value, and whether it holds nothing opaque (`known`), and nothing but builtin types (`plain`)."""

    value: Any  # of any type that the tables have
    known: bool
    plain: bool


def tagged(tag: str, data: object) -> Tagged:
    """The name that the pickles contain; called only when one is read by the common unpickler."""
    raise DecodeError(f"{tag} with {type(data).__name__} was read as a common pickle")


def encode(value: object) -> bytes:
    """Runs in the same process as the program, so the bytes prove nothing. Raises whatever the value's class raises."""
    stream = io.BytesIO()
    _Writer(stream, protocol=5).dump(value)
    return stream.getvalue()


def encode_opaque(value: object) -> bytes:
    return encode(Opaque(type(value).__name__))


def decode(content: bytes | bytearray) -> object:
    """The value. Raises DecodeError where the bytes hold none, MemoryError or RecursionError where it is too large."""
    return decode_and_check(content).value


def decode_and_check(content: bytes | bytearray) -> Decoded:
    """Raises like `decode`."""
    reader, builder = _Reader(io.BytesIO(content)), _Builder()
    try:
        value = reader.load()
        if reader.has_tags:
            value = builder.build(value)
        return Decoded(value, known=not builder.found_opaque, plain=not reader.has_tags)
    except (  # what unpickling and the constructors below raise for bytes that `encode` does not write
        pickle.UnpicklingError,
        EOFError,
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        ArithmeticError,
        BufferError,
        SystemError,  # from numpy, where it accepts a value that Python does not allow
    ) as why:
        raise DecodeError(f"{type(why).__name__}: {why}") from None


class _TaggedPair(Tagged):
    """Has no attributes that a pickle could set."""

    __slots__ = ()


class _Constructor:
    """Stands for `tagged` while a pickle is read: it can be called, and a pickle cannot change it."""

    __slots__ = ()

    def __call__(self, tag: str, data: object) -> _TaggedPair:
        return _TaggedPair((tag, data))


class _Reader(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.has_tags = False

    def find_class(self, module: str, name: str) -> _Constructor:
        if (module, name) != CONSTRUCTOR:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted")
        self.has_tags = True
        return _Constructor()


class _Writer(pickle.Pickler):
    def reducer_override(self, value: object) -> Any:
        """Called for every value whose type is not exactly a builtin one."""
        return NotImplemented if value is tagged else (tagged, _take_apart(value))


class _Builder:
    """Builds values from tagged pairs, wherever these are. Parts that are shared stay shared; a value that contains
    itself is refused."""

    def __init__(self) -> None:
        self._built: dict[int, object] = {}
        self._unfinished: set[int] = set()
        self.found_opaque = False

    def build(self, value: object) -> object:
        if not isinstance(value, list | tuple | dict | set | frozenset):
            return value
        key = id(value)
        if key in self._unfinished:
            raise DecodeError("a value that contains itself")
        if key not in self._built:
            self._unfinished.add(key)
            self._built[key] = self._build_new(value)
            self._unfinished.discard(key)
        return self._built[key]

    def _build_new(
        self, value: list[object] | tuple[object, ...] | dict[object, object] | set[object] | frozenset[object]
    ) -> object:
        if isinstance(value, _TaggedPair):
            tag, data = value
            self.found_opaque |= tag == "opaque"
            return BUILDERS[tag](self.build(data))
        if isinstance(value, dict):
            return {self.build(key): self.build(item) for key, item in value.items()}
        return type(value)(self.build(item) for item in value)


def _take_apart(value: object) -> Tagged:
    kind = type(value)
    if type(value) is Opaque:
        return "opaque", value.type_name
    if kind in EXACT_TYPES:
        return kind.__name__, EXACT_TYPES[kind][0](value)
    if isinstance(value, np.generic | np.ndarray) and not value.dtype.fields:
        return _take_array_apart(value)
    for extended, parts in DATE_TYPES.items():
        if isinstance(value, extended):
            return _take_date_apart(extended, value, parts)
    return _stand_in(value) or ("opaque", kind.__name__)


def _take_array_apart(value: np.generic | np.ndarray) -> Tagged:
    if np.any(getattr(value, "mask", False)):  # a masked element equals nothing
        return "opaque", type(value).__name__
    if value.dtype.hasobject:
        return "objects", (value.shape, tuple(value.ravel().tolist()))
    name = "scalar" if isinstance(value, np.generic) else "array"
    return name, (value.dtype.str, value.shape, np.ascontiguousarray(value).tobytes())


def _take_date_apart(extended: type, value: object, parts: Sequence[str]) -> Tagged:
    """Its numbers, read by the class that is extended, and its offset from UTC. A time zone of the program's own class,
    which could answer differently each time, makes it opaque."""
    zone = None if extended is datetime.date else _read(extended, "tzinfo", value)
    if zone is not None and type(zone) not in (datetime.timezone, zoneinfo.ZoneInfo):
        return "opaque", type(value).__name__
    offset = None if zone is None else zone.utcoffset(value if extended is datetime.datetime else None)
    return extended.__name__, (tuple(_read(extended, part, value) for part in parts), offset)


def _read(extended: type, attribute: str, value: object) -> Any:
    """An attribute as the extended class defines it, which the class of `value` may have overridden."""
    return getattr(extended, attribute).__get__(value)


def _time_zone(offset: datetime.timedelta | None) -> datetime.timezone | None:
    return None if offset is None else datetime.timezone(offset)


def _build_array(data: tuple[str, tuple[int, ...], bytes]) -> np.ndarray:
    name, shape, content = data
    if not NUMPY_TYPE.fullmatch(name):
        raise DecodeError(f"{name!r} is not a plain type of numpy")
    kind = np.dtype(name)
    kind = kind if kind.itemsize else np.dtype(f"{name[:2]}1")  # numpy's empty strings have room for a character
    if math.prod(shape) * kind.itemsize != len(content):
        raise DecodeError("an array whose content does not have its size")
    if kind.kind == "U" and np.frombuffer(content, f"{name[0]}u4").max(initial=0) > sys.maxunicode:
        raise DecodeError("a string with invalid characters")  # numpy would fail on it later, anywhere
    return np.ndarray(shape, kind, buffer=bytearray(content) or bytearray(1)).copy()


def _build_objects(data: tuple[tuple[int, ...], Sequence[object]]) -> np.ndarray:
    shape, items = data
    if math.prod(shape) != len(items):
        raise DecodeError("an array whose content does not have its size")
    filled = np.empty(len(items), dtype=object)
    for index, item in enumerate(items):
        filled[index] = item
    return filled.reshape(shape)


def _attributes(*names: str) -> Convert:
    return lambda value: tuple(getattr(value, name) for name in names)


def _unpacked(kind: Callable[..., object]) -> Convert:
    return lambda data: kind(*data)


DAY, TIME = ("year", "month", "day"), ("hour", "minute", "second", "microsecond")
# Type -> how it is taken apart, and how it is built.
EXACT_TYPES: Mapping[type, tuple[Convert, Convert]] = {
    complex: (_attributes("real", "imag"), _unpacked(complex)),
    range: (_attributes("start", "stop", "step"), _unpacked(range)),
    slice: (_attributes("start", "stop", "step"), _unpacked(slice)),
    Counter: (dict, Counter),
    OrderedDict: (lambda value: list(value.items()), OrderedDict),
    defaultdict: (dict, lambda data: defaultdict(None, data)),
    deque: (lambda value: (list(value), value.maxlen), _unpacked(deque)),
    Fraction: (_attributes("numerator", "denominator"), _unpacked(Fraction)),
    Decimal: (str, Decimal),
    datetime.timedelta: (_attributes("days", "seconds", "microseconds"), _unpacked(datetime.timedelta)),
}
# Subclasses too, as they equal the same dates. The first that fits is taken: a datetime is a date.
DATE_TYPES = {datetime.datetime: (*DAY, *TIME), datetime.date: DAY, datetime.time: TIME}

# Stand-ins. Each builtin type has a subclass that adds nothing; the methods of the builtin type, which a subclass of
# the program cannot override, read the data of what extends it.
EXTENDED_TYPES: Mapping[type, Convert] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    bytes: lambda value: bytes(memoryview(value)),
    tuple: lambda value: tuple(tuple.__iter__(value)),
    list: lambda value: list(list.__iter__(value)),
    dict: lambda value: dict(dict.items(value)),
    set: lambda value: set(set.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
}
# Exactly these types, since a subclass may have another equality -> the builtin type that they equal, and their data.
# Collected when this module is loaded: a program can replace the names in `collections`.
WRAPPER_TYPES: Mapping[type, tuple[type, Convert]] = {
    collections.UserList: (list, lambda value: list(value.data)),
    collections.UserDict: (dict, lambda value: dict(value.data)),
    collections.UserString: (str, lambda value: str(value.data)),
    collections.ChainMap: (dict, dict),
    types.MappingProxyType: (dict, dict),
    KeysView: (set, set),
    ItemsView: (set, set),
    type({}.keys()): (set, set),
    type({}.items()): (set, set),
    type(OrderedDict().keys()): (set, set),
    type(OrderedDict().items()): (set, set),
}
SYMPY_BOOLEANS = tuple(("sympy.logic.boolalg", name) for name in ("BooleanTrue", "BooleanFalse"))


def _number_type(name: str, base: type[int] | type[float], equal_types: tuple[type, ...]) -> type:
    """A stand-in for a number that equals only numbers of some types, as those of sympy since 1.13 do."""

    def equals(self: object, other: object) -> bool:
        return isinstance(other, equal_types) and base.__eq__(self, other) is True  # type: ignore[operator]

    return type(name, (base,), {"__slots__": (), "__eq__": equals, "__hash__": base.__hash__})


STAND_INS: Mapping[str, type] = {
    **{f"foreign {kind.__name__}": type("Foreign", (kind,), {"__slots__": ()}) for kind in EXTENDED_TYPES},
    "integer that equals no float": _number_type("NotFloat", int, (int,)),  # sympy.Integer
    "float that equals no integer": _number_type("OnlyFloat", float, (float,)),  # sympy.Float
    "integer that equals only a bool": _number_type("OnlyBool", int, (bool,)),  # sympy.true
    "number that equals none": _number_type("NoNumber", float, ()),  # sympy.Rational(1, 2): can be calculated with
}
BUILDERS: Mapping[str, Convert] = {
    **{kind.__name__: build for kind, (_, build) in EXACT_TYPES.items()},
    **STAND_INS,
    "datetime": lambda data: datetime.datetime(*data[0]).replace(tzinfo=_time_zone(data[1])),
    "date": lambda data: datetime.date(*data[0]),
    "time": lambda data: datetime.time(*data[0]).replace(tzinfo=_time_zone(data[1])),
    "opaque": lambda name: Opaque(str(name)[:100]),
    "scalar": lambda data: _build_array(data)[()],
    "array": _build_array,
    "objects": _build_objects,
}


def _stand_in(value: object) -> Tagged | None:
    """The stand-in for a value, found by asking the value; None where no plain data equals it. A program that answers
    falsely only sends another value."""
    kind = type(value)
    if kind in WRAPPER_TYPES:
        equal, data_of = WRAPPER_TYPES[kind]
        return f"foreign {equal.__name__}", data_of(value)
    if type(value) is memoryview:  # of other formats or dimensions it equals no bytes
        return ("foreign bytes", value.tobytes()) if (value.format, value.ndim) == ("B", 1) else None
    for extended, data_of in EXTENDED_TYPES.items():
        if isinstance(value, extended):
            return f"foreign {extended.__name__}", data_of(value)
    if (kind.__module__, kind.__name__) in SYMPY_BOOLEANS:
        return "integer that equals only a bool", int(bool(value))
    is_sympy_real = kind.__module__.startswith("sympy.") and getattr(value, "is_extended_real", False)  # such as pi
    is_real = isinstance(value, numbers.Real) or is_sympy_real
    return _number_stand_in(value) if is_real and isinstance(value, SupportsFloat) else None


def _number_stand_in(value: SupportsFloat) -> Tagged:
    if isinstance(value, numbers.Integral):
        return ("foreign int" if _equals_its_float(value) else "integer that equals no float"), int(value)
    number = float(value)
    if not _equals_its_float(value):
        return "number that equals none", number
    is_whole = number.is_integer() and value == int(number)
    return ("foreign float" if is_whole else "float that equals no integer"), number


def _equals_its_float(value: SupportsFloat) -> bool:
    try:
        return bool(value == float(value))
    except OverflowError:  # an integer beyond the floats
        return True
