"""One row of a data file -> the messages of its conversation, or the reason why it has none.

A row format is one record of `ROW_FORMATS`: the columns by which a row is recognised, and how they become messages. The
first format whose columns a row has is taken. In every format `system` (or `system_prompt`) becomes a system message,
and `history`, pairs of question and answer, the turns before the others. LEFT_OUT are columns and keys of turns that
carry context and are not read: they are named, and rows that differ in them are no duplicates. Any other column (an id,
a language, a source) says something about the row and is ignored. What every conversation must have is checked by
`source.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from codetune.errors import DataError
from codetune.project.sections import Dataset
from codetune.records import Message, Role
from codetune.text import is_blank, lone_surrogate

Messages = tuple[Message, ...]
Columns = Mapping[str, object]  # a row: the value of each column
ROLES: Mapping[str, Role] = {role: role for role in get_args(Role)}
SHAREGPT_ROLES: Mapping[str, Role] = {"human": "user", "gpt": "assistant", **ROLES}
SYSTEM = ("system", "system_prompt")
HISTORY = "history"
LEFT_OUT = frozenset(
    ("context", "tools", "functions", "image", "images", "video", "videos", "audio", "audios", "documents")
)
NOT_LEARNED = ("0", "0.0", "false")
LEARNED = ("weight", "train", "training", "loss")  # keys of a turn, by program: whether it is learned, 1 or true if so
LEFT_OUT_OF_TURNS = frozenset(
    (*LEARNED, "tool_calls", "tool_call_id", "function_call", "reasoning_content", "thinking", "images")
)
EMPTY: tuple[object, ...] = (None, "", "[]", "{}", [], {})
TURNS = ("messages", "conversations")
INSTRUCTIONS = ("instruction", "problem", "question", "prompt", "query")  # usual names of the columns of a pair
RESPONSES = ("output", "response", "solution", "answer", "completion")
ABSENT = "\0"  # a column that no row has


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
        absent = (name for name in (dataset.instruction, dataset.response, *TURNS) if name and name not in row)
        return f"no column {next(absent)}"
    messages = row_format.messages(row, dataset)
    if not isinstance(messages, str):
        messages = _after_context(row, row_format.columns(dataset), messages)
    if not isinstance(messages, str) and any(lone_surrogate(message.content) is not None for message in messages):
        return "text is not valid Unicode"
    return messages


def find_row_format(row: Columns, dataset: Dataset) -> RowFormat | None:
    """The first format whose columns the row has."""
    return next((one for one in ROW_FORMATS if row.keys() >= set(one.columns(dataset))), None)


def find_columns(names: Sequence[str], dataset: Dataset, at: str) -> Dataset:
    """The data set with the columns that the project does not name, found by their usual names among those of the first
    rows; rows with turns need none. Raises DataError where none or several could be meant."""
    if dataset.instruction is None and dataset.response is None and any(name in names for name in TURNS):
        return dataset
    found: dict[str, str] = {}
    for key, usual in (("instruction", INSTRUCTIONS), ("response", RESPONSES)):
        matching = [name for word in usual for name in names if name.lower() == word]
        if getattr(dataset, key) is None and (len(matching) != 1 or matching[0] not in usual):
            could_be = f"any of {', '.join(matching)} could be it"
            fault = could_be if len(matching) > 1 else "none of its columns has a usual name"
            raise DataError(
                f"{at}: dataset.{key} is not set, and {fault}. Columns found: {', '.join(names) or 'none'}. Set "
                "dataset.instruction and dataset.response to two of them"
            )
        found[key] = getattr(dataset, key) or matching[0]
    return dataset.model_copy(update=found)


def columns_to_read(names: Sequence[str], dataset: Dataset) -> tuple[str, ...]:
    """The columns of a table that `messages_of` and `left_out` look at; none for a table of no known format."""
    row_format = find_row_format(dict.fromkeys(names), dataset)
    if row_format is None:
        return ()
    wanted = {*row_format.columns(dataset), *SYSTEM, HISTORY, *LEFT_OUT}
    return tuple(name for name in names if name in wanted or _is_misspelt(name))


def left_out(row: object, dataset: Dataset) -> tuple[tuple[str, str], ...]:
    """The context of a row that is not in its messages: names of columns, or `COLUMN[].KEY` of turns, with the values
    as text."""
    row_format = find_row_format(row, dataset) if isinstance(row, dict) else None
    if row_format is None or not isinstance(row, dict):
        return ()
    read = row_format.columns(dataset)
    unread = [name for name in row if (name in LEFT_OUT and name not in read) or _is_misspelt(name)]
    found = [(name, row[name]) for name in unread if row[name] not in EMPTY]
    turns = row[read[0]] if isinstance(row[read[0]], list) else []
    keys = {key for turn in turns for key in LEFT_OUT_OF_TURNS & turn.keys()}
    for key in keys:
        values = [None if key in LEARNED and turn.get(key) == 1 else turn.get(key) for turn in turns]
        found += [(f"{read[0]}[].{key}", values)] if any(value not in EMPTY for value in values) else []
    return tuple(sorted((name, json.dumps(value, sort_keys=True, default=repr)) for name, value in found))


def _is_misspelt(name: str) -> bool:
    """Whether a column with context has a name in other letters: `System` is not read as `system` is."""
    return name.lower() in {*SYSTEM, HISTORY, "input", *LEFT_OUT} and name != name.lower()


def _pair_columns(dataset: Dataset) -> tuple[str, str]:
    return dataset.instruction or ABSENT, dataset.response or ABSENT


def _pair(row: Columns, dataset: Dataset) -> Messages | str:
    """Two turns: the instruction and its response, in the columns that the project names."""
    instruction, response = (row[name] for name in _pair_columns(dataset))
    if not isinstance(instruction, str):
        return "instruction is not text"
    if not isinstance(response, str):
        return "answer is not text"
    return Message("user", instruction), Message("assistant", response)


def _with_addition(column: str) -> Callable[[Columns, Dataset], Messages | str]:
    """A pair whose column `column`, unless it is blank, follows the instruction after an empty line."""

    def read(row: Columns, dataset: Dataset) -> Messages | str:
        pair, addition = _pair(row, dataset), row[column]
        if isinstance(pair, str) or column in _pair_columns(dataset):
            return pair
        if not isinstance(addition, str | None):
            return f"{column} is not text"
        if addition is None or is_blank(addition):
            return pair
        instruction, response = pair
        return Message("user", f"{instruction.content}\n\n{addition}"), response

    return read


def _turns(column: str) -> Callable[[Columns, Dataset], Messages | str]:
    """Turns of any number: a role and a content each, or ShareGPT's `from` and `value`."""

    def read(row: Columns, dataset: Dataset) -> Messages | str:
        turns = row[column]
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            return f"{column} is not a list of objects"
        is_sharegpt = any("from" in turn and "role" not in turn for turn in turns)
        role, content, roles = ("from", "value", SHAREGPT_ROLES) if is_sharegpt else ("role", "content", ROLES)
        if not all(isinstance(turn.get(content), str) for turn in turns):
            return f"a message's {content} is not text"
        if not all(isinstance(turn.get(role), str) and turn[role] in roles for turn in turns):
            return f"a message's role is none of {', '.join(roles)}"
        if turns and (not_learned := [key for key in LEARNED if _is_nothing(turns[-1].get(key))]):
            return f"the answer has {not_learned[0]} 0"
        return tuple(Message(roles[turn[role]], turn[content]) for turn in turns)

    return read


