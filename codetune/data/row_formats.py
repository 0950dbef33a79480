"""One row of a data file -> the messages of its conversation, or the reason why it has none.

A row format is one record of `ROW_FORMATS`: the columns by which a row is recognised, and how they become messages. The
first format whose columns a row has is taken. In every format `system` (or `system_prompt`) becomes a system message,
and `history`, pairs of question and answer, the turns before the others. LEFT_OUT are columns and keys of turns that
carry context and are not read: they are named, and rows that differ in them are no duplicates. Any other column (an id,
a language, a source) says something about the row and is ignored. The keys LEARNED exclude answers from the loss; what
follows the last learned one is dropped. What every conversation must have is checked by `source.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from codetune.data.row_shapes import INSTRUCTIONS, PREFERENCE, RESPONSES, TURNS, keys_to_set, shape_of
from codetune.data.tool_calls import (
    CALLS,
    EMPTY,
    TOOLS,
    UnreadableError,
    call_in_text,
    calls_json,
    list_of_objects,
    parse_json,
    tools_json,
)
from codetune.errors import DataError
from codetune.project.sections import Dataset
from codetune.records import Message, Role
from codetune.text import is_blank, lone_surrogate

Messages = tuple[Message, ...]
Columns = Mapping[str, object]  # a row: the value of each column
ROLES: Mapping[str, Role] = {**{role: role for role in get_args(Role)}, "function": "tool"}
CALL = "function_call"  # ShareGPT's role of a turn whose text is a call
SHAREGPT_ROLES: Mapping[str, Role] = {
    "human": "user",
    "gpt": "assistant",
    **ROLES,
    CALL: "assistant",
    "observation": "tool",
}
ALSO_ROLES: Mapping[str, Role] = {**SHAREGPT_ROLES, "developer": "system"}  # in either form of turns
SYSTEM = ("system", "system_prompt")
HISTORY = "history"
LEARNED_VALUES = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
UNWANTED = ("label", "kto_tag")  # columns of TRL's and LLaMA-Factory's rows for KTO: false for an answer to avoid
LEFT_OUT = frozenset(("context", "documents"))
PREFERENCE_PAIR = "a preference pair: its answers stand in chosen and rejected"
NO_TEXT = ("image", "images", "video", "videos", "audio", "audios")  # columns and keys of turns
TEXT_PARTS = (None, "text", "input_text", "output_text")  # the types of the parts of a content that are text
# Keys of a turn, by program: whether it is learned, 1 or true if so.
LEARNED = ("weight", "loss_weight", "train", "training", "loss")
DETAILS = ("train_detail", "training_detail")  # axolotl's keys of a turn: which of its characters are learned
LEFT_OUT_OF_TURNS = frozenset(("reasoning_content", "thinking"))
PROMPT_COMPLETION = "prompt_completion"
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
    read = row_format.columns(dataset)
    if no_text := [name for name in NO_TEXT if name not in read and row.get(name) not in EMPTY]:
        return f"{no_text[0]} cannot be written as text"
    if row_format.name in (*TURN_FORMATS, PROMPT_COMPLETION) and (label := _unwanted_by(row)):
        return f"{label} is false: the answer is one to avoid"
    try:
        messages, tools = row_format.messages(row, dataset), tools_json(row)
    except UnreadableError as why:
        return str(why)
    if not isinstance(messages, str):
        messages = _after_context(row, read, messages)
    if not isinstance(messages, str):
        messages = _up_to_last_learned(messages)
    if isinstance(messages, str):
        return messages
    if row.keys() >= {*PREFERENCE} and (not messages or messages[-1].role != "assistant"):
        return PREFERENCE_PAIR
    texts = [part for one in messages for part in (one.content, one.calls, one.call_id, one.name)]
    return messages if lone_surrogate("".join([*texts, tools])) is None else "text is not valid Unicode"


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
                f"{at}: dataset.{key} is not set, and {fault}. Columns found: {', '.join(names) or 'none'}. "
                f"{keys_to_set(names)}. What they hold: {shape_of(names)}"
            )
        found[key] = getattr(dataset, key) or matching[0]
    return dataset.model_copy(update=found)


def columns_to_read(names: Sequence[str], dataset: Dataset) -> tuple[str, ...]:
    """The columns of a table that `messages_of` and `left_out` look at; none for a table of no known format."""
    row_format = find_row_format(dict.fromkeys(names), dataset)
    if row_format is None:
        return ()
    wanted = {*row_format.columns(dataset), *SYSTEM, HISTORY, *LEFT_OUT, *TOOLS, *NO_TEXT, *UNWANTED, *PREFERENCE}
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
    turns = _turns_in(row[read[0]])
    keys = {key for turn in turns for key in LEFT_OUT_OF_TURNS & turn.keys()}
    for key in keys:
        values = [turn.get(key) for turn in turns]
        found += [(f"{read[0]}[].{key}", values)] if any(value not in EMPTY for value in values) else []
    return tuple(sorted((name, json.dumps(value, sort_keys=True, default=repr)) for name, value in found))


def _is_misspelt(name: str) -> bool:
    """Whether a column with context has a name in other letters: `System` is not read as `system` is."""
    return name.lower() in {*SYSTEM, HISTORY, "input", *LEFT_OUT} and name != name.lower()


def _pair_columns(dataset: Dataset) -> tuple[str, str]:
    return dataset.instruction or ABSENT, dataset.response or ABSENT


def _if_named(dataset: Dataset, *columns: str) -> tuple[str, ...]:
    """The columns, where they are those that the project names; else one that no row has."""
    return columns if columns == _pair_columns(dataset) else (ABSENT,)


def _pair(row: Columns, dataset: Dataset) -> Messages | str:
    """Two turns: the instruction and its response, in the columns that the project names. Each may be a list of turns
    itself, as in TRL's prompt and completion; that of the response may begin with those of the instruction."""
    instruction, response = (row[name] for name in _pair_columns(dataset))
    before = _turns_or_text(instruction, "user", "instruction")
    answer = _turns_or_text(response, "assistant", "answer")
    if isinstance(before, str) or isinstance(answer, str):
        return before if isinstance(before, str) else answer
    return answer if answer[: len(before)] == before else (*before, *answer)


