"""A YAML file -> plain data with the line of every key, by the core schema of YAML 1.2 (sec. 10.3): `5e-5` is a
number, and `no` and `1:30` are text. A duplicate key is a mistake. PyYAML by itself reads YAML 1.1 and keeps the last
duplicate.

Size and depth are limited, and anchors and aliases are refused: a few hundred bytes of them can stand for gigabytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from codetune.errors import ProjectError, first_line
from codetune.text import lone_surrogate
from codetune.user_files import require_plain_file

Key = tuple[str | int, ...]  # ("train", "epochs"), or ("evaluate", "k", 0) for an item of a list
MOST_BYTES = 64 * 1024  # ten times what `codetune init` writes
MOST_LEVELS = 8  # of sections and lists in each other; a section, a section in it and a list are three


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
    except _RefusedYamlError as why:
        raise ProjectError(f"{path}:{why.line}: {why}") from None
    except yaml.MarkedYAMLError as why:
        line = why.problem_mark.line + 1 if why.problem_mark else 1
        raise ProjectError(f"{path}:{line}: not YAML: {why.problem}. Fix that line") from None
    except yaml.YAMLError as why:
        raise ProjectError(f"{path}: not YAML: {first_line(why)}. Save it as plain text") from None
    if root is None:
        return parsed
    if not isinstance(root, yaml.MappingNode):
        raise ProjectError(f"{path}:1: holds no `key: value` lines; write a project file to start from: codetune init")
    parsed.data.update(_build_mapping(root, (), str(path), parsed))
    return parsed


def read_value(text: str, source: str, parsed: ParsedYaml) -> object:
    """The value that `text` would have in the file. A mistake is added to `parsed`, and the value is None then."""
    try:
        node = _compose_value(text)
    except _RefusedYamlError as why:
        parsed.mistakes.append(f"{source}: {why}")
    except yaml.YAMLError:
        parsed.mistakes.append(f"{source}: not a YAML value; put quotes around text with special characters")
    else:
        return None if node is None else _build(node, (), source, ParsedYaml(mistakes=parsed.mistakes))
    return None


def read_text_value(text: str, source: str, parsed: ParsedYaml, *, or_null: bool, or_list: bool) -> object:
    """The value of a key that holds text: `text` as it was typed, whatever YAML would make of it.

    Text in quotes is without them, and with its escapes read. `or_null`: an empty text and `null` are None; `or_list`:
    a YAML list is a list."""
    try:
        node = _compose_value(text)
    except yaml.YAMLError:
        node = yaml.ScalarNode("tag:yaml.org,2002:str", text)
    is_null = node is None or node.tag == "tag:yaml.org,2002:null"
    if is_null and or_null:
        return None
    is_quoted = isinstance(node, yaml.ScalarNode) and node.style in ("'", '"')
    if node is not None and (is_quoted or (or_list and isinstance(node, yaml.SequenceNode))):
        return _build(node, (), source, ParsedYaml(mistakes=parsed.mistakes))
    return _scalar(yaml.ScalarNode("tag:yaml.org,2002:str", text), source, parsed)


def _compose_value(text: str) -> yaml.Node | None:
    """Raises YAMLError where the text is not one YAML value, or is refused."""
    if len(text) > MOST_BYTES:
        raise _RefusedYamlError(f"{len(text):,} characters; expected at most {MOST_BYTES:,}")
    node: yaml.Node | None = yaml.compose(text, Loader=_CoreSchemaLoader)
    return node


def _read_text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if not path.is_dir():
            require_plain_file(path, ProjectError)
        if size > MOST_BYTES:
            raise ProjectError(
                f"{path} has {size:,} bytes; expected at most {MOST_BYTES:,}. Name a project file: -p PATH"
            )
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


class _RefusedYamlError(yaml.YAMLError):
    """YAML that is not read although it is well-formed."""

    def __init__(self, message: str, mark: yaml.Mark | None = None) -> None:
        super().__init__(message)
        self.line = mark.line + 1 if mark else 1


class _CoreSchemaLoader(yaml.SafeLoader):
    """Refuses what PyYAML would resolve before anything is built: anchors, aliases, and more levels than keys have."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own shape
    level = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise _RefusedYamlError(
                "an anchor (&) or alias (*), which a project file cannot have. Write the value out, or put quotes "
                "around text that begins with & or *",
                event.start_mark,
            )
        if self.level > MOST_LEVELS:
            raise _RefusedYamlError("nested too deep; expected at most three levels of keys", event.start_mark)
        self.level += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.level -= 1
        return node


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
