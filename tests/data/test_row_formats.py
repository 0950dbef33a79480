"""Every row format by an example; and what it takes to add one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from codetune.data import row_formats
from codetune.data.row_formats import ROW_FORMATS, RowFormat, columns_to_read, find_row_format, left_out, messages_of
from codetune.data.source import read_examples
from codetune.project.sections import Dataset
from codetune.records import Example, Message

DATASET = Dataset(instruction="problem", response="solution")
PAIR = {"problem": "Add.", "solution": "a + b"}
TURNS = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "a + b"}]
SHAREGPT_TURNS = [{"from": "human", "value": "Add."}, {"from": "gpt", "value": "a + b"}]
SYSTEM = {"role": "system", "content": "Be brief."}
HISTORY = (Message("user", "Hi"), Message("assistant", "Yo"))
MESSAGES = (Message("user", "Add."), Message("assistant", "a + b"))


@pytest.mark.parametrize(
    ("row", "name", "messages"),
    [
        (PAIR, "pair", MESSAGES),
        ({**PAIR, "lang": "python"}, "pair", MESSAGES),
        ({**PAIR, "input": "2 3"}, "alpaca", (Message("user", "Add.\n\n2 3"), MESSAGES[1])),
        ({**PAIR, "input": None}, "alpaca", MESSAGES),
        ({**PAIR, "input": " \n"}, "alpaca", MESSAGES),
        ({**PAIR, "input": "\u200b"}, "alpaca", MESSAGES),
        ({**PAIR, "context": "2 3"}, "dolly", (Message("user", "Add.\n\n2 3"), MESSAGES[1])),
        ({**PAIR, "system": "Be brief.", "history": []}, "pair", (Message("system", "Be brief."), *MESSAGES)),
        ({**PAIR, "system_prompt": " "}, "pair", MESSAGES),
        ({**PAIR, "history": [["Hi", "Yo"]], "system": None}, "pair", (*HISTORY, *MESSAGES)),
        ({"messages": TURNS}, "chat", MESSAGES),
        ({"messages": [SYSTEM, *TURNS], "system": "Be brief."}, "chat", (Message("system", "Be brief."), *MESSAGES)),
        ({"conversations": SHAREGPT_TURNS, "id": 1}, "sharegpt", MESSAGES),
        ({"conversations": TURNS}, "sharegpt", MESSAGES),
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


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({**PAIR, "id": 7, "lang": "python", "history": [["Hi", "Yo"]], "tools": "[]", "images": None}, []),
        ({**PAIR, "images": ["a.png"], "tools": "[{}]"}, ["images", "tools"]),
        ({**PAIR, "context": "2 3"}, []),
        ({**PAIR, "input": "2", "context": "3"}, ["context"]),
        ({**PAIR, "Input": "2", "SYSTEM": "Be brief.", "Id": 1}, ["Input", "SYSTEM"]),
        ({"messages": [{**turn, "weight": 1, "training": True, "id": "x"} for turn in TURNS]}, []),
        ({"messages": [{**TURNS[0], "loss": False}, TURNS[1]]}, ["messages[].loss"]),
        (
            {"messages": [{**TURNS[0], "weight": 0}, {**TURNS[1], "tool_calls": [1]}]},
            ["messages[].tool_calls", "messages[].weight"],
        ),
        ({"conversations": [{**turn, "thinking": "Well."} for turn in TURNS]}, ["conversations[].thinking"]),
        ({"other": 1, "images": ["a.png"]}, []),
        ("text", []),
    ],
)
def test_context_that_no_message_has_is_named(row: object, names: list[str]) -> None:
    assert [name for name, _ in left_out(row, DATASET)] == names


def test_of_a_table_the_columns_of_its_format_and_of_context_are_read() -> None:
    names = ["id", "date", "system", "solution", "problem", "images", "messages"]
    assert columns_to_read(names, DATASET) == ("system", "solution", "problem", "images")
    assert columns_to_read(["id", "problem"], DATASET) == ()


@pytest.mark.parametrize(
    ("key", "value"), [("weight", 0), ("train", False), ("training", False), ("loss", False), ("weight", "0")]
)
def test_an_answer_that_its_data_set_excludes_from_training_is_refused(key: str, value: object) -> None:
    assert messages_of({"messages": [TURNS[0], {**TURNS[1], key: value}]}, DATASET) == f"the answer has {key} 0"


def test_a_blank_system_message_is_none() -> None:
    row = {"messages": [{"role": "system", "content": " "}, *TURNS]}
    assert messages_of(row, DATASET) == messages_of({"messages": TURNS}, DATASET)


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
    (example,) = read_examples(DATASET.model_copy(update={"path": str(path)}), str(path))
    assert isinstance(example, Example)
    assert example.messages == MESSAGES
