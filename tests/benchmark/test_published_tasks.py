from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from codetune.benchmark.benchmarks import (
    canonical_program,
    open_benchmark,
    problem_digest,
    read_problems,
    runnable,
    spec_of,
)
from codetune.benchmark.judge import judge
from codetune.benchmark.published_tasks import PREDICTION, is_published
from codetune.benchmark.sanitize import sanitize
from codetune.errors import DataError
from codetune.records import Completion, Problem, Solution
from codetune.sandbox.probe import find_failure
from tests.benchmark.published import ALL_FORMATS, CRUXEVAL, HUMANEVAL_PRO, LEETCODE, MBPP_PRO
from tests.benchmark.tasks import ROW, write_rows

TIER = "landlock" if find_failure("landlock") is None else "none"


def task_of(tmp_path: Path, row: dict[str, Any]) -> Problem:
    [task] = read_problems(write_rows(tmp_path / "tasks.jsonl", row))
    return task


def verdicts(task: Problem, programs: list[str], expected: Path) -> list[str]:
    solutions = [Solution(task.task_id, program, number) for number, program in enumerate(programs)]
    return [found.plus for found in sorted(judge([task], solutions, expected, 1, TIER), key=lambda each: each.sample)]


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_the_published_solution_passes_and_another_one_fails(name: str, tmp_path: Path, expected: Path) -> None:
    task = task_of(tmp_path, ALL_FORMATS[name])
    assert spec_of(task.task_id).name == name
    program = canonical_program(task)
    wrong = program.replace("return", "return None and")
    assert verdicts(task, [program, wrong, ""], expected) == ["pass", "fail", "fail"]


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_the_expected_values_are_in_nothing_that_a_program_gets(name: str, tmp_path: Path) -> None:
    task = task_of(tmp_path, ALL_FORMATS[name])
    assert len(task.stated) == len(task.base_input)
    assert not any(ast.unparse(ast.Assert(ast.Constant(value))) in task.prelude + task.callee for value in task.stated)
    assert "assert" not in task.prelude + task.callee


def test_a_pro_task_calls_the_second_function_and_asks_for_both(tmp_path: Path) -> None:
    task = task_of(tmp_path, MBPP_PRO)
    assert (task.task_id, task.entry_point, task.base_input[0], task.stated[0]) == (
        "MbppPro/7",
        "halves",
        [1, 2],
        (0.5, 1.0),
    )
    assert all(text in spec_of(task.task_id).instruction(task) for text in ("def half(", "def halves(", "halve two"))
    assert "\ndef " not in spec_of(task.task_id).stop_strings(task)  # the second function is still to come
    assert (
        sanitize(task, Completion(task.task_id, task.canonical_solution + "\nprint(half(1))")).solution.solution.count(
            "def "
        )
        == 2
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" 'baba'", "'baba'"),
        ("assert f('ab', 2) == 'baba'", "'baba'"),
        ("It is\n```python\nassert f('ab', 2) == 'baba'\n```\nbecause", "'baba'"),
        ("<think>Is it 'x'?</think>f('ab', 2) == [\n'baba', 1]", "[\n'baba', 1]"),
        ("'baba'\n\nassert f('b', 1) == 'b'", "'baba'"),
    ],
)
def test_a_predicted_output_is_found_in_what_models_write(text: str, value: str, tmp_path: Path) -> None:
    task = task_of(tmp_path, CRUXEVAL)
    found = sanitize(task, Solution(task.task_id, text)).solution
    assert found.solution == f"def {PREDICTION}():\n    return (\n{value}\n    )\n"
    assert sanitize(task, found).solution == found
    assert runnable(task, Solution(task.task_id, text)) == found


def test_a_prediction_that_only_calls_the_function_fails(tmp_path: Path, expected: Path) -> None:
    task = task_of(tmp_path, CRUXEVAL)
    texts = ["'baba'", "f('ab', 2)", "assert f('ab', 2) == f('ab', 2)", "baba", "'ab' == 'ab'"]
    programs = [runnable(task, Solution(task.task_id, text)).solution for text in texts]
    assert verdicts(task, programs, expected) == ["pass", *["fail"] * 4]


def test_the_method_of_leetcode_gets_its_arguments_by_name_and_built(tmp_path: Path, expected: Path) -> None:
    task = task_of(tmp_path, LEETCODE)
    assert (task.entry_point, task.date, task.base_input) == ("Solution", "2024-10-13", [[[1, 2], 3], [[], 0]])
    header = "class Solution:\n    def treeSum(self, k, root):\n"
    programs = [
        f"{header}        return root.val + k if root else -inf\n\ninf = math.inf\n",  # the prelude is before it
        f"{header.replace('k, root', 'k, tree')}        return 6\n",
        "def treeSum(root, k):\n    return 6\n",
    ]
    assert verdicts(task, programs, expected) == ["pass", "fail", "fail"]
    assert '"\\\\n" ignored' in task.prompt
    assert ast.get_docstring(ast.parse(task.prompt), clean=False)