def _turns_or_text(value: object, role: Role, name: str) -> Messages | str:
    if isinstance(value, str) and not (turns := _turns_as_json(value)):
        return (Message(role, value),)
    value = turns if isinstance(value, str) else value
    return _messages(value, name) if isinstance(value, list) and value else f"{name} is not text"


def _turns_as_json(text: str) -> list[dict[str, object]]:
    """The turns that a text is, as in a CSV file; none for any other text."""
    turns = _turns_in(text) if text.lstrip().startswith("[") else []
    return turns if all({"role", "content"} <= turn.keys() for turn in turns) else []


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
        if len(pair) != 2:
            return f"{column} stands beside a list of turns"
        instruction, response = pair
        before = "" if is_blank(instruction.content) else f"{instruction.content}\n\n"
        return Message("user", before + addition), response

    return read


def _turns(column: str) -> Callable[[Columns, Dataset], Messages | str]:
    return lambda row, dataset: _messages(row[column], column)


def _messages(value: object, column: str) -> Messages | str:
    """Turns of any number: a role and a content each, or ShareGPT's `from` and `value`."""
    turns = list_of_objects(value, column)
    if other := [", ".join(map(str, turn)) for turn in turns if not turn.keys() & {"role", "from"}]:
        return f"a turn has {other[0] or 'nothing'} instead of role and content"
    is_sharegpt = any("from" in turn and "role" not in turn for turn in turns)
    role, content, roles = ("from", "value", SHAREGPT_ROLES) if is_sharegpt else ("role", "content", ROLES)
    if faults := [fault for turn in turns if (fault := _content_fault(turn, content))]:
        return faults[0]
    if not all(isinstance(turn.get(role), str) and turn[role] in ALSO_ROLES for turn in turns):
        return f"a message's role is none of {', '.join(roles)}"
    return tuple(_message(turn, ALSO_ROLES[str(turn[role])], content, turn[role] == CALL) for turn in turns)


