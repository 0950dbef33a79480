"""Every row format by an example; and what it takes to add one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from codetune.data import row_formats
from codetune.data.row_formats import ROW_FORMATS, RowFormat, find_row_format, messages_of
from codetune.data.source import read_examples
from codetune.project.sections import Dataset
from codetune.records import Example, Message

DATASET = Dataset(instruction="problem", response="solution")
PAIR = {"problem": "Add.", "solution": "a + b"}
TURNS = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "a + b"}]
MESSAGES = (Message("user", "Add."), Message("assistant", "a + b"))


@pytest.mark.parametrize(
    ("row", "name", "messages"),
    [
        (PAIR, "pair", MESSAGES),
        ({**PAIR, "lang": "python"}, "pair", MESSAGES),
        ({**PAIR, "input": "2 3"}, "alpaca", (Message("user", "Add.\n\n2 3"), MESSAGES[1])),
        ({**PAIR, "input": None}, "alpaca", MESSAGES),
        ({**PAIR, "input": " \n"}, "alpaca", MESSAGES),
        ({"messages": TURNS}, "chat", MESSAGES),
        ({"messages": TURNS, "problem": "x"}, "chat", MESSAGES),
        ({"messages": [], **PAIR}, "pair", MESSAGES),
    ],
)
def test_a_row_is_read_by_the_format_whose_columns_it_has(
    row: dict[str, object], name: str, messages: tuple[Message, ...]
) -> None:
    found = find_row_format(row, DATASET)
    assert found is not None
    assert (found.name, messages_of(row, DATASET)) == (name, messages)


@pytest.mark.parametrize("columns", [("input", "solution"), ("problem", "input")])
def test_a_column_input_that_the_project_names_is_not_added_to_the_instruction(columns: tuple[str, str]) -> None:
    dataset = Dataset(instruction=columns[0], response=columns[1])
    row = dict(zip(columns, ("Add.", "a + b"), strict=True))
    assert messages_of(row, dataset) == MESSAGES


def test_every_format_has_a_name_of_its_own() -> None:
    assert len({one.name for one in ROW_FORMATS}) == len(ROW_FORMATS)


def test_a_format_is_added_by_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added = RowFormat(
        "question and answer",
        columns=lambda dataset: ("q", "a"),
        messages=lambda row, dataset: (Message("user", str(row["q"])), Message("assistant", str(row["a"]))),
    )
    monkeypatch.setattr(row_formats, "ROW_FORMATS", (*ROW_FORMATS, added))
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"q": "Add.", "a": "a + b"}), encoding="utf-8")
    (example,) = read_examples(Dataset(path=str(path)), str(path))
    assert isinstance(example, Example)
    assert example.messages == MESSAGES
