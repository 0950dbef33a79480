"""Outputs of a program and of the canonical solution -> whether they match, by EvalPlus' rules.

EvalPlus 0.3.1 compares in `unsafe_execute`, in the same process as the program. codetune compares outside of the
sandbox, so those lines are restated here; EvalPlus' constants, task lists and special oracles are imported. A special
rule belongs to one function of one benchmark; the tables at the end go into the records of `benchmarks.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from evalplus.eval import is_floats
from evalplus.eval._special_oracle import (
    MBPP_OUTPUT_NOT_NONE_TASKS,
    MBPP_OUTPUT_SET_EQ_TASKS,
    _digit_distance_nums,
    _poly,
    _surface_Area,
)

LEAST_FLOAT_TOLERANCE = 1e-6  # EvalPlus'
RELATIVE_TOLERANCE = 1e-7  # the default of numpy.testing, which EvalPlus takes over
# numpy would expand a small value that refers to its parts many times over; no honest output has so many parts.
MOST_PARTS = 20_000_000
# What comparing values of any types can raise, in numpy's code and EvalPlus' oracles too: then they do not match.
COMPARISON_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    LookupError,
    MemoryError,
    RuntimeError,
    SystemError,
    TypeError,
    ValueError,
)

Value = Any  # an argument or an output of a program: any value that `sandbox/serialization.py` decodes


@dataclass(frozen=True, slots=True)
class ComparedCall:
    """One call of a program, and what `==` says of its output: not always a bool, numpy compares element by element."""

    arguments: Sequence[Value]  # those of the task, not what the program has left of them
    output: Value
    expected: Value
    equal: Value
    tolerance: float


def is_equal(call: ComparedCall) -> Value:
    return call.equal


@dataclass(frozen=True, slots=True)
class OutputRule:
    """The rule by which the outputs of one function are compared, before the tolerance for floats applies.

    `kind` says what of an output counts: its `value`; its elements as a `set`, which the sandbox makes of an iterator
    as well; or its `presence`, whether it is not None. Then the expected output is a bool. An `oracle` decides alone,
    whatever `==` or the tolerance say. `never_counted`: EvalPlus counts no solution of this task."""

    matches: Callable[[ComparedCall], Value] = is_equal
    kind: Literal["value", "set", "presence"] = "value"
    oracle: bool = False
    never_counted: bool = False


class OutputComparison:
    """Compares the outputs of one run of a program, in order. `atol` is the absolute tolerance of the task."""

    def __init__(self, rule: OutputRule, atol: float) -> None:
        self._rule = rule
        self._tolerance = atol

    def matches(self, arguments: Sequence[Value], output: Value, expected: Value) -> bool:
        try:
            return self._matches(arguments, output, expected)
        except COMPARISON_ERRORS:
            return False

    def _matches(self, arguments: Sequence[Value], output: Value, expected: Value) -> bool:
        call = ComparedCall(arguments, output, expected, output == expected, self._tolerance)
        exact = self._rule.matches(call)
        if self._rule.oracle:
            return bool(exact)
        # As in EvalPlus, the tolerance holds for all later calls once a float was expected.
        if self._tolerance == 0 and is_floats(expected):
            self._tolerance = LEAST_FLOAT_TOLERANCE
        if exact or self._tolerance == 0:
            return bool(exact)
        if type(output) is not type(expected) or (isinstance(expected, list | tuple) and len(output) != len(expected)):
            return False
        if _has_over(output, MOST_PARTS):
            return False
        return bool(np.allclose(output, expected, rtol=RELATIVE_TOLERANCE, atol=self._tolerance))


def _has_over(value: Value, most: int) -> bool:
    """Whether nested lists and tuples have more parts, counted as often as they are referred to."""
    waiting, parts = [value], 0
    while waiting and parts <= most:
        found = waiting.pop()
        if isinstance(found, list | tuple):
            parts += len(found)
            waiting += found
    return parts > most


def _is_root(call: ComparedCall) -> bool:
    """Whether the output is a zero of the polynomial. EvalPlus evaluates the polynomial that the program has left,
    which may have changed it; here it is the polynomial of the task."""
    return bool(abs(_poly(*call.arguments, call.output)) <= call.tolerance)


def _is_anything(_: ComparedCall) -> bool:
    return True


def _is_equal_or_zero(call: ComparedCall) -> Value:
    return call.equal or call.output == 0


def _is_a_surface_area(call: ComparedCall) -> Value:
    return call.equal or abs(call.output - _surface_Area(*call.arguments)) <= call.tolerance


def _is_a_digit_distance(call: ComparedCall) -> Value:
    return call.equal or call.output == _digit_distance_nums(*call.arguments)


def _has_the_same_elements(call: ComparedCall) -> bool:
    return set(call.output) == set(call.expected)


def _is_present_as_expected(call: ComparedCall) -> Value:
    if isinstance(call.output, bool):
        return call.output == call.expected
    return call.expected == (call.output is not None)


# Tables: name of the function -> its rule.
#
# EvalPlus 0.3.1 leaves its loop over the calls of find_zero (HumanEval/32) by a `continue` before it notes that the
# call was right, so that its command passes no solution, not even its own. Figures must agree with those of its
# command: the same holds here, and the report says why.
HUMANEVAL_RULES: Mapping[str, OutputRule] = {"find_zero": OutputRule(_is_root, oracle=True, never_counted=True)}
MBPP_RULES: Mapping[str, OutputRule] = {
    "are_equivalent": OutputRule(_is_anything),  # Mbpp/164
    "sum_div": OutputRule(_is_equal_or_zero),  # Mbpp/295
    "surface_Area": OutputRule(_is_a_surface_area),  # Mbpp/581
    "digit_distance_nums": OutputRule(_is_a_digit_distance),  # Mbpp/558
    **dict.fromkeys(MBPP_OUTPUT_SET_EQ_TASKS, OutputRule(_has_the_same_elements, "set")),
    **dict.fromkeys(MBPP_OUTPUT_NOT_NONE_TASKS, OutputRule(_is_present_as_expected, "presence")),
}
