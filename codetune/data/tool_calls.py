"""The tools of a row and the calls of a turn, as data sets write them -> one form, as JSON text: that of OpenAI, with
arguments as objects. A null in an object means that the key is absent, because tables give every object all keys."""

from __future__ import annotations

import json
from collections.abc import Mapping

TOOLS = ("tools", "functions")  # the columns that hold them; the second as OpenAI had it first
CALLS = ("tool_calls", "function_call")  # the keys of a turn, likewise
MOST_LEVELS = 64
EMPTY: tuple[object, ...] = (None, "", "[]", "{}", [], {})


class UnreadableError(ValueError):
    """A part of a row is of no known form; the text is the reason for refusing the row."""


def tools_json(row: Mapping[str, object]) -> str:
    """The tools of a row as JSON text; "" where it has none. Raises UnreadableError."""
    column = next((name for name in TOOLS if row.get(name) not in EMPTY), None)
    if column is None:
        return ""
    # A bare function is wrapped, as templates expect it.
    tools = (_plain(tool, keep_nulls=False) for tool in list_of_objects(row[column], column))
    return _json([tool if "function" in tool or "name" not in tool else _function(tool) for tool in tools])


def calls_json(turn: Mapping[str, object]) -> str:
    """The calls of a turn as JSON text; "" where it has none. Raises UnreadableError."""
    key = next((name for name in CALLS if turn.get(name) not in EMPTY), None)
    if key is None:
        return ""
    calls = turn[key]
    return _json([_call(call, key) for call in list_of_objects([calls] if isinstance(calls, dict) else calls, key)])


def call_in_text(content: str) -> str:
    """The calls that a turn has as the text of its content, as JSON text. Raises UnreadableError."""
    return calls_json({"function_call": content if content.lstrip().startswith("[") else f"[{content}]"})


def list_of_objects(value: object, name: str) -> list[dict[str, object]]:
    """The value, which may be a list as JSON text. Raises UnreadableError."""
    if isinstance(value, str):
        text, value = value, parse_json(value)
        if value is None and text.lstrip().startswith("["):  # such as a list as Python writes it
            raise UnreadableError(f"{name} is a list in text that is not JSON")
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UnreadableError(f"{name} is not a list of objects")
    return value


def parse_json(text: str) -> object:
    """The value of a JSON text; None for a text that is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _call(call: Mapping[str, object], key: str) -> dict[str, object]:
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise UnreadableError(f"a call in {key} has no name")
    arguments = function.get("arguments", function.get("parameters"))
    is_text = isinstance(arguments, str)
    value = parse_json(arguments) if isinstance(arguments, str) else arguments
    value = parse_json(value) if isinstance(value, str) else value  # some sets have the text as a JSON string again
    if arguments in (None, ""):
        value = {}
    if not isinstance(value, dict):
        raise UnreadableError(f"the arguments of a call in {key} are not an object")
    plain = _plain(value, keep_nulls=is_text)
    known = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**known, **_function({"name": function["name"], "arguments": plain})}


def _function(function: dict[str, object]) -> dict[str, object]:
    return {"type": "function", "function": function}


def _plain(value: dict[str, object], *, keep_nulls: bool) -> dict[str, object]:
    """The object, without nulls if so. Raises UnreadableError where it is nested too deep."""

    def copy(part: object, depth: int) -> object:
        if depth > MOST_LEVELS:
            raise UnreadableError("a tool or a call is nested too deep")
        if isinstance(part, dict):
            return {name: copy(item, depth + 1) for name, item in part.items() if keep_nulls or item is not None}
        return [copy(item, depth + 1) for item in part] if isinstance(part, list) else part

    return {name: copy(item, 1) for name, item in value.items() if keep_nulls or item is not None}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
