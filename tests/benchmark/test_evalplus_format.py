from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from codetune import user_files
from codetune.benchmark.benchmarks import read_problems
from codetune.benchmark.evalplus_format import (
    as_solution,
    holds_samples,
    pair_with_problems,
    read_rows,
    read_samples,
    sample_row,
)
from codetune.errors import DataError
from codetune.records import Completion, Solution
from tests.benchmark.tasks import PROMPT, ROW, problem, write_rows


def test_tasks_are_read_in_their_order_plain_or_gzipped(tmp_path: Path) -> None:
    plain = write_rows(tmp_path / "own.jsonl", ROW | {"task_id": "Own/1"}, ROW)
    packed = tmp_path / "own.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_problems(plain) == [problem(task_id="Own/1"), problem()]
    assert read_problems(packed) == read_problems(plain)


def test_mbpp_inputs_become_tuples_again(tmp_path: Path) -> None:
    # EvalPlus: the arguments of Mbpp/2 are tuples, those of Mbpp/252 complex numbers.
    two = ROW | {"task_id": "Mbpp/2", "base_input": [[[3, 4], [5]]], "plus_input": {}}
    complexes = ROW | {"task_id": "Mbpp/252", "base_input": [["(1+2j)"]], "plus_input": []}
    found = read_problems(write_rows(tmp_path / "mbpp.jsonl", two, complexes))
    assert [task.base_input for task in found] == [[[(3, 4), (5,)]], [[1 + 2j]]]
    assert read_problems(write_rows(tmp_path / "own.jsonl", ROW))[0].base_input == [[1], [2]]


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
        ({"task_id": "Own/\ud800"}, r"task_id is 'Own/\\ud800', which is not text: character 5"),
        ({"prompt": "\udfff"}, "half of a surrogate pair"),
        ({"task_id": "Mbpp/252", "base_input": [["one"]]}, "does not fit the MBPP task Mbpp/252"),
        ({"task_id": "Mbpp/x"}, "does not fit the MBPP task"),
        ({"task_id": "Own/9"}, "task_id 'Own/9' stands in the file already"),
    ],
)
def test_a_task_of_the_wrong_form_is_named_with_its_line(tmp_path: Path, change: Any, message: str) -> None:
    path = write_rows(tmp_path / "own.jsonl", ROW | {"task_id": "Own/9"}, ROW | change)
    with pytest.raises(DataError, match=message) as error:
        read_problems(path)
    assert f"{path}:2: " in str(error.value)


def test_a_missing_key_and_an_empty_file_are_errors(tmp_path: Path) -> None:
    without = {key: value for key, value in ROW.items() if key != "plus_input"}
    with pytest.raises(DataError, match=r"own.jsonl:1: plus_input is not there"):
        read_problems(write_rows(tmp_path / "own.jsonl", without))
    with pytest.raises(DataError, match="no tasks"):
        read_problems(write_rows(tmp_path / "empty.jsonl"))


def test_a_mark_of_byte_order_and_line_ends_of_windows_are_read_over(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r\n")
    assert read_problems(path) == [problem()]


def test_samples_for_unknown_tasks_are_named() -> None:
    with pytest.raises(DataError, match=r"2 of the samples' tasks are not in the benchmark: A/1, B/2\. Expected"):
        pair_with_problems([problem()], [Solution("B/2", ""), Solution("Own/0", ""), Solution("A/1", "")])


def test_samples_of_both_forms_are_read_and_counted(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "samples.jsonl",
        {"task_id": "Own/0", "completion": " return 1", "more": 1},
        {"task_id": "Own/1", "completion": "x", "solution": "y"},
        {"task_id": "Own/0", "solution": "z"},
    )
    found = read_samples(path)
    assert found == [Completion("Own/0", " return 1", 0), Solution("Own/1", "y", 0), Solution("Own/0", "z", 1)]
    assert read_samples(write_rows(tmp_path / "again.jsonl", *map(sample_row, found))) == found


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"task_id": "Own/0"}, "neither completion nor solution"),
        ({"task_id": "Own/0", "solution": ["a", "b"]}, "solution is list"),
        ({"solution": "a"}, "no task_id that is text"),
        ({"task_id": "Own/\ud800", "solution": "a"}, r"task_id is 'Own/\\ud800', which is not text"),
    ],
)
def test_a_sample_of_another_form_is_named_with_its_line(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(DataError, match=f"samples.jsonl:1: {message}"):
        read_samples(write_rows(tmp_path / "samples.jsonl", row))
    with pytest.raises(DataError, match="no samples"):
        read_samples(write_rows(tmp_path / "empty.jsonl"))


def test_a_sample_that_was_not_sanitized_is_judged_as_evalplus_would() -> None:
    assert as_solution(problem(), Completion("Own/0", " return 1", 2)) == Solution("Own/0", PROMPT + " return 1", 2)
    assert as_solution(problem(), Solution("Own/0", "x = 1")) == Solution("Own/0", "x = 1")


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"task_id": "Own/0", "completion": "x"}, True),
        ({"task_id": "Own/0", "prompt": PROMPT, "solution": "x"}, True),
        (ROW, False),
    ],
)
def test_a_file_of_samples_is_told_from_a_benchmark_by_its_first_line(tmp_path: Path, row: object, found: bool) -> None:
    assert holds_samples(write_rows(tmp_path / "own.jsonl", row)) == found


def test_rows_come_with_file_and_line_and_blank_lines_count(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    # U+2028 ends a line for str.splitlines, and stands in JSON text as it is.
    path.write_text('{"a": 1}\r\n\n{"b": "\u2028"}', encoding="utf-8")
    assert list(read_rows(path, "rows")) == [(f"{path}:1", {"a": 1}), (f"{path}:3", {"b": "\u2028"})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": ', "rows.jsonl:2: not JSON"),
        (b'{"a": 1}\n[1]\n', "rows.jsonl:2: list instead of a JSON object"),
        (b'{"a": ' + b"9" * 5000 + b"}", "rows.jsonl:1: not JSON .Exceeds the limit"),
        (b'{"a": 1}\n{"a": "\xff"}', "rows.jsonl:2: not JSON .*utf-8"),
        (gzip.compress(b'{"a": 1}' * 1000, mtime=0)[:40], "cannot be read .*ended"),
        (b"\x1f\x8bnot gzip", "cannot be read"),
    ],
)
def test_a_damaged_file_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_rows(path, "rows"))


def test_a_file_that_unpacks_to_far_more_than_its_size_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(gzip.compress(b"\n" * 1_000_000))
    monkeypatch.setattr(user_files, "UNPACKED_BYTES", 1000)
    with pytest.raises(DataError, match=r"rows\.jsonl has .* unpacks to more than"):
        list(read_rows(path, "rows"))


def test_a_line_without_end_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_files, "ROW_BYTES", 10)
    with pytest.raises(DataError, match=r"rows\.jsonl:1 is longer than"):
        read_samples(write_rows(tmp_path / "rows.jsonl", {"task_id": "Own/0", "solution": "x" * 10}))


def test_a_named_pipe_is_refused_and_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=r"rows\.jsonl is a named pipe"):
        holds_samples(tmp_path / "rows.jsonl")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(No such file or directory\). Expected: rows"):
        list(read_rows(tmp_path / "rows.jsonl", "rows"))
