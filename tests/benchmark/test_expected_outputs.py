from __future__ import annotations

import os
import pickle
from collections import Counter, deque
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from codetune.benchmark.expected_outputs import (
    ExpectedOutputs,
    SuiteOutputs,
    expected_path,
    read_expected,
    write_expected,
)
from codetune.benchmark.judge import prepare
from codetune.records import Problem
from codetune.sandbox.serialization import DecodeError
from tests.benchmark.tasks import problem

ONE_CALL = ExpectedOutputs(SuiteOutputs([1], [0.0], plain=True), SuiteOutputs([], [], plain=True))


def computed(task: Problem, directory: Path) -> ExpectedOutputs:
    list(prepare([task], directory, 1, "none"))
    return read_expected(expected_path(directory, task))


def test_what_the_canonical_solution_returns_is_kept_with_its_time(tmp_path: Path) -> None:
    found = computed(problem(), tmp_path / "new")
    assert (found.base.outputs, found.plus.outputs) == ([2, 4], [-2, 2 * 10**30, "abab"])
    assert len(found.base.seconds) == 2
    assert all(seconds >= 0 for seconds in found.plus.seconds)
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_tuples_sets_and_numbers_of_all_kinds_stay_what_they_are(tmp_path: Path) -> None:
    names = (
        "import numpy as np\nfrom collections import *\nfrom decimal import Decimal\nfrom fractions import Fraction\n"
    )
    texts = ["(1, [2])", "{3}", "1j", "Counter('aab')", "deque([1])", "Fraction(1, 3)", "Decimal('1.5')", "b'x'"]
    arrays = ["np.float64(0.1)", "np.array([[1.5, 2.5]])", "np.array(['a'])"]
    program = f"{names}def double(x): return eval(x)"
    inputs = {"base_input": [[text] for text in texts + arrays], "plus_input": []}
    found = computed(problem(prompt="", canonical_solution=program, **inputs), tmp_path).base.outputs
    expected = [(1, [2]), {3}, 1j, Counter("aab"), deque([1]), Fraction(1, 3), Decimal("1.5"), b"x"]
    assert found[:8] == expected
    assert [type(value) for value in found[:8]] == [type(value) for value in expected]
    assert isinstance(found[8], np.float64)
    assert found[9].tolist() == [[1.5, 2.5]]


def test_mbpp_tasks_whose_output_only_has_to_be_there_keep_only_that(tmp_path: Path) -> None:
    program = "import re\ndef check_str(x): return re.match('a', x)"
    parts = {"prompt": "", "canonical_solution": program, "base_input": [["a"], ["b"]], "plus_input": []}
    assert computed(problem(task_id="Mbpp/1", entry_point="check_str", **parts), tmp_path).base.outputs == [True, False]


class Trap:
    def __reduce__(self) -> object:
        return os.system, ("touch trapped",)


@pytest.mark.parametrize("content", [Trap(), [os.getcwd], [getattr], [np.load]])
def test_a_planted_pickle_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "expected.values"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DecodeError, match="is not admitted"):
        read_expected(path)
    assert list(tmp_path.iterdir()) == [path]


def test_another_task_is_another_file(tmp_path: Path) -> None:
    other = problem(canonical_solution="    return x + x\n")
    assert expected_path(tmp_path, problem()) != expected_path(tmp_path, other)


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    write_expected(ONE_CALL, tmp_path / "a.values")
    assert read_expected(tmp_path / "a.values") == ONE_CALL
    assert [path.name for path in tmp_path.iterdir()] == ["a.values"]