def _content_fault(turn: Columns, key: str) -> str:
    """Why the content of a turn is none; "" for text, for a list of parts that are text, and for none beside calls."""
    content = turn.get(key)
    if no_text := [name for name in NO_TEXT if turn.get(name) not in EMPTY]:
        return f"{no_text[0]} cannot be written as text"
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) else {"text": part} for part in content]
        types = [part.get("type") for part in parts if part.get("type") not in TEXT_PARTS]
        if types:
            return f"a message has a part of the type {types[0]}"
        is_text = all(isinstance(_text_of(part), str) for part in parts)
        return "" if is_text else f"a message's {key} is not text"
    has_calls = content is None and any(turn.get(name) not in EMPTY for name in CALLS)
    return "" if isinstance(content, str) or has_calls else f"a message's {key} is not text"


def _message(turn: Columns, role: Role, key: str, is_call: bool) -> Message:
    """A turn whose content has no fault. Raises UnreadableError for calls that cannot be read."""
    content = turn.get(key)
    if isinstance(content, list):
        content = "".join(str(_text_of(part)) if isinstance(part, dict) else part for part in content)
    text, is_learned = content if isinstance(content, str) else "", _is_learned(turn)
    if is_call:
        return Message(role, "", call_in_text(text), learned=is_learned)
    if role == "tool":
        said = (turn.get(name) for name in ("tool_call_id", "name"))
        call_id, name = (value if isinstance(value, str) else "" for value in said)
        return Message(role, text, call_id=call_id, name=name)
    return Message(role, text, calls_json(turn), learned=is_learned) if role == "assistant" else Message(role, text)


def _is_learned(turn: Columns) -> bool:
    """Whether the keys of a turn let an answer be learned. Raises UnreadableError for a weight between,
    and where parts of it are."""
    if parts := [key for key in DETAILS if turn.get(key) not in EMPTY]:
        raise UnreadableError(f"a message's {parts[0]} is of its parts: an answer is learned as a whole or not")
    weights = {key: str(turn[key]).lower() for key in LEARNED if turn.get(key) not in EMPTY}
    if unknown := [key for key, weight in weights.items() if weight not in LEARNED_VALUES]:
        raise UnreadableError(f"a message's {unknown[0]} is neither 0 nor 1")
    return all(LEARNED_VALUES[weight] for weight in weights.values())


def _text_of(part: Columns) -> object:
    """The text of a part of a content; LLaMA-Factory has it as the value."""
    return part.get("text", part.get("value"))


def _turns_in(value: object) -> list[dict[str, object]]:
    try:
        return list_of_objects(value, "")
    except UnreadableError:
        return []


def _unwanted_by(row: Columns) -> str | None:
    return next((name for name in UNWANTED if str(row.get(name)).lower() == "false"), None)


ROW_FORMATS = (
    RowFormat("alpaca", lambda dataset: (*_pair_columns(dataset), "input"), _with_addition("input")),
    RowFormat("dolly", lambda dataset: (*_pair_columns(dataset), "context"), _with_addition("context")),
    RowFormat(PROMPT_COMPLETION, lambda dataset: _if_named(dataset, "prompt", "completion"), _pair),
    RowFormat("pair", lambda dataset: _pair_columns(dataset), _pair),
    RowFormat("chat", lambda dataset: ("messages",), _turns("messages")),
    RowFormat("sharegpt", lambda dataset: ("conversations",), _turns("conversations")),
    RowFormat("conversation", lambda dataset: ("conversation",), _turns("conversation")),
)
TURN_FORMATS = ("chat", "sharegpt", "conversation")  # whose rows need no columns that the project names


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


def _up_to_last_learned(messages: Messages) -> Messages | str:
    """The messages without those behind the last answer that is learned, which have no part in the loss."""
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if all(messages[index].learned for index in answers[-1:]):
        return messages
    learned = [index for index in answers if messages[index].learned]
    return messages[: learned[-1] + 1] if learned else "no answer is to be learned: each has the weight 0"


def _history(pairs: object) -> Messages | str:
    if pairs in EMPTY:
        return ()
    pairs = parse_json(pairs) if isinstance(pairs, str) else pairs
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        return "history is not a list of questions with answers"
    if not all(isinstance(text, str) for pair in pairs for text in pair):
        return "history is not text"
    return tuple(message for pair in pairs for message in (Message("user", pair[0]), Message("assistant", pair[1])))
