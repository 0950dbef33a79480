from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from codetune.benchmark.problems import (
    benchmark_digest,
    pair_with_problems,
    problem_digest,
    read_problems,
    rules_of,
)
from codetune.errors import DataError, UsageError
from codetune.records import Solution
from tests.benchmark.tasks import ROW, problem, write_rows


def test_tasks_are_read_in_their_order_plain_or_gzipped(tmp_path: Path) -> None:
    plain = write_rows(tmp_path / "own.jsonl", ROW | {"task_id": "Own/1"}, ROW)
    packed = tmp_path / "own.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_problems(str(plain), None) == [problem(task_id="Own/1"), problem()]
    assert read_problems("demo", str(packed)) == read_problems(str(plain), None)


def test_mbpp_inputs_become_tuples_again(tmp_path: Path) -> None:
    # EvalPlus: the arguments of Mbpp/2 are tuples, those of Mbpp/252 complex numbers.
    two = ROW | {"task_id": "Mbpp/2", "base_input": [[[3, 4], [5]]], "plus_input": {}}
    complexes = ROW | {"task_id": "Mbpp/252", "base_input": [["(1+2j)"]], "plus_input": []}
    found = read_problems(str(write_rows(tmp_path / "mbpp.jsonl", two, complexes)), None)
    assert [task.base_input for task in found] == [[[(3, 4), (5,)]], [[1 + 2j]]]
    assert read_problems(str(write_rows(tmp_path / "own.jsonl", ROW)), None)[0].base_input == [[1], [2]]


def test_the_override_variables_of_evalplus_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "humaneval.jsonl", ROW)
    monkeypatch.setenv("HUMANEVAL_OVERRIDE_PATH", str(path))
    assert read_problems("humaneval", None) == [problem()]
    monkeypatch.setenv("MBPP_OVERRIDE_PATH", str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(DataError, match=r"MBPP_OVERRIDE_PATH names .*nowhere.jsonl"):
        read_problems("mbpp", None)


def test_a_misspelt_benchmark_is_told_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"no benchmark 'humanevl' .did you mean humaneval"):
        read_problems("humanevl", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entry_point": 3}, "entry_point is int"),
        ({"entry_point": "a b"}, "entry_point is 'a b'. Expected: the name of the function"),
        ({"task_id": " "}, "task_id is empty"),
        ({"prompt": None}, "prompt is NoneType"),
        ({"base_input": []}, "base_input is empty"),
        ({"base_input": [1]}, "base_input is no list of lists"),
        ({"atol": "0"}, "atol is '0'"),
        ({"atol": -1}, "atol is -1"),
        ({"atol": True}, "atol is True"),
        ({"atol": float("inf")}, "atol is inf"),
        ({"atol": float("nan")}, "atol is nan"),
        ({"atol": 10**400}, "atol is 1000"),
        ({"task_id": "Own/\ud800"}, r"task_id is 'Own/\\ud800', which is no text: character 5"),
        ({"prompt": "\udfff"}, "half of a surrogate pair"),
        ({"task_id": "Mbpp/252", "base_input": [["one"]]}, "does not fit the MBPP task Mbpp/252"),
        ({"task_id": "Mbpp/x"}, "does not fit the MBPP task"),
        ({"task_id": "Own/9"}, "task_id 'Own/9' stands in the file already"),
    ],
)
def test_a_task_of_the_wrong_form_is_named_with_its_line(tmp_path: Path, change: Any, message: str) -> None:
    path = write_rows(tmp_path / "own.jsonl", ROW | {"task_id": "Own/9"}, ROW | change)
    with pytest.raises(DataError, match=message) as error:
        read_problems(str(path), None)
    assert f"{path}:2: " in str(error.value)


def test_a_missing_key_and_an_empty_file_are_errors(tmp_path: Path) -> None:
    without = {key: value for key, value in ROW.items() if key != "plus_input"}
    with pytest.raises(DataError, match=r"own.jsonl:1: plus_input is not there"):
        read_problems(str(write_rows(tmp_path / "own.jsonl", without)), None)
    with pytest.raises(DataError, match="no tasks"):
        read_problems(str(write_rows(tmp_path / "empty.jsonl")), None)


def test_a_mark_of_byte_order_and_line_ends_of_windows_are_read_over(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r\n")
    assert read_problems(str(path), None) == [problem()]


def test_the_digest_follows_every_part_of_a_task_and_their_order() -> None:
    one, other = problem(), problem(plus_input=[[5]])
    assert problem_digest(one) != problem_digest(other)
    assert benchmark_digest([one, other]) != benchmark_digest([other, one])
    assert problem_digest(problem(base_input=[[{"b", "a"}]])) == problem_digest(problem(base_input=[[{"a", "b"}]]))


def test_special_rules_follow_the_task_not_the_file() -> None:
    found = [rules_of(problem(task_id=task_id)) for task_id in ("HumanEval/3", "Mbpp/2", "Own/HumanEval/3")]
    assert found == ["humaneval", "mbpp", "none"]


def test_samples_for_unknown_tasks_are_named() -> None:
    with pytest.raises(DataError, match=r"2 of the samples' tasks are not in the benchmark: A/1, B/2\. Expected"):
        pair_with_problems([problem()], [Solution("B/2", ""), Solution("Own/0", ""), Solution("A/1", "")])
