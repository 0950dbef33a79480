"""Whether what a program returned is what was expected, by EvalPlus' rules. Pure; on the trusted side of the sandbox.

EvalPlus 0.3.1 compares inside `unsafe_execute`, beside the program, so those lines are restated here; its constants and
special oracles are its own. Two things about HumanEval/32, find_zero, whose oracle puts the answer into the polynomial.
EvalPlus looks at the polynomial that the program has left, here it is the task's. And EvalPlus forgets to count the
calls of this task, so that by its command no solution ever passes, its own neither; as figures are to be compared with
those of its command, the same holds here, and the report says why (`is_never_counted`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from evalplus.eval import is_floats
from evalplus.eval._special_oracle import (
    MBPP_OUTPUT_NOT_NONE_TASKS,
    MBPP_OUTPUT_SET_EQ_TASKS,
    _digit_distance_nums,
    _poly,
    _surface_Area,
)

from codetune.benchmark.problems import rules_of
from codetune.records import Problem

LEAST_FLOAT_TOLERANCE, RELATIVE_TOLERANCE = 1e-6, 1e-7  # both EvalPlus', the second numpy.testing's
# numpy would expand a small value that refers to its parts many times over; no honest output has so many parts.
MOST_PARTS = 20_000_000
# What comparing values of any types can raise, numpy's own code and EvalPlus' oracles too: then they are not equal.
INCOMPARABLE = (
    *(ArithmeticError, AssertionError, AttributeError, BufferError, LookupError, MemoryError, RuntimeError),
    *(SystemError, TypeError, ValueError),
)


def compares_sets(problem: Problem) -> bool:
    """The order and number of what is returned do not count, and an iterator will do."""
    return rules_of(problem) == "mbpp" and problem.entry_point in MBPP_OUTPUT_SET_EQ_TASKS


def wants_presence_only(problem: Problem) -> bool:
    """Whether something is returned is all that counts; what is expected is then a bool."""
    return rules_of(problem) == "mbpp" and problem.entry_point in MBPP_OUTPUT_NOT_NONE_TASKS


def is_never_counted(problem: Problem) -> bool:
    """Whether EvalPlus' loop leaves the right answers of this task out, by a `continue` before they are noted."""
    return rules_of(problem) == "humaneval" and problem.entry_point == "find_zero" and bool(problem.base_input)


class Comparison:
    """The outputs of one run of a program, in order. The tolerance stays once a float was expected, as in EvalPlus."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._tolerance = problem.atol

    def agrees(self, call: Sequence[Any], output: Any, expected: Any) -> bool:
        try:
            return self._agrees(call, output, expected)
        except INCOMPARABLE:
            return False

    def _agrees(self, call: Sequence[Any], output: Any, expected: Any) -> bool:
        rules, name = rules_of(self._problem), self._problem.entry_point
        if rules == "humaneval" and name == "find_zero":
            return bool(abs(_poly(*call, output)) <= self._tolerance)
        exact = output == expected
        if rules == "mbpp":
            exact = self._by_special_rule(name, call, output, expected, exact)
        if self._tolerance == 0 and is_floats(expected):
            self._tolerance = LEAST_FLOAT_TOLERANCE
        if exact or self._tolerance == 0:
            return bool(exact)
        if type(output) is not type(expected) or (isinstance(expected, list | tuple) and len(output) != len(expected)):
            return False
        if _has_over(output, MOST_PARTS):
            return False
        return bool(np.allclose(output, expected, rtol=RELATIVE_TOLERANCE, atol=self._tolerance))

    def _by_special_rule(self, name: str, call: Sequence[Any], output: Any, expected: Any, exact: Any) -> Any:
        match name:
            case "are_equivalent":  # Mbpp/164: any answer will do
                return True
            case "sum_div":  # Mbpp/295
                return exact or output == 0
            case "surface_Area":  # Mbpp/581
                return exact or abs(output - _surface_Area(*call)) <= self._tolerance
            case "digit_distance_nums":  # Mbpp/558
                return exact or output == _digit_distance_nums(*call)
            case _ if name in MBPP_OUTPUT_SET_EQ_TASKS:
                return set(output) == set(expected)
            case _ if name in MBPP_OUTPUT_NOT_NONE_TASKS:
                return output == expected if isinstance(output, bool) else expected == (output is not None)
        return exact


def _has_over(value: Any, most: int) -> bool:
    waiting, parts = [value], 0
    while waiting and parts <= most:
        found = waiting.pop()
        if isinstance(found, list | tuple):
            parts += len(found)
            waiting += found
    return parts > most
