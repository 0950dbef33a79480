"""Shards as the user types them, and what stands in the environment before libraries are loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codetune.errors import UsageError
from codetune.launch import parse_shard, prepare_process, thread_count


@given(st.data())
def test_every_shard_within_its_count_is_understood(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 10_000))
    index = data.draw(st.integers(0, count - 1))
    assert parse_shard(f"{index}/{count}") == (index, count)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8/8", "from 0 to 7"),
        ("1/1", "from 0 to 0"),
        ("0/0", "N of at least 1"),
        ("a/b", "two whole numbers"),
        ("1", "two whole numbers"),
        ("1/2/3", "two whole numbers"),
        ("-1/2", "two whole numbers"),
        ("1 / 2", "two whole numbers"),
        ("1/2\n", "two whole numbers"),
        ("", "two whole numbers"),
    ],
)
def test_an_impossible_shard_is_told_with_a_possible_one(text: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        parse_shard(text)


def test_every_process_has_the_threads_that_codetune_sets_whatever_the_launcher_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    prepare_process()
    assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == str(thread_count())


def test_what_the_user_set_for_a_library_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "debug")
    prepare_process()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "debug"


def test_the_thread_count_follows_the_cores_that_the_process_may_use() -> None:
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from codetune.launch import thread_count; print(thread_count())"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout == "1\n"
