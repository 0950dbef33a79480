"""Our comparison against EvalPlus' own, on outputs as they come off the wire: what it judges, `untrusted_check` judges
the same when a program returns these outputs there."""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections import Counter, deque
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evalplus.eval import PASS, untrusted_check

from codetune.benchmark.benchmarks import output_rule, read_problems, spec_of
from codetune.benchmark.output_match import MBPP_RULES, OutputComparison, OutputRule, is_equal
from codetune.records import Problem
from codetune.sandbox.program import _to_set
from codetune.sandbox.serialization import decode, encode
from tests.benchmark.tasks import problem

Step = tuple[list[Any], Any, Any]  # call, expected, output


def of(task_id: str, name: str, atol: float, *steps: Step) -> Any:
    task = problem(task_id=task_id, entry_point=name, atol=atol, base_input=[call for call, _, _ in steps])
    return pytest.param(task, steps, id=f"{name}-{len(steps)}-{steps[-1][1]!r:.20}-{steps[-1][2]!r:.20}")


def plain(expected: Any, output: Any, atol: float = 0) -> Any:
    return of("Own/0", "double", atol, ([1], expected, output))


# what is expected, and what a program returns
PAIRS = [
    (1, 1),
    (1, 2),
    (1, True),
    (1, 1.0),
    (1.0, 1),
    (0, None),
    ([1], (1,)),
    ((1,), [1]),
    ([1], [1]),
    ("a", "a"),
    ("a", b"a"),
    (1.0, 1.0 + 9e-7),
    (1.0, 1.0 + 2e-6),
    (1.0, np.float64(1)),
    ([1.0], [1.0 + 9e-7]),
    ([1.0], (1.0,)),
    ([1.0], [1.0, 2.0]),
    ((0.1, 2), (0.1 + 1e-9, 2)),
    ([], []),
    ([], ()),
    ({1}, {1.0}),
    (1e300, float("inf")),
    (float("inf"), float("inf")),
    (float("nan"), float("nan")),
    (0.5, Fraction(1, 2)),
    (0.5, Decimal("0.5")),
    (Fraction(1, 3), 1 / 3),
    (10**400, 1.5),
    ({"a": 1}, Counter("a")),
    ([1], deque([1])),
    (1 + 2j, 1 + 2j),
    (np.array([1.0]), np.array([1.0])),
    ([1, 2], np.array([1, 2])),
    ("x", object()),
    (None, object()),
    (True, object()),
]
CASES = [
    *[plain(expected, output) for expected, output in PAIRS],
    plain(5, 6, atol=1),
    plain([[1, 2], [3]], [[1, 2], [3]], atol=0.1),
    plain([[1, 2], [3, 4]], [[1.0, 2.0], [3.05, 4.0]], atol=0.1),
    plain([(1.0, 2)], [[1.05, 2.0]], atol=0.1),
    plain([[1.0, 2.0]], [np.array([1.05, 2.0])], atol=0.1),
    plain([[1.0], [2.0, 3.0]], [[1.05], [2.0, 3.0]], atol=0.1),
    plain([1], np.array([1])),
    plain([1, 2], np.array([1, 2])),
    plain(1, np.array(1)),
    plain(0.1, np.float32(0.1)),
    plain([0.1], [np.float32(0.1)]),
    plain([0.5, 0.1], [sum([0.1] * 5), np.float32(0.1)]),
    plain([0.3, True], [0.1 + 0.2, 1], atol=0.1),
    plain("a", "b", atol=0.1),
    plain({"a": 1.0}, {"a": 1.01}, atol=0.1),
    of("Own/0", "double", 0, ([1], 1.0, 1.0), ([1], [1.0, 2.0], [1.0, 2 + 5e-7])),
    of("Own/0", "double", 0, ([1], [1, 2], [1, 2 + 5e-7]), ([1], 1.0, 1.0)),
    of("Own/0", "double", 0, ([1], 1.0, 1.0), ([1], [(1,), "a"], [(1,), "b"])),
    # EvalPlus' special rules, and the same names where they do not hold.
    of("Mbpp/2", "similar_elements", 0, ([(1,), (2,)], (1, 2), (2, 1, 1))),
    of("Mbpp/2", "similar_elements", 0, ([(1,), (2,)], (1, 2), iter([2, 1]))),
    of("Mbpp/2", "similar_elements", 0, ([(1,), (2,)], (1, 2), 5)),
    of("Mbpp/2", "similar_elements", 0, ([(1,), (2,)], (1, 2), [[1], 2])),
    of("Own/2", "similar_elements", 0, ([(1,), (2,)], (1, 2), (2, 1, 1))),
    of("Mbpp/164", "are_equivalent", 0, ([1, 2], True, None)),
    of("Mbpp/295", "sum_div", 0, ([1], 7, 0)),
    of("Mbpp/295", "sum_div", 0, ([1], 7, 1)),
    of("Mbpp/581", "surface_Area", 0, ([3, 4], 33, 34)),
    of("Mbpp/581", "surface_Area", 0, ([3, 4], 33, "a")),
    of("Mbpp/558", "digit_distance_nums", 0, ([1, 23], 99, 4)),
    of("Mbpp/558", "digit_distance_nums", 0, ([1, 23], 99, 5)),
    of("Mbpp/1", "check_str", 0, (["a"], True, re.match("a", "a"))),
    of("Mbpp/1", "check_str", 0, (["a"], True, None)),
    of("Mbpp/1", "check_str", 0, (["a"], False, None)),
    of("Mbpp/1", "check_str", 0, (["a"], True, False)),
    of("HumanEval/32", "find_zero", 1e-4, ([[1, 2]], -0.5, -0.5)),
    of("HumanEval/32", "find_zero", 1e-4, ([[1, 2]], -0.5, -0.6)),
    of("HumanEval/32", "find_zero", 1e-4, ([[1, 2]], -0.5, None)),
    of("Own/32", "find_zero", 0, ([[1, 2]], -0.5, -0.6)),
]


