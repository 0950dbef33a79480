"""Values out of the sandbox, as plain data: what an honest solution returns arrives as it was, and no code comes along.

The bytes are a pickle, as nothing else keeps tuples, sets, huge integers and speed; but of a restricted kind, which is
ours: the reader admits one constructor, `tagged`, that makes an inert pair, and only a whole value that was read is
built up, by the tables below. Any other name in a pickle is refused. What has no place in the tables becomes `Opaque`,
which equals nothing, or what `stand_ins.py` has for it: instances of subclasses arrive as what they extend, without the
subclass' own idea of equality.

Reading can still take memory and time without end; whoever reads bounds both (`worker.py`).
"""

from __future__ import annotations

import datetime
import io
import math
import pickle
import re
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np

from codetune.sandbox.stand_ins import FIXED_ZONES, STANDING_IN, plain

FORMAT = 2  # of what is kept in files: another one is another number
CONSTRUCTOR = ("codetune.sandbox.serialization", "tagged")
NUMPY_TYPE = re.compile(r"[<>|=][biufcSUmM][0-9]{1,9}(\[[0-9]{0,6}[a-zA-Z]{1,2}\])?")


class WireError(ValueError):
    """Bytes that no value of ours was written as."""


class Opaque:
    """Something that is there, and equals nothing: an instance of a class that the wire does not know."""

    __slots__ = ("type_name",)

    def __init__(self, type_name: str) -> None:
        self.type_name = type_name

    def __eq__(self, _: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 0


def tagged(tag: str, data: Any) -> Any:
    """Named in pickles; never called by that name."""
    raise WireError(f"{tag} with {type(data).__name__} was read as a common pickle")


def encode(value: Any) -> bytes:
    """Runs beside untrusted code, so nothing is proved by what it writes."""
    stream = io.BytesIO()
    _Writer(stream, protocol=5).dump(value)
    return stream.getvalue()


def encode_opaque(value: object) -> bytes:
    return encode(Opaque(type(value).__name__))


def decode(content: bytes | bytearray) -> Any:
    """The value; WireError where there is none, and MemoryError or RecursionError where it is too large."""
    return decode_and_tell(content)[0]


def decode_and_tell(content: bytes | bytearray) -> tuple[Any, bool]:
    """The value, and whether all of it is known, nothing opaque."""
    reader, builder = _Reader(io.BytesIO(content)), _Builder()
    try:
        value = reader.load()
        return (builder.build(value) if reader.has_tags else value), not builder.found_opaque
    # What unpickling and the constructors below raise for bytes that nobody wrote honestly.
    except (
        pickle.UnpicklingError,
        EOFError,
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        ArithmeticError,
        BufferError,
        SystemError,  # numpy's, in some places where Python does not allow a value
    ) as why:
        raise WireError(f"{type(why).__name__}: {why}") from None


class _Inert(tuple[str, Any]):
    """A tag and its data. Without attributes, so that a pickle cannot give it any."""

    __slots__ = ()


class _Constructor:
    """What the one admitted name stands for: an object that can be called and cannot be changed."""

    __slots__ = ()

    def __call__(self, tag: str, data: Any) -> _Inert:
        return _Inert((tag, data))


class _Reader(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.has_tags = False

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) != CONSTRUCTOR:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted")
        self.has_tags = True
        return _Constructor()


class _Writer(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """Asked for everything that is no builtin value of exactly that type."""
        return NotImplemented if value is tagged else (tagged, _taken_apart(value))


def _taken_apart(value: Any) -> tuple[str, Any]:
    kind = type(value)
    if kind is Opaque:
        return "opaque", value.type_name
    if kind in EXACT:
        return kind.__name__, EXACT[kind][0](value)
    if isinstance(value, np.generic | np.ndarray) and not value.dtype.fields:
        return _array(value)
    for moment, parts in MOMENTS.items():
        if isinstance(value, moment):
            return _moment(moment, value, parts)
    stand_in = plain(value)
    return ("opaque", kind.__name__) if stand_in is None else (stand_in[0].__name__, stand_in[1])


def _moment(kind: type, value: Any, parts: Sequence[str]) -> tuple[str, Any]:
    """Its numbers by the class that is extended, and how far it is from UTC, where it says so; a time zone of another
    class could say anything, at every look."""
    zone = None if kind is datetime.date else kind.tzinfo.__get__(value)  # type: ignore[attr-defined]
    if zone is not None and type(zone) not in FIXED_ZONES:
        return "opaque", type(value).__name__
    offset = None if zone is None else zone.utcoffset(value if kind is datetime.datetime else None)
    return kind.__name__, (tuple(getattr(kind, part).__get__(value) for part in parts), offset)


def _zone(offset: datetime.timedelta | None) -> datetime.timezone | None:
    return None if offset is None else datetime.timezone(offset)


def _array(value: Any) -> tuple[str, Any]:
    if value.dtype.hasobject:
        return "objects", (value.shape, tuple(value.ravel().tolist()))
    name = "scalar" if isinstance(value, np.generic) else "array"
    return name, (value.dtype.str, value.shape, np.ascontiguousarray(value).tobytes())


def _build_array(data: Any) -> Any:
    name, shape, content = data
    if not NUMPY_TYPE.fullmatch(name):
        raise WireError(f"{name!r} is no plain type of numpy")
    kind = np.dtype(name)
    kind = kind if kind.itemsize else np.dtype(f"{name[:2]}1")  # numpy's empty texts have room for a character
    if math.prod(shape) * kind.itemsize != len(content):
        raise WireError("an array whose content is not of its size")
    if kind.kind == "U" and np.frombuffer(content, f"{name[0]}u4").max(initial=0) > sys.maxunicode:
        raise WireError("a text with characters that there are not")  # at which numpy breaks, later and anywhere
    return np.ndarray(shape, kind, buffer=bytearray(content) or bytearray(1)).copy()


def _build_objects(data: Any) -> Any:
    shape, items = data
    if math.prod(shape) != len(items):
        raise WireError("an array whose content is not of its size")
    filled = np.empty(len(items), dtype=object)
    for index, item in enumerate(items):
        filled[index] = item
    return filled.reshape(shape)


def _each(*names: str) -> Callable[[Any], Any]:
    return lambda value: tuple(getattr(value, name) for name in names)


def _with(kind: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda data: kind(*data)


DAY, TIME = ("year", "month", "day"), ("hour", "minute", "second", "microsecond")
# Type -> what it is taken apart into, and how that is put together.
EXACT: Mapping[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    complex: (_each("real", "imag"), _with(complex)),
    range: (_each("start", "stop", "step"), _with(range)),
    slice: (_each("start", "stop", "step"), _with(slice)),
    Counter: (dict, Counter),
    OrderedDict: (lambda value: list(value.items()), OrderedDict),
    defaultdict: (dict, lambda data: defaultdict(None, data)),
    deque: (lambda value: (list(value), value.maxlen), _with(deque)),
    Fraction: (_each("numerator", "denominator"), _with(Fraction)),
    Decimal: (str, Decimal),
    datetime.timedelta: (_each("days", "seconds", "microseconds"), _with(datetime.timedelta)),
}
# Of subclasses as well, which equal the same moments. The first that fits: a datetime is a date.
MOMENTS: Mapping[type, tuple[str, ...]] = {
    datetime.datetime: (*DAY, *TIME),
    datetime.date: DAY,
    datetime.time: TIME,
}
BUILT: Mapping[str, Callable[[Any], Any]] = {
    **{kind.__name__: build for kind, (_, build) in EXACT.items()},
    **{kind.__name__: kind for kind in STANDING_IN},
    "datetime": lambda data: datetime.datetime(*data[0]).replace(tzinfo=_zone(data[1])),
    "date": lambda data: datetime.date(*data[0]),
    "time": lambda data: datetime.time(*data[0]).replace(tzinfo=_zone(data[1])),
    "opaque": lambda name: Opaque(str(name)[:100]),
    "scalar": lambda data: _build_array(data)[()],
    "array": _build_array,
    "objects": _build_objects,
}


class _Builder:
    """Puts tagged data together, whatever it lies in. What is shared stays shared; what contains itself is refused."""

    def __init__(self) -> None:
        self._done: dict[int, Any] = {}
        self._open: set[int] = set()
        self.found_opaque = False

    def build(self, value: Any) -> Any:
        if not isinstance(value, list | tuple | dict | set | frozenset):
            return value
        place = id(value)
        if place in self._done:
            return self._done[place]
        if place in self._open:
            raise WireError("a value that contains itself")
        self._open.add(place)
        self._done[place] = self._new(value)
        self._open.discard(place)
        return self._done[place]

    def _new(self, value: Any) -> Any:
        if isinstance(value, _Inert):
            tag, data = value
            self.found_opaque |= tag == "opaque"
            return BUILT[tag](self.build(data))
        if isinstance(value, dict):
            return {self.build(key): self.build(item) for key, item in value.items()}
        return type(value)(self.build(item) for item in value)
