"""Reads and writes the project file: everything wrong with it is said at once, each with its line, what was expected
and the nearest valid name. Values of the contract whose feature this version lacks are refused as well.

Says nothing about data, models or the run directory: those are looked at by the stage that uses them.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from codetune.errors import ProjectError
from codetune.project.sections import NOT_IN_THIS_VERSION, Project, keys, value_at
from codetune.project.yaml import Key, Reading, read_file, read_value


def read_project(path: Path | None, assignments: Sequence[str], flags: Mapping[str, Any]) -> Project:
    """The project of `path`, or of the defaults when it is None, with `--set` assignments and then flags on top.

    Raises ProjectError with every mistake of the file, the assignments and the flags, a line each."""
    reading = read_file(path) if path else Reading()
    overridden: list[str] = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key or not key.isprintable():
            fault = "no key before the `=`" if equals else "no `=`"
            reading.mistakes.append(f"--set {assignment}: {fault}; expected --set section.key=value")
            continue
        place, told = f"--set {assignment}", len(reading.mistakes)
        value = read_value(text, place, reading)
        if len(reading.mistakes) == told:
            _assign(reading, key, value, place)
        overridden.append(key)
    for key, value in flags.items():
        _assign(reading, key, value, f"--{key.rpartition('.')[2].replace('_', '-')}")
        overridden.append(key)
    project = _validate(reading)
    if reading.mistakes or project is None:
        raise ProjectError("\n".join(reading.mistakes))
    overrides = {
        key: value_at(project, key) for key, _ in keys() if any(f"{key}.".startswith(f"{said}.") for said in overridden)
    }
    return project.placed(path.parent if path else Path.cwd(), overrides)


def commented_yaml(values: Mapping[str, Any]) -> str:
    """A project file with every key, its documentation beside it, and `values` (dotted keys) over the defaults."""
    lines = [
        "# A codetune project. Every key is here with its default or the preset's value; any of them may be left out.",
        "# Relative paths are looked for beside this file. Check it at any time: codetune status",
    ]
    section: tuple[str, ...] = ()
    for key, field in keys():
        *parents, name = key.split(".")
        for depth, parent in enumerate(parents):
            if tuple(parents[: depth + 1]) != section[: depth + 1]:
                lines += [""] * (depth == 0) + [f"{'  ' * depth}{parent}:"]
        section = tuple(parents)
        value = f"{'  ' * len(parents)}{name}: {_as_yaml(values.get(key, field.default))}"
        lines.append(f"{value:<58}  # {field.description}")
    return "\n".join(lines) + "\n"


def _assign(reading: Reading, key: str, value: Any, place: str) -> None:
    *parents, name = key.split(".")
    data = reading.data
    for depth, parent in enumerate(parents):
        if data.get(parent) is None:
            data[parent] = {}
        reading.places.setdefault(tuple(parents[: depth + 1]), place)
        data = data[parent]
        if not isinstance(data, dict):
            reading.mistakes.append(f"{place}: {parent} is not a section")
            return
    data[name] = value
    reading.places[tuple(key.split("."))] = place


def _validate(reading: Reading) -> Project | None:
    """The project, or None with its mistakes noted. What is well formed is checked further even when some is not."""
    wrong: set[str] = set()
    for _ in range(3):  # faulty keys are taken out and the rest is read again
        try:
            project = Project.model_validate(reading.data)
            break
        except ValidationError as why:
            for key in _note_errors(why, reading):
                wrong.add(_dotted(key))
                _remove(reading.data, key)
    else:
        return None
    for name, message in (*_not_in_this_version(project), *_impossible(project)):
        if name not in wrong:
            reading.mistakes.append(f"{_place(tuple(name.split('.')), reading)}: {name}: {message}")
    return project


def _note_errors(why: ValidationError, reading: Reading) -> list[Key]:
    """One mistake for each key that pydantic refuses (it names a key once for each branch of a union)."""
    refused: dict[Key, list[str]] = {}
    for error in why.errors(include_url=False):
        key = _key_in(reading.data, error["loc"])
        if error["type"] == "extra_forbidden":
            refused.setdefault(key, []).append(f"unknown key{_nearest(key)}")
        else:
            refused.setdefault(key, []).append(_expectation(_without_lacking(key, error)))
    for key, reasons in refused.items():
        place = f"{_place(key, reading)}: {_dotted(key)}"
        if reasons[0].startswith("unknown key"):
            reading.mistakes.append(f"{place}: {reasons[0]}")
        else:
            expected = " or ".join(dict.fromkeys(reasons))
            found = _shown(_get(reading.data, key))
            reading.mistakes.append(f"{place} is {found}; expected {expected}{_meaning(key)}")
    return list(refused)


# What pydantic says is expected, as it is said here.
_EXPECTATIONS = {
    ", unable to parse raw data as a unicode string": " of UTF-8",
    "have at least 1 item": "at least one item",
    "have at least 1 character": "at least one character",
    "match pattern": "a text that matches",
    "'": "`",
}


def _expectation(message: str) -> str:
    """What pydantic's message expects, as the end of a sentence.

    >>> _expectation("Input should be less than or equal to 1")
    'less than or equal to 1'
    """
    for opening in ("Input should be ", "String should ", "List should "):
        message = message.removeprefix(opening)
    message = re.sub(r"a valid dictionary or instance of \w+", "a section with keys of its own", message)
    for pydantic_says, we_say in _EXPECTATIONS.items():
        message = message.replace(pydantic_says, we_say)
    return message.partition(" after validation")[0]


def _without_lacking(key: Key, error: ErrorDetails) -> str:
    """Pydantic's message; of a choice, without the values that this version would refuse as well."""
    lacking = NOT_IN_THIS_VERSION.get(_dotted(key), ())
    if error["type"] != "literal_error" or not lacking:
        return error["msg"]
    *others, last = [f"'{value}'" for value in re.findall("'(.*?)'", error["ctx"]["expected"]) if value not in lacking]
    return f"Input should be {', '.join(others)} or {last}"