def _is_nothing(weight: object) -> bool:
    return weight == 0 or str(weight).lower() in NOT_LEARNED


ROW_FORMATS = (
    RowFormat("alpaca", lambda dataset: (*_pair_columns(dataset), "input"), _with_addition("input")),
    RowFormat("dolly", lambda dataset: (*_pair_columns(dataset), "context"), _with_addition("context")),
    RowFormat("pair", lambda dataset: _pair_columns(dataset), _pair),
    RowFormat("chat", lambda dataset: ("messages",), _turns("messages")),
    RowFormat("sharegpt", lambda dataset: ("conversations",), _turns("conversations")),
)


def _after_context(row: Columns, read: Sequence[str], messages: Messages) -> Messages | str:
    """The messages after the row's system prompt and history, where it has them beside the columns `read`."""
    systems, turns = messages[:1], messages[1:]
    if not systems or systems[0].role != "system":
        systems, turns = (), messages
    texts = {system.content for system in systems if not is_blank(system.content)}
    for name in (name for name in SYSTEM if name not in read and row.get(name) is not None):
        text = row[name]
        if not isinstance(text, str):
            return f"{name} is not text"
        texts |= set() if is_blank(text) else {text}
    if len(texts) > 1:
        return "more than one system prompt"
    before = _history(row.get(HISTORY)) if HISTORY not in read else ()
    return before if isinstance(before, str) else (*(Message("system", text) for text in texts), *before, *turns)


def _history(pairs: object) -> Messages | str:
    if pairs in EMPTY:
        return ()
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        return "history is not a list of questions with answers"
    if not all(isinstance(text, str) for pair in pairs for text in pair):
        return "history is not text"
    return tuple(message for pair in pairs for message in (Message("user", pair[0]), Message("assistant", pair[1])))
