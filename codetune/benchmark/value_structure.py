"""The structure of two values: the types, lengths and shapes of their parts, at every depth, before any number of them.

`==` and `numpy.allclose` stretch what does not fit: to numpy a list of one number equals the number, an array without
elements is close to anything, and a narrow infinity equals what is too large for its type. No pair of parts that has
one structure is stretched. Nothing is said here about whether the values are equal.
"""

from __future__ import annotations

import numbers
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

NARROW_BYTES = 8  # of a float: those of numpy with fewer make Python's as narrow before they compare them
NARROW_TOLERANCE = 1e-7  # half a unit in the last place of a float32 is 6e-8 of it; of a float16, 5e-4

Value = Any  # an argument or an output of a program: any value that `sandbox/serialization.py` decodes


def can_be_equal(output: Value, expected: Value) -> bool:
    """Whether `==` would compare the parts of both one by one, without stretching or narrowing any."""
    return _have_one_structure(output, expected, lambda ours, theirs: not _is_narrowed(ours, theirs))


def can_be_near(output: Value, expected: Value) -> bool:
    """Whether both are numbers, or sequences of one shape with numbers alone. A bool is no number: it has to be equal.
    A list, a tuple and an array may stand for each other, as in EvalPlus, except where they are empty."""
    return _have_one_structure(output, expected, _are_numbers)


def is_number(value: Value) -> bool:
    """Whether a value is a number by itself: no bool, no duration, no array."""
    return isinstance(value, numbers.Number) and not isinstance(value, bool | np.timedelta64)


def _have_one_structure(output: Value, expected: Value, leaves_agree: Callable[[Value, Value], bool]) -> bool:
    """Walks both in step, so never over more parts than the expected value has, whatever the output refers to."""
    waiting = [(output, expected)]
    while waiting:
        ours, theirs = map(_without_frame, waiting.pop())
        if any(isinstance(ours, kind) and isinstance(theirs, kind) for kind in (dict, set | frozenset)):
            keys = _equal_keys(ours, theirs)
            waiting += keys
            if isinstance(theirs, dict):
                waiting += [(ours[our_key], theirs[their_key]) for our_key, their_key in keys]
            continue
        our_parts, their_parts = _parts(ours), _parts(theirs)
        if our_parts is None and their_parts is None:
            if not leaves_agree(ours, theirs):
                return False
        elif our_parts is None or their_parts is None or not _have_one_length(ours, theirs):
            return False
        else:
            waiting += zip(our_parts, their_parts, strict=True)
    return True


def _equal_keys(ours: Value, theirs: Value) -> list[tuple[Value, Value]]:
    """The keys, or elements of sets, that count as the same: a narrow infinity and 314159, the hash of both, do."""
    own = {key: key for key in ours}
    return [(own[key], key) for key in theirs if key in own]


def _without_frame(value: Value) -> Value:
    """The element of an array without dimensions."""
    while isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    return value


def _parts(value: Value) -> Sequence[Value] | None:
    if isinstance(value, list | tuple | deque | np.ndarray):
        return value  # type: ignore[return-value]  # a deque has a length and an order
    return None


def _have_one_length(ours: Value, theirs: Value) -> bool:
    if len(ours) == len(theirs) == 0 and np.ndarray in (type(ours), type(theirs)):
        return type(ours) is type(theirs) and ours.shape == theirs.shape
    return len(ours) == len(theirs)


def _is_narrowed(ours: Value, theirs: Value) -> bool:
    """Whether one is a narrow float and the other is a different number that would be rounded to it."""
    if not any(isinstance(value, np.inexact) and value.real.itemsize < NARROW_BYTES for value in (ours, theirs)):
        return False
    if not (is_number(ours) and is_number(theirs)):
        return False
    one, other = complex(ours), complex(theirs)
    return one != other and not abs(one - other) <= NARROW_TOLERANCE * abs(other)


def _are_numbers(ours: Value, theirs: Value) -> bool:
    if is_number(ours) and is_number(theirs):
        return True
    return all(is_number(value) or isinstance(value, bool | np.bool_) for value in (ours, theirs)) and bool(
        ours == theirs
    )
