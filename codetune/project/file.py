"""Reads and writes the project file. All its mistakes are reported at once, each with its line, what was expected and
the nearest valid name. Valid values whose feature this version lacks are refused, too. Checks no data, model or run
directory: the stage that reads one does."""

from __future__ import annotations

import difflib
import errno
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from codetune.errors import InputError, ProjectError, unusable_directory
from codetune.project.conflicts import CONFLICTS, dataset_conflicts
from codetune.project.keys import accepted_types, choices, keys, value_at
from codetune.project.patterns import PATTERNS_IN_WORDS
from codetune.project.sections import (
    LIST_TAG,
    PROJECT_FILE,
    SECTION_TAG,
    STAGE_NAMES,
    NamedDataset,
    Project,
    StageName,
)
from codetune.project.variations import flag_of
from codetune.project.yaml import MOST_LEVELS, Key, ParsedYaml, read_file, read_text_value, read_value


def read_project(
    path: Path | None,
    assignments: Sequence[str],
    flags: Mapping[str, object],
    *,
    preset: Mapping[str, object] | None = None,
    stages: Collection[StageName] = STAGE_NAMES,
) -> Project:
    """The project in `path`, or the defaults where it is None, overridden by `--set` assignments and then by flags.

    `preset` (instead of a file) and `flags` are values by dotted key; a flag that is None clears its key. Every key is
    checked for form; whether settings go together is checked for `stages` alone, those that the command runs. Raises
    ProjectError with every mistake, one a line."""
    parsed = read_file(path) if path else ParsedYaml()
    for key, value in (preset or {}).items():
        _assign(parsed, key, value, "the preset")
    overridden = [key for assignment in assignments if (key := _apply_assignment(parsed, assignment))]
    for key, value in flags.items():
        if value is None and not _is_set(parsed.data, key):
            continue
        _assign(parsed, key, value, flag_of(key))
        overridden.append(key)
    project = _validate(parsed, stages)
    if parsed.mistakes or project is None:
        raise ProjectError("\n".join(parsed.mistakes))
    overrides = {
        key: value_at(project, key) for key, _ in keys() if any(f"{key}.".startswith(f"{name}.") for name in overridden)
    }
    return project.placed(path.parent if path else Path.cwd(), overrides)


def write_project(directory: Path, values: Mapping[str, object]) -> Path:
    """Writes a new project file into `directory`, which is made where it is missing, and returns its path. Raises
    InputError where there is one already, and where none can be written."""
    path = directory / PROJECT_FILE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(commented_yaml(values))
    except OSError as why:
        if why.errno == errno.EEXIST and why.filename == str(path):
            raise InputError(
                f"{path} exists already; it was left as it is. Name another directory: codetune init DIR"
            ) from None
        raise unusable_directory(directory, why, "Name another directory: codetune init DIR") from None
    return path


def commented_yaml(values: Mapping[str, object]) -> str:
    """The text of a project file with every key and its documentation: `values` by dotted key, else the defaults. With
    several data sets, `values` has their list under `dataset`."""
    lines = [
        "# A codetune project. Every key is here with its default or the preset's value; all but dataset.path and",
        "# model.path, which have no default, may be left out.",
        "# Relative paths are looked for beside this file. Check it at any time: codetune status",
        "# dataset may be a list of such sections, each with a name and a weight (share of its rows, up to 1) too.",
    ]
    section: list[str] = []
    if several := values.get("dataset"):
        lines += ["", f"dataset: {_as_yaml(several)}"]
    for key, field in keys():
        *parents, name = key.split(".")
        if several and parents == ["dataset"]:
            continue
        for depth, parent in enumerate(parents):
            if parents[: depth + 1] != section[: depth + 1]:
                lines += [""] * (depth == 0) + [f"{'  ' * depth}{parent}:"]
        section = parents
        value = f"{'  ' * len(parents)}{name}: {_as_yaml(values.get(key, field.default))}"
        lines.append(f"{value:<58}  # {field.description}{_unnamed_choices(field)}")
    return "\n".join(lines) + "\n"


