from __future__ import annotations

import array
import builtins
import datetime
import enum
import io
import os
import pickle
import resource
import struct
import zoneinfo
from collections import ChainMap, Counter, OrderedDict, UserDict, UserList, UserString, defaultdict, deque, namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from codetune.sandbox.serialization import (
    CONSTRUCTOR,
    DecodeError,
    Opaque,
    decode,
    decode_and_check,
    encode,
    encode_opaque,
)

ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.fractions()
    | st.decimals(allow_nan=False)
    | st.dates()
    | st.datetimes()
    | st.times()
    | st.timedeltas()
    | st.builds(range, st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 9))
    | st.builds(np.float64, st.floats(allow_nan=False))
    | st.builds(np.int64, st.integers(-(2**63), 2**63 - 1))
)
HASHABLE = st.recursive(ATOMS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner), max_leaves=5)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner)
        | st.dictionaries(HASHABLE, inner)
        | st.sets(HASHABLE)
        | st.lists(inner).map(deque)
        | st.dictionaries(HASHABLE, inner).map(OrderedDict)
        | st.dictionaries(st.text(), st.integers()).map(Counter)
        | st.binary().map(bytearray)
    ),
    max_leaves=12,
)
Point = namedtuple("Point", "x y")


def kinds(value: Any) -> Any:
    """The types of a value and of all that it holds."""
    if isinstance(value, dict):
        return type(value), sorted((kinds(key), kinds(item)) for key, item in value.items()) if not value else None
    if isinstance(value, list | tuple | deque):
        return type(value), [kinds(item) for item in value]
    return type(value)


@given(VALUES)
def test_a_value_arrives_as_it_was(value: Any) -> None:
    found = decode_and_check(encode(value))
    assert found.value == value
    assert kinds(found.value) == kinds(value)
    assert found.known


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.array(["a", "bc"]),
        np.array([True]),
        np.zeros((0, 3)),
        np.array([1, None, (2,)], dtype=object),
        np.array(["2020-01-01"], dtype="M8[D]"),
        np.arange(8)[::2],
        np.float32(1.5),
        np.str_("a"),
    ],
)
def test_arrays_keep_type_shape_and_content(array: Any) -> None:
    found = decode(encode(array))
    assert type(found) is type(array)
    assert (found.dtype, found.shape, found.tolist()) == (array.dtype, array.shape, array.tolist())


def test_numpys_empty_text_arrives_empty() -> None:
    assert decode(encode([np.str_(""), np.bytes_(b"")])) == ["", b""]


class Colour(enum.IntEnum):
    RED = 2


class Greedy(list[int]):
    def __eq__(self, _: object) -> bool:
        return True

    def __iter__(self) -> Iterator[int]:
        return iter([1, 2, 3])


@pytest.mark.parametrize(
    ("value", "equal"),
    [(Colour.RED, 2), (Point(1, 2), (1, 2)), (defaultdict(int, {1: 2}), {1: 2}), ({1: 2}.keys(), {1})],
)
def test_an_instance_of_a_subclass_equals_its_data(value: Any, equal: Any) -> None:
    assert decode(encode(value)) == equal


def test_the_methods_of_a_subclass_do_not_arrive() -> None:
    found = decode(encode(Greedy([7])))
    assert found == [7]
    assert found != [1, 2, 3]
    assert type(found) is not list


MASKED = np.ma.array([1, 2], mask=[True, False])


def test_an_array_whose_mask_hides_nothing_arrives() -> None:
    assert decode(encode(np.ma.array([1, 2]))).tolist() == [1, 2]


@pytest.mark.parametrize(
    "value", [object(), len, int, (i for i in ()), io.BytesIO(), datetime.UTC, np.ma.masked, MASKED]
)
def test_anything_else_arrives_opaque_and_equals_nothing(value: Any) -> None:
    found = decode_and_check(encode([value]))
    assert isinstance(found.value[0], Opaque)
    assert found.value[0] != found.value[0]
    assert found.value != [value]
    assert not found.known
    assert decode(encode_opaque(value)).type_name == type(value).__name__


class Moment(datetime.datetime):
    pass


class EqualToAll(UserList[int]):
    def __eq__(self, _: object) -> bool:
        return True


