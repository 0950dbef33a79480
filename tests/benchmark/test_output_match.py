"""Our comparison against EvalPlus' own, on outputs as they come off the wire: what it judges, `untrusted_check` judges
the same when a program returns these outputs there."""

from __future__ import annotations

import pickle
import re
from collections import Counter, deque
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from evalplus.eval import PASS, untrusted_check

from codetune.benchmark import output_match
from codetune.benchmark.benchmarks import output_rule, spec_of
from codetune.benchmark.output_match import OutputComparison, OutputRule
from codetune.records import Problem
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
    plain([[1, 1]], [[1]], atol=0.1),
    plain("a", "b", atol=0.1),
    plain({"a": 1.0}, {"a": 1.01}, atol=0.1),
    # The tolerance stays once a float was expected.
    of("Own/0", "double", 0, ([1], 1.0, 1.0), ([1], [1, 2], [1, 2 + 5e-7])),
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


@pytest.mark.filterwarnings("ignore")  # forks beside threads of the test run; numpy about what cannot be compared
@pytest.mark.parametrize(("task", "steps"), CASES)
def test_evalplus_judges_the_same(task: Problem, steps: list[Step]) -> None:
    arrived = [
        (call, decode(encode(expected)), decode(encode(set(output) if _is_read_as_set(task, output) else output)))
        for call, expected, output in steps
    ]
    assert ours(task, arrived) == evalplus(task, arrived)


def test_the_cases_are_of_both_kinds() -> None:
    with np.errstate(all="ignore"):
        found = [ours(*case.values) for case in CASES if "iter" not in str(case.id)]
    assert 15 < sum(found) < len(found) - 15


def test_a_small_value_of_many_parts_is_wrong_before_numpy_expands_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_match, "MOST_PARTS", 10**6)
    bomb: Any = 1.0
    for _ in range(60):
        bomb = [bomb, bomb]
    assert not OutputComparison(OutputRule(), 0.1).matches([1], bomb, [1.0, 2.0])


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


def _is_read_as_set(task: Problem, output: Any) -> bool:
    return output_rule(task).kind == "set" and hasattr(output, "__next__")


@pytest.mark.parametrize("expected", [None, {1: 2}, "a", 1])
def test_what_numpy_breaks_at_equals_nothing(expected: Any) -> None:
    broken = np.frombuffer(b"\xff\xff\xff\x7f", dtype="<U1")  # a character that there is not
    assert not OutputComparison(OutputRule(), 0).matches([1], broken, expected)
