"""YAML as its 1.2 core schema means it, with the line of every key: `5e-5` is a number, `no` and `1:30` are text, a
duplicate key is a mistake (PyYAML reads YAML 1.1 and lets the last duplicate win). The only home of PyYAML.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from codetune.errors import ProjectError, first_line
from codetune.text import lone_surrogate

Key = tuple[str | int, ...]  # ("train", "epochs"), or ("evaluate", "k", 0) for an item of a list


@dataclass(frozen=True, slots=True)
class Reading:
    """What reading gathers on its way: the data, where each key stands, and what is wrong so far."""

    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, str] = field(default_factory=dict)  # "FILE:LINE", or "--set KEY=VALUE"
    mistakes: list[str] = field(default_factory=list)


def read_file(path: Path) -> Reading:
    """The mapping in `path`. Raises ProjectError where it is no YAML mapping at all; lesser mistakes are gathered."""
    reading = Reading()
    try:
        root = yaml.compose(_read_text(path), Loader=_StrictLoader)
    except yaml.MarkedYAMLError as why:
        line = why.problem_mark.line + 1 if why.problem_mark else 1
        raise ProjectError(f"{path}:{line}: not YAML: {why.problem}. Correct that line") from None
    except yaml.YAMLError as why:
        problem = first_line(why)
        raise ProjectError(f"{path}: not YAML: {problem}. Save it as plain text") from None
    except RecursionError:
        raise ProjectError(f"{path}: nested too deep; expected at most three levels of keys") from None
    if root is None:
        return reading
    if not isinstance(root, yaml.MappingNode):
        raise ProjectError(f"{path}:1: holds no `key: value` lines; write a project file to start from: codetune init")
    reading.data.update(_build(root, (), str(path), reading))
    return reading


def read_value(text: str, place: str, reading: Reading) -> Any:
    """One value, as the file would have it; a mistake is noted and gives None."""
    try:
        node = yaml.compose(text, Loader=_StrictLoader)
    except (yaml.YAMLError, RecursionError):
        reading.mistakes.append(f"{place}: not a YAML value; put quotes around text with special characters")
        return None
    return None if node is None else _build(node, (), place, Reading(mistakes=reading.mistakes))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ProjectError(
            f"{path}: no such project file. Write one: codetune init, or name another: -p PATH"
        ) from None
    except IsADirectoryError:
        raise ProjectError(
            f"{path} is a directory; expected a project file, such as {path / 'codetune.yaml'}"
        ) from None
    except NotADirectoryError:
        raise ProjectError(f"{path}: a part of this path is a file. Name a project file: -p PATH") from None
    except PermissionError:
        raise ProjectError(f"{path}: no permission to read it. Mend it with: chmod u+r {path}") from None
    except OSError as why:
        raise ProjectError(f"{path} cannot be read: {why.strerror}. Name a project file: -p PATH") from None
    except UnicodeDecodeError as why:
        raise ProjectError(f"{path}: not UTF-8 at byte {why.start}. Save it as UTF-8 text") from None


class _StrictLoader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own shape


for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("null", r"^(?:~|null|Null|NULL|)$", "~nN"),
):
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), [*_first, ""])


def _build(node: yaml.Node, key: Key, source: str, reading: Reading) -> Any:
    """Plain data of a node; remembers where each key stands, and notes duplicate keys."""
    reading.places.setdefault(key, _place(node, source))
    if len(key) > 8:  # deeper than any key; also ends anchors that contain themselves
        raise ProjectError(f"{reading.places[key]}: nested too deep; expected at most three levels of keys")
    if isinstance(node, yaml.SequenceNode):
        return [_build(child, (*key, index), source, reading) for index, child in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(node, reading.places[key], reading)
    data: dict[str, Any] = {}
    for name_node, child in node.value:
        place = _place(name_node, source)
        if not isinstance(name_node, yaml.ScalarNode) or lone_surrogate(_joined(name_node.value)) is not None:
            reading.mistakes.append(f"{place}: a key that is no word; put quotes around text that holds braces")
            continue
        name = _joined(name_node.value)
        if (*key, name) in reading.places:
            first = reading.places[(*key, name)].removeprefix(source).removeprefix(":")
            there = f"; the first is at line {first}" if first else ""
            dotted = ".".join(map(str, (*key, name)))
            reading.mistakes.append(f"{place}: duplicate key {dotted}{there}. Keep one of them")
            continue
        reading.places[(*key, name)] = place
        told = len(reading.mistakes)
        value = _build(child, (*key, name), source, reading)
        if len(reading.mistakes) == told or not isinstance(child, yaml.ScalarNode):  # else it is told already
            data[name] = value
    return data


def _place(node: yaml.Node, source: str) -> str:
    """FILE:LINE; what was typed at the command line has no lines."""
    return source if source.startswith("--") else f"{source}:{node.start_mark.line + 1}"


def _joined(text: str) -> str:
    """The text with its pairs of surrogates as one character each: how JSON, which is YAML, escapes what is rare."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _scalar(node: yaml.Node, place: str, reading: Reading) -> Any:
    """A scalar's value. PyYAML's own constructors read `012` as octal and `1_000` as a number; these do not."""
    kind = node.tag.rpartition(":")[2]
    text = _joined(node.value)
    if kind == "str" and lone_surrogate(text) is None:
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    try:
        return {"int": int, "float": float}[kind](text)
    except (KeyError, ValueError):
        shown = repr(text) if len(text) <= 60 else f"'{text[:57]}...'"
        reading.mistakes.append(f"{place}: cannot read {shown} as {node.tag}; expected text, a number, true or false")
        return None