HOUR = datetime.timezone(datetime.timedelta(hours=1))
NOON = datetime.datetime(2020, 1, 1, 12, 0)
FOREIGN_VALUES = [
    UserList([1, UserList([2])]),
    UserString("ab"),
    UserDict({"a": [1]}),
    MappingProxyType({"a": [1]}),
    MappingProxyType(OrderedDict({"a": [1]})),
    ChainMap({"a": [1]}, {"a": 2}),
    {1: 2}.keys(),
    {1: 2}.items(),
    {1: 2}.values(),
    OrderedDict({1: 2}).keys(),
    OrderedDict({1: 2}).items(),
    ChainMap({1: 2}).keys(),
    UserDict({1: 2}).items(),
    memoryview(b"ab"),
    memoryview(array.array("h", [1])),
    Moment(2020, 1, 1, 12, 0),
    NOON.replace(tzinfo=HOUR),
    NOON.replace(tzinfo=datetime.UTC),
    NOON.replace(hour=11, tzinfo=zoneinfo.ZoneInfo("UTC")),
    NOON.time().replace(tzinfo=HOUR),
    sympy.true,
    sympy.false,
    sympy.Integer(1),
    sympy.Integer(10**400),
    sympy.Rational(1, 2),
    sympy.Float(0.5),
    sympy.Float(1),
    sympy.oo,
    sympy.pi,
    sympy.sqrt(4),
    sympy.Symbol("x"),
    object(),
]
PLAIN_CONTAINERS = [[1, [2]], {"a": [1]}, {1}, {(1, 2)}, [1], [2], [(1, 2)], [1, 2], (1, 2), frozenset({1})]
PLAIN_TEXTS = ["ab", "x", b"ab", bytearray(b"ab"), b"\1\0"]
PLAIN_NUMBERS = [True, False, 1, 0, 1.0, 0.0, 0.5, float("inf"), 10**400]
PLAIN_DATES = [NOON, NOON.date(), NOON.time(), NOON.replace(hour=11, tzinfo=datetime.UTC)]
OTHERS = [deque([1]), OrderedDict({"a": [1]}), None]
PLAIN_VALUES: list[Any] = [*PLAIN_CONTAINERS, *PLAIN_TEXTS, *PLAIN_NUMBERS, *PLAIN_DATES, *OTHERS]


@pytest.mark.parametrize("value", FOREIGN_VALUES, ids=lambda value: type(value).__name__)
def test_a_foreign_value_equals_the_same_plain_data_when_it_arrives(value: Any) -> None:
    found = decode(encode(value))
    assert [other for other in PLAIN_VALUES if equal(found, other) != equal(value, other)] == []
    assert [other for other in PLAIN_VALUES if equal([found], [other]) != equal([value], [other])] == []


def equal(left: Any, right: Any) -> bool:
    try:
        return bool(left == right)
    except (AttributeError, TypeError):  # sympy's, of fractions and lists; then EvalPlus counts a failure
        return False


@pytest.mark.parametrize(
    "value",
    [UserList([1.0]), UserString("a"), {1: 2}.keys(), sympy.true, sympy.Integer(1), memoryview(b"ab")],
    ids=lambda value: type(value).__name__,
)
def test_a_stand_in_has_another_type_than_what_it_equals(value: object) -> None:
    assert all(type(decode(encode(value))) is not type(other) for other in PLAIN_VALUES)


def test_stand_ins_for_numbers_can_be_calculated_with() -> None:
    assert abs(decode(encode(sympy.Rational(1, 3))) - 1 / 3) < 1e-9
    assert np.allclose(decode(encode([sympy.Rational(1, 3), sympy.Integer(2)])), [1 / 3, 2.0])


def test_a_subclass_of_a_wrapper_is_not_asked_for_its_equality() -> None:
    found = decode(encode(EqualToAll([1])))
    assert isinstance(found, Opaque)
    assert found not in PLAIN_VALUES


def test_a_wrapper_whose_data_was_exchanged_arrives_as_its_plain_content() -> None:
    wrapped: Any = UserList([7])
    wrapped.data = Greedy([7])
    found = decode(encode(wrapped))
    assert found not in ([7, 8], [1, 2])
    assert type(found) is not Greedy


def test_a_time_zone_of_an_own_class_is_not_asked() -> None:
    class Zone(datetime.tzinfo):
        def utcoffset(self, _: object) -> datetime.timedelta:
            return datetime.timedelta(0)

    assert isinstance(decode(encode(NOON.replace(tzinfo=Zone()))), Opaque)


class Code:
    def __reduce__(self) -> Any:
        return os.system, ("touch forged",)


