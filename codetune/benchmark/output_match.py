"""Outputs of a program and of the canonical solution -> whether they match, by EvalPlus' rules.

EvalPlus 0.3.1 compares in `unsafe_execute`, in the same process as the program. codetune compares outside of the
sandbox, so those lines are restated here; EvalPlus' constants, task lists and special oracles are imported. A special
rule belongs to one function of one benchmark; the tables at the end go into the records of `benchmarks.py`.

What passes here passes by EvalPlus' rules too. The reverse holds for honest programs: EvalPlus also counts what equals
the expected value only because numpy stretches or narrows one of them (`value_structure.py`), what is near a number
that is no float, and any zero of `sum_div`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from evalplus.eval import is_floats
from evalplus.eval._special_oracle import (
    MBPP_OUTPUT_NOT_NONE_TASKS,
    MBPP_OUTPUT_SET_EQ_TASKS,
    _digit_distance_nums,
    _poly,
    _surface_Area,
)

from codetune.benchmark.value_structure import Value, can_be_equal, can_be_near, is_number

LEAST_FLOAT_TOLERANCE = 1e-6  # EvalPlus'
RELATIVE_TOLERANCE = 1e-7  # the default of numpy.testing, which EvalPlus takes over
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


@dataclass(frozen=True, slots=True)
class ComparedCall:
    """One call of a program: its output, and what is expected."""

    arguments: Sequence[Value]  # those of the task, not what the program has left of them
    output: Value
    expected: Value
    tolerance: float
    plain: bool  # both are of builtin types alone, which `==` never stretches


def is_equal(call: ComparedCall) -> bool:
    return (call.plain or can_be_equal(call.output, call.expected)) and bool(call.output == call.expected)


@dataclass(frozen=True, slots=True)
class OutputRule:
    """The rule by which the outputs of one function are compared, before the tolerance for floats applies.

    `kind` says what of an output counts: its `value`; its elements as a `set`, which the sandbox makes of it; or its
    `presence`, whether it is not None. Then the expected output is a bool. An `oracle` decides alone, whatever `==` or
    the tolerance say. `never_counted`: EvalPlus counts no solution of this task."""

    matches: Callable[[ComparedCall], bool] = is_equal
    kind: Literal["value", "set", "presence"] = "value"
    oracle: bool = False
    never_counted: bool = False


class OutputComparison:
    """Compares the outputs of one run of a program, in order. `atol` is the absolute tolerance of the task."""

    def __init__(self, rule: OutputRule, atol: float) -> None:
        self._rule = rule
        self._atol = atol

    def matches(self, arguments: Sequence[Value], output: Value, expected: Value, plain: bool = False) -> bool:
        """`plain` says that both values are of builtin types alone; it changes the time, not the result."""
        try:
            return self._matches(ComparedCall(arguments, output, expected, self._tolerance(expected), plain))
        except COMPARISON_ERRORS:
            return False

    def _tolerance(self, expected: Value) -> float:
        return LEAST_FLOAT_TOLERANCE if self._atol == 0 and is_floats(expected) else self._atol

    def _matches(self, call: ComparedCall) -> bool:
        return self._rule.matches(call) or (not self._rule.oracle and call.tolerance > 0 and _is_near(call))


def _is_near(call: ComparedCall) -> bool:
    output, expected = call.output, call.expected
    return (
        type(output) is type(expected)
        and can_be_near(output, expected)
        and bool(np.allclose(output, expected, rtol=RELATIVE_TOLERANCE, atol=call.tolerance))
    )


def _is_root(call: ComparedCall) -> bool:
    """Whether the output is a zero of the polynomial. EvalPlus evaluates the polynomial that the program has left,
    which may have changed it; here it is the polynomial of the task."""
    return is_number(call.output) and bool(abs(_poly(*call.arguments, call.output)) <= call.tolerance)


def _is_anything(_: ComparedCall) -> bool:
    return True


def _is_equal_or_zero_of_one(call: ComparedCall) -> bool:
    """The sum of the proper divisors: that of 1 is 0 to some, 1 to others. EvalPlus admits 0 for every number, so that
    it passes a program which returns nothing else."""
    return is_equal(call) or (is_number(call.output) and bool(call.output == 0) and call.arguments[0] < 2)


def _is_a_surface_area(call: ComparedCall) -> bool:
    if is_equal(call):
        return True
    return is_number(call.output) and bool(abs(call.output - _surface_Area(*call.arguments)) <= call.tolerance)


def _is_a_digit_distance(call: ComparedCall) -> bool:
    return is_equal(call) or (is_number(call.output) and bool(call.output == _digit_distance_nums(*call.arguments)))


def _has_the_same_elements(call: ComparedCall) -> bool:
    """The sandbox sends a set wherever one can be made; it is not made here, where a range would never end."""
    return isinstance(call.output, set | frozenset) and is_equal(replace(call, expected=set(call.expected)))


def _is_present_as_expected(call: ComparedCall) -> bool:
    present = call.output if isinstance(call.output, bool) else call.output is not None
    return bool(call.expected == present)


def _is_close(call: ComparedCall) -> bool:
    return is_number(call.output) and is_number(call.expected) and math.isclose(call.output, call.expected)


AS_EVALPLUS = OutputRule()
# Of tests that are assertions: `==` alone, without a tolerance for floats, and `math.isclose`.
AS_ASSERTED = OutputRule(oracle=True)
AS_ASSERTED_CLOSE = OutputRule(_is_close, oracle=True)

# Tables: name of the function -> its rule.
#
# EvalPlus 0.3.1 leaves its loop over the calls of find_zero (HumanEval/32) by a `continue` before it notes that the
# call was right, so that its command passes no solution, not even its own. Figures must agree with those of its
# command: the same holds here, and the report says why.
HUMANEVAL_RULES: Mapping[str, OutputRule] = {"find_zero": OutputRule(_is_root, oracle=True, never_counted=True)}
MBPP_RULES: Mapping[str, OutputRule] = {
    # Mbpp/164, of MBPP+ before v0.2.0: EvalPlus counts whatever is returned, so that this task says nothing.
    "are_equivalent": OutputRule(_is_anything),
    "sum_div": OutputRule(_is_equal_or_zero_of_one),  # Mbpp/295
    "surface_Area": OutputRule(_is_a_surface_area),  # Mbpp/581
    "digit_distance_nums": OutputRule(_is_a_digit_distance),  # Mbpp/558
    **dict.fromkeys(MBPP_OUTPUT_SET_EQ_TASKS, OutputRule(_has_the_same_elements, "set")),
    **dict.fromkeys(MBPP_OUTPUT_NOT_NONE_TASKS, OutputRule(_is_present_as_expected, "presence")),
}