def _unnamed_choices(field: FieldInfo) -> str:
    """All values of a key that takes one of a few, where its documentation does not name them."""
    named, every = set(re.findall(r"[\w@]+", field.description or "")), list(map(str, choices(field)))
    return "" if named.issuperset(every) else f" ({', '.join(every)})"


def _apply_assignment(parsed: ParsedYaml, assignment: str) -> str:
    """Applies `section.key=value` and returns the key; "" where there is none."""
    source = f"--set {assignment}"
    key, equals, text = assignment.partition("=")
    key = key.strip()
    if not equals or not key or not key.isprintable():
        fault = "no key before the `=`" if equals else "no `=`"
        parsed.mistakes.append(f"{source}: {fault}; expected --set section.key=value")
        return ""
    if key.count(".") > MOST_LEVELS:
        parsed.mistakes.append(f"{source}: nested too deep; expected at most three levels of keys")
        return ""
    mistakes = len(parsed.mistakes)
    value = _assigned_value(key, text, source, parsed)
    if len(parsed.mistakes) == mistakes:
        _assign(parsed, key, value, source)
    return key


def _assigned_value(key: str, text: str, source: str, parsed: ParsedYaml) -> object:
    """What `--set key=text` says: text where the key takes nothing else, or what it would be in the file."""
    field = dict(keys()).get(key)
    types = accepted_types(field) if field else frozenset[type]()
    if str in types and types <= {str, list, type(None)}:
        return read_text_value(text, source, parsed, or_null=type(None) in types, or_list=list in types)
    return read_value(text, source, parsed)


def _assign(parsed: ParsedYaml, key: str, value: object, source: str) -> None:
    *parents, name = key.split(".")
    data = parsed.data
    for depth, parent in enumerate(parents):
        if data.get(parent) is None:
            data[parent] = {}
        parsed.locations.setdefault(tuple(parents[: depth + 1]), source)
        section = data[parent]
        if not isinstance(section, dict):
            several = "a list of sections; change the one that you mean in the file"
            fault = several if isinstance(section, list) else "not a section"
            parsed.mistakes.append(f"{source}: {parent} is {fault}")
            return
        data = section
    data[name] = value
    parsed.locations[tuple(key.split("."))] = source


def _validate(parsed: ParsedYaml, stages: Collection[StageName]) -> Project | None:
    """The project, or None where even the faultless keys make none. Adds mistakes to `parsed`."""
    wrong: set[str] = set()
    for _ in range(3):  # faulty keys are removed and the others are validated again
        try:
            project = Project.model_validate(parsed.data)
            break
        except ValidationError as why:
            for key in _note_errors(why, parsed):
                wrong.add(_dotted(key))
                _remove(parsed.data, key)
    else:
        return None
    unclear = dataset_conflicts(project)
    conflicts = (conflict for stage in stages if stage in CONFLICTS for conflict in CONFLICTS[stage](project))
    for name, message in (*unclear, *conflicts):
        if name not in wrong:
            key = tuple(int(part) if part.isdecimal() else part for part in name.split("."))
            parsed.mistakes.append(f"{_location(key, parsed)}: {name}: {message}")
    return project


def _note_errors(why: ValidationError, parsed: ParsedYaml) -> list[Key]:
    """Adds one mistake for each key that pydantic refuses, and returns the keys. (Pydantic reports a key once for each
    branch of a union.)"""
    refused: dict[Key, list[ErrorDetails]] = {}
    for error in why.errors(include_url=False):
        refused.setdefault(_key_in(parsed.data, error["loc"]), []).append(error)
    fields = (*keys(NamedDataset, "dataset."), *keys())
    descriptions = {name: f" ({field.description})" for name, field in fields}
    for key, errors in refused.items():
        dotted = _dotted(key)
        location = f"{_location(key, parsed)}: {dotted}"
        if errors[0]["type"] == "extra_forbidden":
            parsed.mistakes.append(f"{location}: unknown key{_suggestion(key)}")
        else:
            expected = " or ".join(dict.fromkeys(_expectation(error["msg"]) for error in errors))
            found = _shortened(_get(parsed.data, key))
            description = descriptions.get(_dotted(part for part in key if isinstance(part, str)), "")
            parsed.mistakes.append(f"{location} is {found}; expected {expected}{description}")
    return list(refused)


