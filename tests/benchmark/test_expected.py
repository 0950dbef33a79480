from __future__ import annotations

import os
import pickle
from collections import Counter, deque
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from codetune.benchmark.expected import expected_path, read_expected, write_expected
from tests.benchmark.tasks import problem


def test_what_the_canonical_solution_returns_is_kept_with_its_time(tmp_path: Path) -> None:
    path = expected_path(tmp_path / "new", problem())
    write_expected(problem(), path)
    found = read_expected(path)
    assert (found.base, found.plus) == ([2, 4], [-2, 2 * 10**30, "abab"])
    assert len(found.base_seconds) == 2
    assert all(seconds >= 0 for seconds in found.plus_seconds)
    assert list(path.parent.iterdir()) == [path]


def test_tuples_sets_and_numbers_of_all_kinds_stay_what_they_are(tmp_path: Path) -> None:
    program = "    return eval(x, __import__('tests.benchmark.test_expected', fromlist=['x']).__dict__)\n"
    texts = ["(1, [2])", "{3}", "1j", "Counter('aab')", "deque([1])", "Fraction(1, 3)", "Decimal('1.5')", "b'x'"]
    arrays = ["np.float64(0.1)", "np.array([[1.5, 2.5]])", "np.array(['a'])"]
    task = problem(canonical_solution=program, base_input=[[text] for text in texts + arrays], plus_input=[])
    write_expected(task, tmp_path / "expected.pickle")
    found = read_expected(tmp_path / "expected.pickle").base
    expected = [(1, [2]), {3}, 1j, Counter("aab"), deque([1]), Fraction(1, 3), Decimal("1.5"), b"x"]
    assert found[:8] == expected
    assert [type(value) for value in found[:8]] == [type(value) for value in expected]
    assert isinstance(found[8], np.float64)
    assert found[9].tolist() == [[1.5, 2.5]]


def test_mbpp_tasks_whose_output_only_has_to_be_there_keep_only_that(tmp_path: Path) -> None:
    program = "import re\ndef check_str(x): return re.match('a', x)"
    parts = {"prompt": "", "canonical_solution": program, "base_input": [["a"], ["b"]], "plus_input": []}
    task = problem(task_id="Mbpp/1", entry_point="check_str", **parts)
    write_expected(task, tmp_path / "expected.pickle")
    assert read_expected(tmp_path / "expected.pickle").base == [True, False]


class Trap:
    def __reduce__(self) -> object:
        return os.system, ("touch trapped",)


@pytest.mark.parametrize("content", [Trap(), [os.getcwd], [getattr], [np.load]])
def test_a_planted_pickle_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "expected.pickle"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(pickle.UnpicklingError, match="is not a plain value"):
        read_expected(path)
    assert list(tmp_path.iterdir()) == [path]


def test_another_task_is_another_file(tmp_path: Path) -> None:
    assert expected_path(tmp_path, problem()) != expected_path(
        tmp_path, problem(canonical_solution="    return x + x\n")
    )