def test_values_of_assertions_are_compared_without_a_tolerance(tmp_path: Path, expected: Path) -> None:
    close = HUMANEVAL_PRO | {
        "id": 1,
        "test_code": "assert math.isclose(double_all(3), 0.3)",
        "new_solution": "    return 0.3\n",
    }
    exact = HUMANEVAL_PRO | {"test_code": "assert double_all(3) == 0.3", "new_solution": "    return 0.3\n"}
    programs = [f"def double_all(x): return {value}" for value in ("0.3", "0.1 + 0.2", "0.3000001")]
    assert verdicts(task_of(tmp_path, exact), programs, expected) == ["pass", "fail", "fail"]
    assert verdicts(task_of(tmp_path, close), programs, expected) == ["pass", "pass", "fail"]


def test_a_solution_that_its_own_tests_refute_is_an_error_of_the_benchmark(tmp_path: Path, expected: Path) -> None:
    task = task_of(tmp_path, HUMANEVAL_PRO | {"test_code": "assert double_all([1]) == [3]"})
    with pytest.raises(
        DataError, match=r"HumanEvalPro/0 gives no expected output: base call 1.*returned \[2\], not \[3\]"
    ):
        verdicts(task, [""], expected)


def test_tasks_whose_tests_cannot_be_taken_apart_are_left_out_by_name(tmp_path: Path) -> None:
    rows = [
        HUMANEVAL_PRO,
        HUMANEVAL_PRO | {"id": 1, "test_code": "assert double_all([1]) + double_all([2]) == [2, 4]"},
        HUMANEVAL_PRO | {"id": 2, "test_code": "assert double_all([]) == []\nassert math.isclose(double_all(1), 2)"},
        HUMANEVAL_PRO | {"id": 3, "test_code": "assert double_all([]) == []\nassert double(1) == 2"},
        HUMANEVAL_PRO | {"id": 4, "test_code": "assert double_all(x=[]) == []"},
    ]
    opened = open_benchmark("tasks.jsonl", write_rows(tmp_path / "tasks.jsonl", *rows), "tasks")
    assert [task.task_id for task in opened.problems] == ["HumanEvalPro/0"]
    assert opened.left_out == {
        "HumanEvalPro/1": "assert double_all([1]) + double_all([2]) == [2, 4]",
        "HumanEvalPro/2": "some of its assertions compare by ==, some by math.isclose",
        "HumanEvalPro/3": "calls of double, double_all",
        "HumanEvalPro/4": "double_all is called with named arguments",
    }
    missing = LEETCODE | {"prompt": "from no_such_package import List"}
    with pytest.raises(DataError, match=r"none of its 1 tasks .*LeetCode/sum-of-tree.*no_such_package is not inst"):
        task_of(tmp_path, missing)


def test_an_array_and_a_table_are_read_like_lines(tmp_path: Path) -> None:
    array, table = tmp_path / "tasks.json", tmp_path / "tasks.parquet"
    array.write_text(json.dumps([MBPP_PRO, MBPP_PRO | {"id": 8}]), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([MBPP_PRO, MBPP_PRO | {"id": 8}]), table)
    lines = write_rows(tmp_path / "tasks.jsonl", MBPP_PRO, MBPP_PRO | {"id": 8})
    assert read_problems(array) == read_problems(table) == read_problems(lines)
    assert is_published(array)
    assert not is_published(write_rows(tmp_path / "own.jsonl", ROW))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([MBPP_PRO, MBPP_PRO], r"tasks.jsonl:2: task_id 'MbppPro/7' stands in the file already"),
        ([CRUXEVAL | {"code": 3}], r"tasks.jsonl:1: code is int"),
        ([CRUXEVAL, {"id": "sample_1"}], r"tasks.jsonl:2: no code"),
        ([CRUXEVAL | {"id": 3}], r"tasks.jsonl:1: id is int"),
        ([LEETCODE | {"completion": None}], r"tasks.jsonl:1: completion is NoneType"),
    ],
)
def test_a_damaged_task_is_named_with_its_line(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_problems(write_rows(tmp_path / "tasks.jsonl", *rows))


def test_the_digest_of_a_task_follows_its_values_and_is_the_same_in_every_order(tmp_path: Path) -> None:
    task = task_of(tmp_path, MBPP_PRO)
    keyed = replace(task, base_input=[[{(1, 2): {"b", "a"}, "x": 1}]])
    again = replace(task, base_input=[[{"x": 1, (1, 2): {"a", "b"}}]])
    assert problem_digest(keyed) == problem_digest(again) != problem_digest(task)
    assert problem_digest(replace(task, stated=[1, 2])) != problem_digest(task)
