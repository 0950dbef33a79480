"""examples.jsonl: the rows of the data set come back as they were read, in their order, by id and without parsing."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codetune.errors import DataError
from codetune.records import Example, Message, Refusal
from codetune.store.examples import (
    ExamplesSummary,
    example_ids,
    read_examples,
    read_ids,
    read_lines,
    read_rows,
    write_examples,
)
from codetune.store.run_directory import Run

DUPLICATE = Refusal(None, "duplicate of a.jsonl:1", "a.jsonl:2")
EMPTY = Refusal("00000000000000ee", "empty answer", "a.jsonl:3")

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = st.text(max_size=8)  # of files: may hold lone surrogates
IDS = st.integers(0, 2**64 - 1).map("{:016x}".format)
EXAMPLES = st.builds(
    Example,
    IDS,
    st.lists(
        st.builds(Message, st.sampled_from(["system", "user", "assistant"]), TEXTS, learned=st.booleans()),
        min_size=1,
        max_size=3,
    ).map(tuple),
    NAMES,
    NAMES,
)
ROWS = st.lists(st.one_of(EXAMPLES, st.builds(Refusal, st.one_of(st.none(), IDS), NAMES, NAMES)), max_size=6)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_a_row_is_one_line_with_its_messages_its_position_and_its_source(run: Run) -> None:
    write_examples(run, [example(3), DUPLICATE, EMPTY])
    assert run.examples.read_text(encoding="utf-8").splitlines() == [
        '{"id": "0000000000000003", "messages": [{"role": "user", "content": "question 3 é"}, '
        '{"role": "assistant", "content": "answer 3"}], "at": "a.jsonl:3", "source": "a.jsonl"}',
        '{"id": null, "at": "a.jsonl:2", "refused": "duplicate of a.jsonl:1"}',
        '{"id": "00000000000000ee", "at": "a.jsonl:3", "refused": "empty answer"}',
    ]


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_rows_come_back_as_they_were_written(rows: list[Example | Refusal]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        run = Run(Path(directory))
        write_examples(run, iter(rows))
        usable = [row for row in rows if isinstance(row, Example)]
        assert list(read_rows(run)) == rows
        assert list(read_examples(run)) == usable
        assert list(read_ids(run)) == [row.id if isinstance(row, Example) else row for row in rows]
        assert example_ids(run).tolist() == [int(row.id, 16) for row in usable]


def test_rows_are_usable_or_refused_and_counted_by_kind(run: Run) -> None:
    rows = [example(3), DUPLICATE, replace(DUPLICATE, reason="duplicate of a.jsonl:3"), example(1), EMPTY]
    summary = write_examples(run, rows)
    assert (summary.rows, summary.refused) == (2, {"duplicate": 2, "empty answer": 1})


def test_an_empty_data_set_has_no_rows(run: Run) -> None:
    summary = write_examples(run, [])
    assert (summary.rows, summary.refused, list(read_rows(run)), len(example_ids(run))) == (0, {}, [], 0)


def test_calls_and_tools_stand_in_the_line_as_objects_and_are_part_of_the_digest(run: Run) -> None:
    call = '[{"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": "é"}}}]'
    turns = (Message("user", "x"), Message("assistant", "", call), Message("tool", "2", call_id="c1", name="add"))
    row = replace(example(3), messages=(*turns, Message("assistant", "y")), tools='[{"name": "add"}]')
    digest = write_examples(run, [row]).digest
    assert list(read_examples(run)) == [row]
    document = json.loads(run.examples.read_text(encoding="utf-8"))
    assert document["messages"][1] == {"role": "assistant", "content": "", "tool_calls": json.loads(call)}
    assert document["messages"][2] == {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "add"}
    assert document["tools"] == [{"name": "add"}]
    assert write_examples(run, [replace(row, tools="")]).digest != digest


def test_the_least_id_is_a_usable_row(run: Run) -> None:
    write_examples(run, [example(0)])
    assert (list(read_ids(run)), example_ids(run).tolist()) == (["0" * 16], [0])


def test_another_path_of_the_same_data_has_the_same_digest(run: Run) -> None:
    here = write_examples(run, [example(1), DUPLICATE, EMPTY])
    there = write_examples(
        run,
        [
            replace(example(1), at="b.parquet:row 1", source="b.parquet"),
            Refusal(None, "duplicate of b.parquet:row 1", "b.parquet:row 2"),
            replace(EMPTY, at="b.parquet:row 3"),
        ],
    )
    assert here == there


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [DUPLICATE],
        ["example 1"],
        ["example 1", "example 2", DUPLICATE],
        ["example 2", "example 1", DUPLICATE, EMPTY],
        ["example 1", DUPLICATE, "example 2", EMPTY],
        ["example 1", "example 2", DUPLICATE, replace(EMPTY, id=None)],
        ["example 1", "example 2", DUPLICATE, replace(EMPTY, reason="empty instruction")],
        ["example 1", "example 2", EMPTY, DUPLICATE],
    ],
)
def test_other_rows_or_another_order_have_another_digest(rows: list[str | Refusal], run: Run) -> None:
    reference = digest_of(run, ["example 1", "example 2", DUPLICATE, EMPTY])
    assert digest_of(run, rows) != reference


def test_an_error_while_the_data_set_is_read_leaves_the_last_file(run: Run) -> None:
    def damaged() -> Iterator[Example | Refusal]:
        yield example(2)
        raise DataError("a.jsonl:2 is not JSON")

    write_examples(run, [example(1)])
    with pytest.raises(DataError, match=r"a\.jsonl:2"):
        write_examples(run, damaged())
    assert list(read_rows(run)) == [example(1)]
    assert list(run.directory.iterdir()) == [run.examples]


def test_lines_are_read_by_id_in_any_order(run: Run) -> None:
    write_examples(run, [example(3), DUPLICATE, example(1), EMPTY, example(2)])
    lines = read_lines(run, np.array([2, 3, 1], dtype=np.uint64))
    assert [json.loads(line)["id"] for line in lines] == [example(number).id for number in (2, 3, 1)]


@pytest.mark.parametrize("wanted", [7, 0xEE])
def test_a_line_that_is_no_usable_row_is_a_key_error(wanted: int, run: Run) -> None:
    write_examples(run, [example(3), EMPTY])
    with pytest.raises(KeyError, match=f"{wanted:016x}"):
        list(read_lines(run, np.array([3, wanted], dtype=np.uint64)))


def test_a_line_is_found_with_40_bytes_of_memory_a_row(run: Run) -> None:
    def peak(count: int) -> int:
        write_examples(run, map(example, range(count)))
        tracemalloc.start()
        next(read_lines(run, np.array([count - 1], dtype=np.uint64)))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert (peak(20_000) - peak(5_000)) / 15_000 < 48


def example(number: int) -> Example:
    messages = (Message("user", f"question {number} é"), Message("assistant", f"answer {number}"))
    return Example(f"{number:016x}", messages, f"a.jsonl:{number}", "a.jsonl")


def digest_of(run: Run, rows: list[str | Refusal]) -> str:
    summary: ExamplesSummary = write_examples(
        run, (example(int(row.split()[1])) if isinstance(row, str) else row for row in rows)
    )
    return summary.digest