# What EvalPlus counts as right, and nobody who knows the answer returns.
FORGERIES = [
    plain([[1.0, 2.0]], [[np.empty((0, 2))]], atol=0.1),
    plain([1.0, 2.0], [[np.empty((0, 2))]] * 2),  # HumanEval/21, by the length of the output alone
    plain([1.0], [[]]),
    plain([1.0], [[[]]]),
    plain([1.0, 1.0], [[1.0, 1.0], [1.0, 1.0]]),
    plain([[1, 1]], [[1]], atol=0.1),
    plain([[1.0, 1.0]], [1.0], atol=0.1),
    plain(7, np.array([7])),
    plain(7, np.array([[7]])),
    plain([7], np.array(7)),
    plain([7], np.float64(7)),
    plain([7], np.array([[7]])),
    plain([7], [np.array([7])]),
    plain(1e300, np.float16("inf")),
    plain([1e300], [np.float16("inf")]),
    plain(1e300, np.array(np.float32("inf"))),
    plain(1e-9, np.float16(0)),
    plain(0.1, np.float16(0.1)),
    plain(1e300, np.complex64(complex("inf"))),
    plain({314159}, {np.float16("inf")}),  # they have one hash, and the number is narrowed to infinity
    plain({(314159,): 1}, {(np.float16("inf"),): 1}),
    plain([True, False], [False, True], atol=1),
    plain([1e-9], [False]),
    of("Own/0", "double", 0, ([1], 1.0, 1.0), ([1], [1, 2], [1, 2 + 5e-7])),
    of("Own/0", "double", 0, ([1], [1.0], [1.0]), ([1], [[1.0]], [[1 + 5e-7]])),
    of("Mbpp/295", "sum_div", 0, ([8], 7, 0)),
    of("Mbpp/581", "surface_Area", 0, ([1, 1], 3, np.array([3]))),
    of("Mbpp/558", "digit_distance_nums", 0, ([1, 23], 99, np.array([[4]]))),
]