# Parts of pydantic's messages, and our words for them.
_OUR_WORDS = {
    ", unable to parse raw data as a unicode string": " of UTF-8",
    "have at least 1 item": "at least one item",
    "have at least 1 character": "at least one character",
    "match pattern": "a text that matches",
    "'": "`",
}


def _expectation(message: str) -> str:
    """The expectation in a message of pydantic, as the end of a sentence.

    >>> _expectation("Input should be less than or equal to 1")
    'less than or equal to 1'
    """
    for opening in ("Input should be ", "String should ", "List should "):
        message = message.removeprefix(opening)
    for pattern, words in PATTERNS_IN_WORDS.items():
        message = message.replace(f"match pattern '{pattern}'", words)
    message = re.sub(r"a valid dictionary or instance of \w+", "a section with keys of its own", message)
    for pydantic_words, our_words in _OUR_WORDS.items():
        message = message.replace(pydantic_words, our_words)
    return message.partition(" after validation")[0]


def _key_in(data: object, location: Key) -> Key:
    """The beginning of a pydantic location that exists in the data; the rest names branches of unions."""
    key: list[str | int] = []
    for part in (part for part in location if part not in (SECTION_TAG, LIST_TAG)):
        try:
            data = _child(data, part)
        except KeyError:
            break
        key.append(part)
    return tuple(key)


def _get(data: object, key: Key) -> object:
    for part in key:
        data = _child(data, part)
    return data


def _is_set(data: object, key: str) -> bool:
    try:
        return _get(data, tuple(key.split("."))) is not None
    except KeyError:
        return False


def _child(data: object, part: str | int) -> object:
    if isinstance(data, dict):
        return data[part]
    if isinstance(data, list) and isinstance(part, int):
        return data[part]
    raise KeyError(part)


def _remove(data: dict[str, object], key: Key) -> None:
    """Removes the faulty key; for an item of a list, or a key of it, the whole list."""
    *parents, name = takewhile(lambda part: isinstance(part, str), key)
    section = _get(data, tuple(parents))
    assert isinstance(section, dict)
    section.pop(name, None)


def _location(key: Key, parsed: ParsedYaml) -> str:
    """The location of the key, or else of the nearest section around it."""
    while key not in parsed.locations and key:
        key = key[:-1]
    return parsed.locations.get(key, "the defaults")


def _dotted(key: Iterable[str | int]) -> str:
    return ".".join(str(part) for part in key)


def _suggestion(key: Key) -> str:
    """The full names of the keys elsewhere that are spelt so, else the nearest name in the same section."""
    *parents, name = [part for part in key if isinstance(part, str)]
    known = [known for known, _ in keys()]
    known += [f"dataset.{one}" for one in ("name", "weight") if len(key) > len(parents) + 1]
    prefix = "".join(f"{parent}." for parent in parents)
    siblings = {other.removeprefix(prefix).partition(".")[0] for other in known if other.startswith(prefix)}
    elsewhere = [other for other in known if other.rpartition(".")[2] == name]
    if close := elsewhere or difflib.get_close_matches(name, siblings, n=1, cutoff=0.5):
        return f"; did you mean {' or '.join(close)}?"
    return f"; expected one of: {', '.join(sorted(siblings))}"


def _as_yaml(value: object) -> str:
    """A value as `codetune init` writes it: in JSON, which is YAML, but plain words without quotes."""
    if (
        isinstance(value, str)
        and re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*", value)
        and value.lower() not in ("null", "true", "false")
    ):
        return value
    if isinstance(value, float) and 0 < value < 1e-3:
        shortest = (f"{value:.{digits}e}" for digits in range(1, 18))
        return next(text for text in shortest if float(text) == value).replace("e-0", "e-")
    if isinstance(value, list):
        return f"[{', '.join(_as_yaml(item) for item in value)}]"
    return json.dumps(value)


def _shortened(value: object) -> str:
    text = "true" if value is True else "false" if value is False else "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
