"""A YAML file -> plain data with the line of every key, by the core schema of YAML 1.2 (sec. 10.3): `5e-5` is a
number, and `no` and `1:30` are text. A duplicate key is a mistake. PyYAML by itself reads YAML 1.1 and keeps the last
duplicate.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from codetune.errors import ProjectError, first_line
from codetune.text import lone_surrogate

Key = tuple[str | int, ...]  # ("train", "epochs"), or ("evaluate", "k", 0) for an item of a list


@dataclass(frozen=True, slots=True)
class ParsedYaml:
    """The data read so far, the location of each key, and the mistakes found so far."""

    data: dict[str, object] = field(default_factory=dict)
    locations: dict[Key, str] = field(default_factory=dict)  # "FILE:LINE", or "--set KEY=VALUE"
    mistakes: list[str] = field(default_factory=list)


def read_file(path: Path) -> ParsedYaml:
    """The mapping in `path`, with its lesser mistakes as a list. Raises ProjectError for a file that cannot be read or
    is not a YAML mapping."""
    parsed = ParsedYaml()
    try:
        root = yaml.compose(_read_text(path), Loader=_CoreSchemaLoader)
    except yaml.MarkedYAMLError as why:
        line = why.problem_mark.line + 1 if why.problem_mark else 1
        raise ProjectError(f"{path}:{line}: not YAML: {why.problem}. Correct that line") from None
    except yaml.YAMLError as why:
        raise ProjectError(f"{path}: not YAML: {first_line(why)}. Save it as plain text") from None
    except RecursionError:
        raise ProjectError(f"{path}: nested too deep; expected at most three levels of keys") from None
    if root is None:
        return parsed
    if not isinstance(root, yaml.MappingNode):
        raise ProjectError(f"{path}:1: holds no `key: value` lines; write a project file to start from: codetune init")
    parsed.data.update(_build_mapping(root, (), str(path), parsed))
    return parsed


def read_value(text: str, source: str, parsed: ParsedYaml) -> object:
    """The value that `text` would have in the file. A mistake is added to `parsed`, and the value is None then."""
    try:
        node = yaml.compose(text, Loader=_CoreSchemaLoader)
    except (yaml.YAMLError, RecursionError):
        parsed.mistakes.append(f"{source}: not a YAML value; put quotes around text with special characters")
        return None
    return None if node is None else _build(node, (), source, ParsedYaml(mistakes=parsed.mistakes))


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
        raise ProjectError(f"{path}: no permission to read it. Allow reading it: chmod u+r {path}") from None
    except OSError as why:
        raise ProjectError(f"{path} cannot be read: {why.strerror}. Name a project file: -p PATH") from None
    except UnicodeDecodeError as why:
        raise ProjectError(f"{path}: not UTF-8 at byte {why.start}. Save it as UTF-8 text") from None


class _CoreSchemaLoader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own shape


for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("null", r"^(?:~|null|Null|NULL|)$", "~nN"),
):
    _CoreSchemaLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), [*_first, ""])


def _build(node: yaml.Node, key: Key, source: str, parsed: ParsedYaml) -> object:
    """The plain data of a node; adds the location of each key, and mistakes, to `parsed`."""
    location = parsed.locations.setdefault(key, _location(node, source))
    if len(key) > 8:  # deeper than any key; an anchor that contains itself ends here, too
        raise ProjectError(f"{location}: nested too deep; expected at most three levels of keys")
    if isinstance(node, yaml.SequenceNode):
        return [_build(child, (*key, index), source, parsed) for index, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(node, key, source, parsed)
    return _scalar(node, location, parsed)


def _build_mapping(node: yaml.MappingNode, key: Key, source: str, parsed: ParsedYaml) -> dict[str, object]:
    parsed.locations.setdefault(key, _location(node, source))
    data: dict[str, object] = {}
    for name_node, child in node.value:
        name = _checked_name(name_node, key, source, parsed)
        if name is None:
            continue
        parsed.locations[(*key, name)] = _location(name_node, source)
        mistakes = len(parsed.mistakes)
        value = _build(child, (*key, name), source, parsed)
        # A scalar with a mistake is left out, so that it is not reported a second time as a wrong value.
        if len(parsed.mistakes) == mistakes or not isinstance(child, yaml.ScalarNode):
            data[name] = value
    return data


def _checked_name(node: yaml.Node, parent: Key, source: str, parsed: ParsedYaml) -> str | None:
    """The name of a key; None, with a mistake, where it is not text or is a duplicate."""
    location = _location(node, source)
    name = _joined_surrogates(node.value) if isinstance(node, yaml.ScalarNode) else None
    if name is None or lone_surrogate(name) is not None:
        parsed.mistakes.append(f"{location}: a key that is not text; put quotes around text that holds braces")
        return None
    if (*parent, name) in parsed.locations:
        line = parsed.locations[(*parent, name)].removeprefix(source).removeprefix(":")
        first = f"; the first is at line {line}" if line else ""
        dotted = ".".join(map(str, (*parent, name)))
        parsed.mistakes.append(f"{location}: duplicate key {dotted}{first}. Keep one of them")
        return None
    return name


def _location(node: yaml.Node, source: str) -> str:
    """FILE:LINE; a flag of the command line has no lines."""
    return source if source.startswith("--") else f"{source}:{node.start_mark.line + 1}"


def _joined_surrogates(text: str) -> str:
    """The text with each pair of surrogates as one character: JSON, a subset of YAML, writes rare characters as two."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _scalar(node: yaml.Node, location: str, parsed: ParsedYaml) -> object:
    """A scalar's value. PyYAML's own constructors read `012` as octal and `1_000` as a number; these do not."""
    kind = node.tag.rpartition(":")[2]
    text = _joined_surrogates(node.value)
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
        parsed.mistakes.append(f"{location}: cannot read {shown} as {node.tag}; expected text, a number, true or false")
        return None
