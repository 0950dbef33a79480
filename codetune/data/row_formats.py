"""One row of a data file -> the messages of its conversation, or the reason why it has none.

A row format is one record of `ROW_FORMATS`: the columns by which a row is recognised, and how they become messages. The
first format whose columns a row has is taken. What every conversation must have is checked by `source.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

from codetune.project.sections import Dataset
from codetune.records import Message, Role
from codetune.text import lone_surrogate

Messages = tuple[Message, ...]
Columns = Mapping[str, object]  # a row: the value of each column
ROLES = get_args(Role)


@dataclass(frozen=True, slots=True)
class RowFormat:
    """The functions that recognise and read the rows of one format."""

    name: str
    columns: Callable[[Dataset], tuple[str, ...]]  # a row that has all of them is of this format
    messages: Callable[[Columns, Dataset], Messages | str]  # or the reason for refusing the row


def messages_of(row: object, dataset: Dataset) -> Messages | str:
    """The messages of a row, or the reason for refusing it."""
    if not isinstance(row, dict):
        return "not an object"
    row_format = find_row_format(row, dataset)
    if row_format is None:
        return f"no column {dataset.response if dataset.instruction in row else dataset.instruction}"
    messages = row_format.messages(row, dataset)
    if not isinstance(messages, str) and any(lone_surrogate(message.content) is not None for message in messages):
        return "text is not valid Unicode"
    return messages


def find_row_format(row: Columns, dataset: Dataset) -> RowFormat | None:
    """The first format whose columns the row has."""
    return next((one for one in ROW_FORMATS if row.keys() >= set(one.columns(dataset))), None)


def _pair(row: Columns, dataset: Dataset) -> Messages | str:
    """Two turns: the instruction and its response, in the columns that the project names."""
    instruction, response = row[dataset.instruction], row[dataset.response]
    if not isinstance(instruction, str):
        return "instruction is not text"
    if not isinstance(response, str):
        return "answer is not text"
    return Message("user", instruction), Message("assistant", response)


def _alpaca(row: Columns, dataset: Dataset) -> Messages | str:
    """A pair whose column `input`, unless it is blank, follows the instruction after an empty line."""
    pair, addition = _pair(row, dataset), row["input"]
    if isinstance(pair, str) or "input" in (dataset.instruction, dataset.response):
        return pair
    if not isinstance(addition, str | None):
        return "input is not text"
    if addition is None or not addition.strip():
        return pair
    instruction, response = pair
    return Message("user", f"{instruction.content}\n\n{addition}"), response


def _chat(row: Columns, dataset: Dataset) -> Messages | str:
    """Turns with a role and a content, of any number."""
    turns = row["messages"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return "messages is not a list of objects"
    if not all(isinstance(turn.get("content"), str) for turn in turns):
        return "a message's content is not text"
    if not all(turn.get("role") in ROLES for turn in turns):
        return f"a message's role is none of {', '.join(ROLES)}"
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


ROW_FORMATS = (
    RowFormat("alpaca", lambda dataset: (dataset.instruction, dataset.response, "input"), _alpaca),
    RowFormat("pair", lambda dataset: (dataset.instruction, dataset.response), _pair),
    RowFormat("chat", lambda dataset: ("messages",), _chat),
)
