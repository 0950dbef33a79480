"""Assignments of a command line that give a key several values, which a sweep varies; and how errors name the flag
that has given a key its value."""

from __future__ import annotations

from collections.abc import Sequence

from codetune.errors import ProjectError
from codetune.project.keys import accepted_types, keys
from codetune.project.yaml import ParsedYaml, read_value

# Commands have flags of their own for these; a sweep gives any other key as `--set` does.
FLAGS = {
    **{f"select.{name}": f"--{name}" for name in ("strategy", "ratio", "count", "clusters")},
    "train.pad_mode": "--pad-mode",
    "train.method": "--method",
    "generate.prompt": "--instruct/--base",
    "seed": "--seed",
}


def flag_of(key: str) -> str:
    return FLAGS.get(key, f"--set {key}")


def split_variations(assignments: Sequence[str]) -> tuple[list[str], dict[str, list[object]]]:
    """The assignments with one value, and the values of the others by key: `section.key=[a, b]` has two, and so has
    `[[a], [b]]` for a key whose value is a list. Raises ProjectError for a list without values."""
    fixed, varied = list[str](), dict[str, list[object]]()
    for assignment in assignments:
        key, _, text = assignment.partition("=")
        field, parsed = dict(keys()).get(key), ParsedYaml()
        value = read_value(text, f"--set {assignment}", parsed) if text.lstrip().startswith("[") and field else None
        items = value if isinstance(value, list) and not parsed.mistakes else None
        if items == []:
            raise ProjectError(f"--set {assignment}: the list has no value. Expected: the values to compare. Name them")
        if field and items and (list not in accepted_types(field) or all(isinstance(item, list) for item in items)):
            varied[key] = items
        else:
            fixed.append(assignment)
    return fixed, varied