def named(module: str, name: str) -> bytes:
    """A pickle that is one name."""
    return b"\x80\x04c" + f"{module}\n{name}\n".encode() + b"."


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Code()),
        pickle.dumps(builtins.eval),
        pickle.dumps(Fraction(1, 2)),
        named("posix", "system"),
        named("codetune.sandbox.serialization", "Opaque"),
        named("codetune.sandbox.serialization", "BUILDERS"),
        named("codetune.sandbox.serialization", "tagged.__globals__"),
        b"\x80\x04\x82\x01.",  # an extension's number
        b"\x80\x04X\x01\x00\x00\x00xQ.",  # a persistent id
        b"\x80\x05\x97.",  # a buffer from elsewhere
        b"",
        b"junk",
        b"\x80\x04]",
        encode([1])[:-3],
    ],
)
def test_a_forged_pickle_is_refused(content: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(content)


TAGGED = b"\x80\x04c" + "\n".join([*CONSTRUCTOR, ""]).encode()


@pytest.mark.parametrize(
    "content",
    [
        # Attributes for the constructor, and for what it makes: BUILD with a dictionary, and with slots.
        TAGGED + b"}X\x01\x00\x00\x00aK\x01sb.",
        TAGGED + b"N}X\x08\x00\x00\x00__call__K\x01s\x86b.",
        TAGGED + b"X\x01\x00\x00\x00aK\x01\x86RN}X\x01\x00\x00\x00aK\x01s\x86b.",
        # NEWOBJ, tags that do not exist, data that does not fit.
        TAGGED + b")\x81.",
        TAGGED + b"X\x01\x00\x00\x00aK\x01\x86R.",
        TAGGED + b"X\x08\x00\x00\x00FractionK\x01\x86R.",
        TAGGED + b"X\x07\x00\x00\x00complexX\x01\x00\x00\x00aX\x01\x00\x00\x00b\x86\x86R.",
        TAGGED + b"K\x01K\x02\x86R.",
    ],
)
def test_the_constructor_makes_inert_pairs_and_cannot_be_changed(content: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(content)
    assert decode(encode(Fraction(1, 2))) == Fraction(1, 2)


def test_a_pair_written_by_hand_is_read() -> None:
    """So that the refusals above and below are refusals of what they say, not of the name of the constructor."""
    assert decode(TAGGED + b"X\x07\x00\x00\x00complexK\x01K\x02\x86\x86R.") == 1 + 2j
    assert decode(_array("<i2", (1,), b"\7\0")).tolist() == [7]


def _array(kind: str, shape: tuple[int, ...], content: bytes) -> bytes:
    data = pickle.dumps((kind, shape, content), protocol=4)[2:-1]
    return TAGGED + b"X\x05\x00\x00\x00array" + data + b"\x86R."


@pytest.mark.parametrize(
    ("kind", "shape", "content"),
    [
        ("|O", (1,), bytes(8)),
        ("i4,O", (1,), bytes(12)),
        ("<i8", (2**40,), b""),
        ("<U0", (2**40,), b""),
        ("<i8", (-1,), b""),
        ("<U1", (1,), b"\xff\xff\xff\x7f"),
        (">U2", (1,), b"\0\0\0a\0\x11\0\0"),
    ],
)
def test_a_forged_array_is_refused(kind: str, shape: tuple[int, ...], content: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(_array(kind, shape, content))


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
def test_a_string_in_an_array_may_have_the_last_character_of_unicode(order: str) -> None:
    assert decode(encode(np.array(["a\U0010ffff"], dtype=f"{order}U3"))).tolist() == ["a\U0010ffff"]


@contextmanager
def little_memory() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    own = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + 2**30, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_memo_bomb_stays_within_the_memory_of_its_reader() -> None:
    bomb = b"\x80\x04Nr" + struct.pack("<I", 2**32 - 1) + b"."  # puts None at index 4,294,967,295 of the memo
    with little_memory(), pytest.raises(MemoryError):
        decode(bomb)


def test_shared_parts_are_built_once_and_a_value_that_contains_itself_is_refused() -> None:
    shared: Any = [Fraction(1, 3)]
    for _ in range(200):
        shared = [shared, shared]
    found = decode(encode(shared))
    assert found[0] is found[1]
    cycle: list[Any] = [Decimal(1)]
    cycle.append(cycle)
    with pytest.raises(DecodeError, match="contains itself"):
        decode(encode(cycle))
