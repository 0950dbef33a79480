"""Files by the split in their names; and what is said where none has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from codetune.data.splits import files_of_split
from codetune.errors import DataError
from codetune.project.sections import Dataset


def taken(names: str, split: str, path: str = "data") -> str:
    files = {name: Path(path, name) for name in names.split()}
    return " ".join(files_of_split(files, Dataset(path=path, split=split), path))


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        ("train-0.jsonl train-1.jsonl test-0.jsonl", "train", "train-0.jsonl train-1.jsonl"),
        ("train-0.jsonl test-0.jsonl", "test", "test-0.jsonl"),
        ("train/a.parquet validation/a.parquet", "validation", "validation/a.parquet"),
        ("evol_train.json evol_dev.json", "dev", "evol_dev.json"),
        ("a.jsonl b.jsonl", "train", "a.jsonl b.jsonl"),
        ("a.jsonl train.jsonl", "train", "train.jsonl"),
        ("unit-test-writing.jsonl contest.jsonl", "train", "unit-test-writing.jsonl contest.jsonl"),
        ("train_a-00000-of-00001.json train_b-00000-of-00001.json", "train_b", "train_b-00000-of-00001.json"),
        ("data-00000-of-00001.json a.json", "train", "data-00000-of-00001.json a.json"),
    ],
)
def test_the_files_that_a_split_names_are_taken(names: str, split: str, expected: str) -> None:
    assert taken(names, split) == expected


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        ("a.jsonl", "test", r"dataset\.split is test, and no file name in data says a split"),
        ("dev.jsonl test.jsonl a.jsonl", "train", r"dataset\.split is train, .* the names say test, validation\."),
        ("train.jsonl test.jsonl", "train[:10%]", r"dataset\.split is train\[:10%\], .* the names say test, train\."),
    ],
)
def test_a_split_that_no_file_has_is_an_error_that_lists_those_that_there_are(
    names: str, split: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        taken(names, split)


def test_a_single_file_that_the_project_names_is_all_of_train_whatever_its_name() -> None:
    assert taken("test.jsonl", "train", path="test.jsonl") == "test.jsonl"