def _not_in_this_version(project: Project) -> Iterator[tuple[str, str]]:
    fields = dict(keys())
    for key, values in NOT_IN_THIS_VERSION.items():
        if value_at(project, key) in values:
            yield key, f"{_shown(value_at(project, key))} is not in this version. Leave it at {_default(fields[key])}"


def _impossible(project: Project) -> Iterator[tuple[str, str]]:
    """Settings that are well formed each and cannot go together."""
    if "{instruction}" not in project.score.prompt:
        yield (
            "score.prompt",
            "holds no {instruction}; expected a text that contains it, such as 'Question:\\n{instruction}\\n'",
        )
    if project.train.save_minutes is None and project.train.save_steps is None:
        yield (
            "train.save_steps",
            "null while train.save_minutes is null as well: no checkpoint would ever be written. Set one",
        )
    if told := _impossible_sharing(project):
        yield told
    if project.generate.samples_per_task > 1 and project.generate.temperature == 0:
        yield (
            "generate.samples_per_task",
            f"{project.generate.samples_per_task} greedy samples of a task are all the same. Set generate.temperature "
            "above 0, or leave it at 1",
        )
    if not project.train.pack_isolation and project.train.pad_mode not in ("dynamic_pack", "paper_pack"):
        yield (
            "train.pack_isolation",
            f"false asks that packed samples see each other, and train.pad_mode {project.train.pad_mode} packs none. "
            "Say dynamic_pack or paper_pack, or leave it at true",
        )
    if project.train.quantization.bits == 8 and project.train.quantization.type == "fp4":
        yield "train.quantization.type", "fp4 is a format of 4 bits, and train.quantization.bits is 8. Say 4 bits"
    if project.model.dtype == "float16" and project.train.method == "full":
        yield (
            "model.dtype",
            "float16 cannot train all weights (its gradients overflow). Say bfloat16 or float32, or train.method: lora",
        )


def _impossible_sharing(project: Project) -> tuple[str, str] | None:
    strategy, offload = project.launch.strategy, project.launch.offload
    if strategy in ("fsdp", "zero3") and project.train.method == "qlora":
        return "launch.strategy", f"{strategy} cuts weights apart, which quantised ones do not allow. Say ddp, or zero2"
    offers = {"fsdp": ("none", "all"), "zero1": ("none", "optimizer"), "zero2": ("none", "optimizer")}
    possible = offers.get(strategy, ("none", "optimizer", "all") if strategy == "zero3" else ("none",))
    if offload not in possible:
        return "launch.offload", f"{offload} does not go with launch.strategy {strategy}. Say {' or '.join(possible)}"
    return None


def _key_in(data: Any, location: Key) -> Key:
    """The part of a pydantic location that names something in the data; the rest are branches of unions."""
    key: list[str | int] = []
    for part in location:
        inside = part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int)
        if not inside:
            break
        key.append(part)
        data = data[part]
    return tuple(key)


def _get(data: Any, key: Key) -> Any:
    for part in key:
        data = data[part]
    return data


def _remove(data: dict[str, Any], key: Key) -> None:
    """Takes the faulty key out; an item of a list takes its whole list along."""
    names = [part for part in key if isinstance(part, str)]
    for part in names[:-1]:
        data = data[part]
    data.pop(names[-1], None)


def _place(key: Key, reading: Reading) -> str:
    while key not in reading.places and key:
        key = key[:-1]
    return reading.places.get(key, "the defaults")


def _dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)


def _nearest(key: Key) -> str:
    """The nearest valid name in the same section, else the full name of a key elsewhere that is spelt so."""
    *parents, name = map(str, key)
    known = [known for known, _ in keys()]
    prefix = "".join(f"{parent}." for parent in parents)
    siblings = {other.removeprefix(prefix).partition(".")[0] for other in known if other.startswith(prefix)}
    close = difflib.get_close_matches(name, siblings, n=1, cutoff=0.5)
    elsewhere = [other for other in known if other.rpartition(".")[2] == name]
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere)}?"
    if close:
        return f"; did you mean {close[0]}?"
    return f"; expected one of: {', '.join(sorted(siblings))}"


def _meaning(key: Key) -> str:
    description = {name: field.description for name, field in keys()}.get(_dotted(key))
    return f" ({description})" if description else ""


def _default(field: FieldInfo) -> str:
    return _as_yaml(field.default)


def _as_yaml(value: Any) -> str:
    """A value as `codetune init` writes it: JSON is YAML, and plain words need no quotes."""
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


def _shown(value: Any) -> str:
    text = "true" if value is True else "false" if value is False else "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
