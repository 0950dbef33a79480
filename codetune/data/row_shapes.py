"""Rows of no known format, and files that hold all rows in one value -> what they hold, in words, and what to do.

Names of columns tell what rows of another shape are. A single object that holds a list of rows, or each column as a
whole, is told by its values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TypeGuard

TURNS = ("messages", "conversations", "conversation")
INSTRUCTIONS = ("instruction", "problem", "question", "prompt", "query")  # usual names of the columns of a pair
RESPONSES = ("output", "response", "solution", "answer", "completion")
PREFERENCE, OPENAI_PREFERENCE = ("chosen", "rejected"), "preferred_output"
NAMED_KINDS = 3  # of rows in a file
NAMED_COLUMNS = 5  # of the rows in a list


def shape_of(names: Sequence[str]) -> str:
    """What rows with these columns usually are, in words."""
    if all(any(name.startswith(begin) for name in names) for begin in PREFERENCE):
        return "preference pairs"
    if OPENAI_PREFERENCE in names:
        return "preference pairs, as OpenAI has them"
    if "segments" in names:
        return "texts in segments, as axolotl's input_output has them"
    if "input_ids" in names:
        return "token ids, where codetune reads text"
    instruction, response = _usual_pair(names)
    if instruction and response:
        return f"an instruction in {instruction} and a response in {response}"
    if instruction:
        return f"an instruction in {instruction}, without a response"
    return "text alone" if "text" in names else "no shape that codetune knows"


def keys_to_set(names: Sequence[str]) -> str:
    """What a project has to say for rows with these columns."""
    instruction, response = _usual_pair(names)
    if {*PREFERENCE} <= {*names}:
        response = "chosen"
        if not instruction:
            return "Give the turns of chosen a column messages, or divide it into an instruction and a response"
    if OPENAI_PREFERENCE in names:
        return f"Write the messages of input and those of {OPENAI_PREFERENCE} as one list in a column messages"
    if instruction and response:
        return f"Set dataset.instruction to {instruction} and dataset.response to {response}"
    if len(names) < 2:
        return "Give each row an instruction and a response"
    return "Set dataset.instruction and dataset.response to two of them"


def kinds_of(rows: Sequence[Mapping[str, object]]) -> str:
    """The columns of the most usual rows, and how many have these."""
    kinds = Counter(_named(row) for row in rows)
    return "; ".join(f"{count:,} of {len(rows):,} have {names}" for names, count in kinds.most_common(NAMED_KINDS))


def _usual_pair(names: Sequence[str]) -> tuple[str, str]:
    """The columns that usually are the instruction, and those that are the response, in whatever letters, with `or`
    between several."""
    instructions, responses = (
        [name for word in usual for name in names if name.strip().lower() == word]
        for usual in (INSTRUCTIONS, RESPONSES)
    )
    instructions = instructions or [name for name in names if name.strip().lower() == "input"]
    return " or ".join(instructions), " or ".join(responses)


def rows_in(value: Mapping[str, object]) -> tuple[str, str] | None:
    """What an object of no known format is that holds rows, and what to do; None for one that may be a row."""
    if any(_usual_pair([*value])):
        return None
    if len(value) > 1 and _are_rows(parts := [*value.values()]) and len({frozenset(row) for row in parts}) == 1:
        return f"rows under names of their own (the first has {_named(parts[0])})", "Write them as a list"
    lists = {key: part for key, part in value.items() if isinstance(part, list) and _are_rows(part)}
    if not lists:
        return None
    held = (f"{len(part):,} under {key} (the first has {_named(part[0])})" for key, part in lists.items())
    return f"lists of rows, {' and '.join(held)}", f"Write the list under {' or '.join(lists)} alone into a .json file"


def columns_in(value: Mapping[str, object]) -> tuple[str, str] | None:
    """What an object is that holds columns, as lists or as pandas writes them by the numbers of the rows, and what to
    do; None for any other."""
    columns = [*value.values()]
    is_numbered = all(isinstance(column, dict) and column and all(map(str.isdecimal, column)) for column in columns)
    lists = [column for column in columns if isinstance(column, list) and not any(isinstance(x, dict) for x in column)]
    is_of_lists = len(lists) == len(columns) and {len(column) > 1 for column in lists} == {True}
    if not value or not (is_numbered or (is_of_lists and len({len(column) for column in lists}) == 1)):
        return None
    return f"the columns {_named(value)}, each as a whole", (
        "Write one object for each row, such as with pandas: to_json(path, orient='records', lines=True)"
    )


def _are_rows(part: list[object]) -> TypeGuard[list[dict[str, object]]]:
    """Whether the values are objects, and no turns."""
    rows = [row for row in part if isinstance(row, dict)]
    return 0 < len(rows) == len(part) and not any(row.keys() & {"role", "from"} for row in rows)


def _named(row: Mapping[str, object]) -> str:
    named = ", ".join(islice(row, NAMED_COLUMNS))
    return f"{named}, ..." if len(row) > NAMED_COLUMNS else named or "nothing"