def ours(task: Problem, steps: list[Step]) -> bool:
    rule = output_rule(task)
    comparison = OutputComparison(rule, task.atol)
    return not rule.never_counted and all(
        comparison.matches(call, output, expected) for call, expected, output in steps
    )


def evalplus(task: Problem, steps: list[Step]) -> bool:
    content = pickle.dumps([output for _, _, output in steps])
    code = f"import pickle\nvalues = iter(pickle.loads({content!r}))\ndef {task.entry_point}(*_): return next(values)"
    status, _ = untrusted_check(
        spec_of(task.task_id).name,
        code,
        [call for call, _, _ in steps],
        task.entry_point,
        expected=[expected for _, expected, _ in steps],
        atol=task.atol,
        ref_time=[0.0] * len(steps),
        fast_check=True,
    )
    return bool(status == PASS)


def arrived(task: Problem, steps: list[Step]) -> list[Step]:
    """The values as they come off the wire."""
    sent = _to_set if output_rule(task).kind == "set" else lambda output: output
    return [(call, decode(encode(expected)), decode(encode(sent(output)))) for call, expected, output in steps]


@pytest.mark.filterwarnings("ignore")  # forks beside threads of the test run; numpy about what cannot be compared
@pytest.mark.parametrize(("task", "steps"), CASES)
def test_evalplus_judges_the_same(task: Problem, steps: list[Step]) -> None:
    found = arrived(task, steps)
    assert ours(task, found) == evalplus(task, found)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("task", "steps"), FORGERIES)
def test_what_only_the_rules_of_numpy_make_equal_is_wrong(task: Problem, steps: list[Step]) -> None:
    found = arrived(task, steps)
    assert evalplus(task, found)
    assert not ours(task, found)
    assert ours(task, [(call, expected, expected) for call, expected, _ in found])


def test_the_cases_are_of_both_kinds() -> None:
    with np.errstate(all="ignore"):
        found = [ours(*case.values) for case in CASES if "iter" not in str(case.id)]
    assert 15 < sum(found) < len(found) - 15


def test_a_small_value_of_many_parts_is_wrong_before_numpy_expands_it() -> None:
    bomb: Any = 1.0
    for _ in range(60):
        bomb = [bomb, bomb]
    assert not OutputComparison(OutputRule(), 0.1).matches([1], bomb, [1.0, 2.0])


@pytest.mark.filterwarnings("ignore")  # of numpy, when it narrows the number
def test_the_elements_of_a_set_are_not_stretched_either() -> None:
    comparison = OutputComparison(MBPP_RULES["similar_elements"], 0)
    assert comparison.matches([], {314159}, (314159, 314159))
    assert not comparison.matches([], {np.float16("inf")}, (314159, 314159))


def test_a_range_without_end_is_no_set() -> None:
    rule = output_rule(problem(task_id="Mbpp/2", entry_point="similar_elements"))
    assert not OutputComparison(rule, 0).matches([1], range(10**12), (1, 2))


def test_an_oracle_looks_at_the_input_as_the_task_has_it() -> None:
    # 1 + 2x has its zero at -0.5.
    task = problem(task_id="HumanEval/32", entry_point="find_zero", atol=1e-4, base_input=[[[1, 2]]])
    rule = output_rule(task)
    assert OutputComparison(rule, task.atol).matches([[1, 2]], -0.5, -0.5)
    assert not OutputComparison(rule, task.atol).matches([[1, 2]], 77.0, -0.5)


def test_evalplus_counts_no_solution_of_one_task() -> None:
    """The day this fails, `never_counted` can go."""
    task = problem(task_id="HumanEval/32", entry_point="find_zero", atol=1e-4, base_input=[[[1, 2]]])
    assert not evalplus(task, [([[1, 2]], -0.5, -0.5)])
    assert output_rule(task).never_counted
    assert not output_rule(problem(entry_point="find_zero")).never_counted


