"""Every row format by an example; and what it takes to add one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from codetune.data import row_formats
from codetune.data.row_formats import ROW_FORMATS, RowFormat, columns_to_read, find_row_format, left_out, messages_of
from codetune.data.source import read_examples
from codetune.data.tool_calls import tools_json
from codetune.project.sections import Dataset
from codetune.records import Example, Message

DATASET = Dataset(instruction="problem", response="solution")
PAIR = {"problem": "Add.", "solution": "a + b"}
TURNS = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "a + b"}]
SHAREGPT_TURNS = [{"from": "human", "value": "Add."}, {"from": "gpt", "value": "a + b"}]
SYSTEM = {"role": "system", "content": "Be brief."}
HISTORY = (Message("user", "Hi"), Message("assistant", "Yo"))
MESSAGES = (Message("user", "Add."), Message("assistant", "a + b"))
PARTS = [{"type": "text", "text": "Ad"}, {"type": "text", "text": "d.", "image_url": None}]
ARGUMENTS = {"a": 1, "b": [2]}
CALL = json.dumps([{"type": "function", "function": {"name": "add", "arguments": ARGUMENTS}}])
CALL_1 = json.dumps([{"id": "c1", "type": "function", "function": {"name": "add", "arguments": ARGUMENTS}}])


def called(call: object, content: object = None, **answer: str) -> dict[str, object]:
    """A row in which the assistant makes one call, or those of a list as text."""
    calls = call if isinstance(call, str) else [call]
    turn = {"role": "assistant", "content": content, "tool_calls": calls}
    return {"messages": [TURNS[0], turn, {"role": "tool", "content": "3", **answer}, TURNS[1]]}


def messages_with(calls: str, **answer: str) -> tuple[Message, ...]:
    return MESSAGES[0], Message("assistant", "", calls), Message("tool", "3", **answer), MESSAGES[1]


ROLES_EXPECTED = "a message's role is none of system, user, assistant, tool, function"
TRL = Dataset(instruction="prompt", response="completion")


@pytest.mark.parametrize(
    ("row", "name", "messages"),
    [
        ({"messages": [{"role": "user", "content": PARTS}, TURNS[1]]}, "chat", MESSAGES),
        ({"messages": [{"role": "user", "content": ["Add", "."]}, TURNS[1]]}, "chat", MESSAGES),
        ({"messages": json.dumps(TURNS)}, "chat", MESSAGES),
        ({"conversation": TURNS}, "conversation", MESSAGES),
        ({"prompt": "Add.", "completion": "a + b"}, "prompt_completion", MESSAGES),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, "prompt_completion", MESSAGES),
        ({"prompt": [SYSTEM, TURNS[0]], "completion": "a + b"}, "prompt_completion", (Message(**SYSTEM), *MESSAGES)),
        ({"messages": [{"role": "user", "content": [{"type": "text", "value": "Add."}]}, TURNS[1]]}, "chat", MESSAGES),
        (called({"name": "add", "arguments": json.dumps(json.dumps(ARGUMENTS))}), "chat", messages_with(CALL)),
        ({"prompt": TURNS[:1], "completion": TURNS}, "prompt_completion", MESSAGES),
        ({"prompt": json.dumps(TURNS[:1]), "completion": json.dumps(TURNS[1:])}, "prompt_completion", MESSAGES),
        (
            {"prompt": "[]", "completion": "[{}]"},
            "prompt_completion",
            (Message("user", "[]"), Message("assistant", "[{}]")),
        ),
        ({"prompt": "Add.", "completion": "a + b", "label": True}, "prompt_completion", MESSAGES),
        ({"messages": [{**SYSTEM, "role": "developer"}, *TURNS]}, "chat", (Message(**SYSTEM), *MESSAGES)),
        ({"messages": [{"role": "human", "content": "Add."}, TURNS[1]]}, "chat", MESSAGES),
        (called({"function": {"name": "add", "arguments": ARGUMENTS}}), "chat", messages_with(CALL)),
        (called({"function": {"name": "add", "arguments": json.dumps(ARGUMENTS)}}), "chat", messages_with(CALL)),
        (called({"name": "add", "arguments": {**ARGUMENTS, "c": None}}, ""), "chat", messages_with(CALL)),
        (called(CALL), "chat", messages_with(CALL)),
        (
            called({"id": "c1", "function": {"name": "add", "arguments": ARGUMENTS}}, tool_call_id="c1", name="add"),
            "chat",
            messages_with(CALL_1, call_id="c1", name="add"),
        ),
        (
            {
                "conversations": [
                    SHAREGPT_TURNS[0],
                    {"from": "function_call", "value": json.dumps({"name": "add", "arguments": ARGUMENTS})},
                    {"from": "observation", "value": "3"},
                    SHAREGPT_TURNS[1],
                ]
            },
            "sharegpt",
            messages_with(CALL),
        ),
        (
            {
                "messages": [
                    TURNS[0],
                    {"role": "assistant", "function_call": {"name": "add", "arguments": json.dumps(ARGUMENTS)}},
                    {"role": "function", "name": "add", "content": "3"},
                    TURNS[1],
                ]
            },
            "chat",
            messages_with(CALL, name="add"),
        ),
    ],
)
def test_parts_calls_and_lists_of_turns_become_messages(
    row: dict[str, object], name: str, messages: tuple[Message, ...]
) -> None:
    found = find_row_format(row, TRL)
    assert found is not None
    assert (found.name, messages_of(row, TRL)) == (name, messages)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"messages": [{"role": "user", "content": [*PARTS, {"type": "image_url", "image_url": {}}]}, TURNS[1]]},
            "a message has a part of the type image_url",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}, TURNS[1]]}, "a message's content is not text"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": None}]}, "a message's content is not text"),
        ({"messages": [{**TURNS[0], "images": ["a.png"]}, TURNS[1]]}, "images cannot be written as text"),
        ({"messages": TURNS, "image": "a.png"}, "image cannot be written as text"),
        ({"messages": "Add."}, "messages is not a list of objects"),
        ({"messages": TURNS, "tools": "add"}, "tools is not a list of objects"),
        (called("add"), "tool_calls is not a list of objects"),
        (called({"function": {"arguments": "{}"}}), "a call in tool_calls has no name"),
        (called({"name": "add", "arguments": "a=1"}), "the arguments of a call in tool_calls are not an object"),
        (called({"name": "add", "arguments": [1]}), "the arguments of a call in tool_calls are not an object"),
        (
            called({"name": "add", "arguments": {"a": json.loads("[" * 99 + "]" * 99)}}),
            "a tool or a call is nested too deep",
        ),
        ({"prompt": TURNS[:1], "completion": [{"role": "robot", "content": "x"}]}, ROLES_EXPECTED),
        ({"prompt": [], "completion": "x"}, "instruction is not text"),
        ({"prompt": "Add.", "completion": "x", "label": False}, "label is false: the answer is one to avoid"),
        ({"messages": TURNS, "kto_tag": "False"}, "kto_tag is false: the answer is one to avoid"),
        ({"conversation": [{"human": "Hi", "bot": "Yo"}]}, "a turn has human, bot instead of role and content"),
        (called({"name": "add\ud800"}), "text is not valid Unicode"),
    ],
)
def test_a_part_that_cannot_be_written_is_a_reason_to_refuse_the_row(row: dict[str, object], reason: str) -> None:
    assert messages_of(row, TRL) == reason


TOOL = {"name": "add", "parameters": {"type": "object"}}
WRAPPED_TOOL = {"type": "function", "function": TOOL}


@pytest.mark.parametrize("column", ["tools", "functions"])
@pytest.mark.parametrize(
    "tools",
    [[TOOL], json.dumps([TOOL]), [WRAPPED_TOOL], [{**TOOL, "strict": None}]],
    ids=["objects", "text", "wrapped", "with a null"],
)
def test_tools_are_read_as_objects_or_text_and_wrapped_as_templates_expect_them(column: str, tools: object) -> None:
    assert tools_json({column: tools}) == json.dumps([WRAPPED_TOOL])


@pytest.mark.parametrize("row", [{"tools": []}, {"tools": None}, {}], ids=["empty", "null", "absent"])
def test_a_row_without_tools_has_none(row: dict[str, object]) -> None:
    assert tools_json(row) == ""


@pytest.mark.parametrize(
    ("row", "name", "messages"),
    [
        (PAIR, "pair", MESSAGES),
        ({**PAIR, "lang": "python"}, "pair", MESSAGES),
        ({**PAIR, "input": "2 3"}, "alpaca", (Message("user", "Add.\n\n2 3"), MESSAGES[1])),
        ({**PAIR, "input": None}, "alpaca", MESSAGES),
        ({**PAIR, "input": " \n"}, "alpaca", MESSAGES),
        ({**PAIR, "input": "\u200b"}, "alpaca", MESSAGES),
        ({**PAIR, "problem": "", "input": "2 3"}, "alpaca", (Message("user", "2 3"), MESSAGES[1])),
        ({**PAIR, "label": False}, "pair", MESSAGES),
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
        ({**PAIR, "documents": ["a"], "tools": "[{}]"}, ["documents"]),
        ({**PAIR, "context": "2 3"}, []),
        ({**PAIR, "input": "2", "context": "3"}, ["context"]),
        ({**PAIR, "Input": "2", "SYSTEM": "Be brief.", "Id": 1}, ["Input", "SYSTEM"]),
        ({"messages": [{**turn, "weight": 1, "training": True, "id": "x"} for turn in TURNS]}, []),
        ({"messages": [{**TURNS[0], "weight": 0}, {**TURNS[1], "loss_weight": 1.0}]}, []),
        ({"messages": [TURNS[0], {**TURNS[1], "reasoning_content": "Well."}]}, ["messages[].reasoning_content"]),
        ({"conversations": [{**turn, "thinking": "Well."} for turn in TURNS]}, ["conversations[].thinking"]),
        ({"messages": json.dumps([TURNS[0], {**TURNS[1], "thinking": "Well."}])}, ["messages[].thinking"]),
        ({"other": 1, "documents": ["a"]}, []),
        ("text", []),
    ],
)
def test_context_that_no_message_has_is_named(row: object, names: list[str]) -> None:
    assert [name for name, _ in left_out(row, DATASET)] == names


def test_of_a_table_the_columns_of_its_format_and_of_context_are_read() -> None:
    names = ["id", "date", "system", "solution", "problem", "images", "tools", "messages"]
    assert columns_to_read(names, DATASET) == ("system", "solution", "problem", "images", "tools")
    assert columns_to_read(["id", "problem"], DATASET) == ()


@pytest.mark.parametrize(
    ("key", "value"), [("weight", 0), ("train", False), ("training", False), ("loss", False), ("weight", "0")]
)
def test_an_answer_that_its_data_set_excludes_from_training_is_not_learned(key: str, value: object) -> None:
    excluded = [TURNS[0], {**TURNS[1], key: value}]
    assert messages_of({"messages": excluded}, DATASET) == "no answer is to be learned: each has the weight 0"
    kept = messages_of({"messages": [*excluded, *TURNS]}, DATASET)
    assert kept == (MESSAGES[0], replace(MESSAGES[1], learned=False), *MESSAGES)
    # What follows the last learned answer has no part in the loss.
    assert messages_of({"messages": [*TURNS, *excluded]}, DATASET) == MESSAGES


@pytest.mark.parametrize(("key", "value"), [("weight", 0.5), ("loss_weight", -1), ("train", "yes")])
@pytest.mark.parametrize("turn", [0, 1])
def test_a_weight_that_is_neither_0_nor_1_refuses_the_row(key: str, value: object, turn: int) -> None:
    turns = [*TURNS]
    turns[turn] = {**turns[turn], key: value}
    assert messages_of({"messages": turns}, DATASET) == f"a message's {key} is neither 0 nor 1"


@pytest.mark.parametrize("key", ["train_detail", "training_detail"])
def test_an_answer_of_which_a_part_is_not_to_be_learned_refuses_the_row(key: str) -> None:
    part = {"begin_offset": 0, "end_offset": 1, "train": False}
    reason = f"a message's {key} is of its parts: an answer is learned as a whole or not"
    assert messages_of({"messages": [TURNS[0], {**TURNS[1], key: [part]}]}, DATASET) == reason
    assert messages_of({"messages": [{**turn, key: []} for turn in TURNS]}, DATASET) == MESSAGES


def test_a_conversation_with_its_answers_in_chosen_and_rejected_is_a_preference_pair() -> None:
    pair = {"chosen": SHAREGPT_TURNS[1], "rejected": SHAREGPT_TURNS[1]}
    reason = "a preference pair: its answers stand in chosen and rejected"
    assert messages_of({"conversations": SHAREGPT_TURNS[:1], **pair}, DATASET) == reason
    assert messages_of({"conversations": SHAREGPT_TURNS, **pair}, DATASET) == MESSAGES
    assert columns_to_read(["conversations", "chosen", "rejected"], DATASET) == ("conversations", "chosen", "rejected")


def test_turns_as_python_writes_them_are_told_from_json() -> None:
    assert messages_of({"messages": str(TURNS)}, DATASET) == "messages is a list in text that is not JSON"


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
