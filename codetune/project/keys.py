"""The dotted keys of the project file, such as `select.ratio`: all there are, those that seal an artefact or may differ
when a training continues, the types of their values, and their values in a project."""

from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from codetune.errors import InputError
from codetune.project.sections import Project, SealName

NULL = "null"


def keys(section: type[BaseModel] = Project, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key that is not a section, dotted, with its field, in the order of the file."""
    for name, field in section.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from keys(type(field.default), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def sealing_keys(name: SealName) -> tuple[str, ...]:
    """The dotted keys whose values make an artefact, in the order of the project file."""
    return tuple(key for key, field in keys() if _is_marked(field, name))


def free_on_resume() -> tuple[str, ...]:
    """The dotted keys of `train` that may differ when an unfinished training continues. Of the two batch sizes and the
    accumulation steps, the product must stay: the checkpoint checks it."""
    return tuple(key for key, field in keys() if _is_marked(field, "free on resume"))


def _is_marked(field: FieldInfo, mark: str) -> bool:
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get(mark))


def required(value: str | None, key: str) -> str:
    """The value of a key that has no default. Raises InputError where the project gives it none."""
    if value is None:
        raise InputError(
            f"{key} is not set, and has no default. Set it in the project file, or on the command line: --set {key}=..."
        )
    return value


def value_at(project: BaseModel, key: str) -> object:
    """The value at a dotted key; a section as a plain dictionary, and of a list of sections a list.

    >>> value_at(Project(), "select.ratio")
    0.4
    """
    value: object = project
    for name in key.split("."):
        value = [getattr(one, name) for one in value] if isinstance(value, list) else getattr(value, name)
    return value.model_dump() if isinstance(value, BaseModel) else value


def fixed_values(field: FieldInfo) -> list[str]:
    """The words that a key takes, as `--set` reads them; none for one that takes numbers, names or lists alone.

    >>> fixed_values(dict(keys())["train.keep_best"])
    ['loss', 'pass@1', 'null']
    """
    words = list(_words_in(field.annotation))
    return [word for word in words if word != NULL or len(words) > 1]


def accepted_types(field: FieldInfo) -> frozenset[type]:
    """The types of the values that a key takes; of a list also the types of its items.

    >>> sorted(found.__name__ for found in accepted_types(dict(keys())["evaluate.benchmarks"]))
    ['list', 'str']
    """
    return frozenset(_types_in(field.annotation))


def choices(field: FieldInfo) -> Sequence[object]:
    """The values of a key that takes one of a few, or null; none for any other key.

    >>> choices(dict(keys())["train.method"])
    ['full', 'lora', 'qlora']
    """
    parts = [part for part in get_args(field.annotation) or () if part is not type(None)]
    if get_origin(field.annotation) is Literal:
        return parts
    return get_args(parts[0]) if len(parts) == 1 and get_origin(parts[0]) is Literal else []


def _types_in(annotation: object) -> Iterator[type]:
    if get_origin(annotation) is Literal:
        yield from map(type, get_args(annotation))
    elif get_origin(annotation) is Annotated:
        yield from _types_in(get_args(annotation)[0])
    else:  # a union, a list, or a plain type
        yield from (one for one in (annotation, get_origin(annotation)) if isinstance(one, type))
        for part in get_args(annotation):
            yield from _types_in(part)


def _words_in(annotation: object) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    elif get_origin(annotation) is Annotated:
        yield from _words_in(get_args(annotation)[0])
    elif annotation in (bool, None, type(None)):
        yield from ("true", "false") if annotation is bool else (NULL,)
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _words_in(part)