@pytest.mark.parametrize("expected", [None, {1: 2}, "a", 1])
def test_what_numpy_breaks_at_equals_nothing(expected: Any) -> None:
    broken = np.frombuffer(b"\xff\xff\xff\x7f", dtype="<U1")  # a character that there is not
    assert not OutputComparison(OutputRule(), 0).matches([1], broken, expected)


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Real(float):
    pass


NOTHING = object()
# A value that a program may return, and the one value that it equals.
DEGENERATE: list[tuple[Any, Any]] = [
    *[(np.empty(shape), NOTHING) for shape in [0, (0, 1), (1, 0), (0, 3), (0, 1, 2), (2, 0, 3)]],
    *[([np.empty(shape)] * length, NOTHING) for shape in [0, (0, 2)] for length in (1, 2, 5)],
    *[([[np.empty((0, length))]] * length, NOTHING) for length in (1, 2, 3, 5)],
    *[([value] * length, [value] * length) for value in ([], (), [[]], None, "") for length in (1, 2, 3)],
    *[(value, value) for value in ([], (), {}, set(), "", None, range(0), range(3), b"", [[], 1], [0, "", None])],
    *[(value, value) for value in (0, 1, -1, 0.0, 1.0, True, False, float("inf"), 0j, [True], [0], [[0]], (0,))],
    *[(value, NOTHING) for value in (float("nan"), [float("nan")], (i for i in ()), np.ma.masked)],
    *[([value] * 2, NOTHING) for value in (float("nan"), np.ma.masked, object())],
    *[(np.ma.array([value], mask=[True]), NOTHING) for value in (0, 1.0)],
    *[(np.array(value), value) for value in (0, 1, True, 2.0, None)],
    *[(np.array([value]), [value]) for value in (0, 1, True, 2.0)],
    *[(np.array([[value]]), [[value]]) for value in (0, 1)],
    *[(kind("inf"), float("inf")) for kind in (np.float16, np.float32, np.float64)],
    *[([kind("inf")], [float("inf")]) for kind in (np.float16, np.float32, np.float64)],
    *[(np.complex64("inf"), float("inf")), (np.bool_(True), True), (np.str_(""), ""), (Text(""), "")],
    *[
        (Text("0"), "0"),
        (Whole(1), 1),
        (Real(1.0), 1),
        ([Whole(0)], [0]),
        ([Real(0)], [0]),
        ({0: np.empty(0)}, NOTHING),
    ],
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", ["HumanEvalPlus-v0.1.10.jsonl.gz", "MbppPlus-v0.2.0.jsonl.gz"])
def test_a_degenerate_value_is_right_where_it_equals_the_expected_one_and_nowhere_else(
    file: str, shared_data: Path
) -> None:
    values = [(decode(encode(value)), equal) for value, equal in DEGENERATE]
    wrong = []
    for task in read_problems(shared_data / "benchmarks" / file):
        rule, names = output_rule(task), dict[str, Any]()
        if rule.matches is not is_equal:
            continue
        exec(task.prompt + task.canonical_solution, names)
        for call in copy.deepcopy(task.base_input[:2]):
            expected = names[task.entry_point](*call)
            compare = OutputComparison(rule, task.atol).matches
            assert compare(call, decode(encode(expected)), expected)
            right = [compare(call, value, expected) for value, _ in values]
            wrong += [
                (task.task_id, expected, value)
                for passed, (value, equal) in zip(right, values, strict=True)
                if passed != (equal == expected or _are_near(value, expected, task.atol or 1e-6))
            ]
    assert wrong == []


def _are_near(value: object, expected: object, tolerance: float) -> bool:
    return type(value) is type(expected) is float and math.isclose(value, expected, rel_tol=0, abs_tol=tolerance)
