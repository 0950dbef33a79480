"""The annotation of a key -> the plain types of the values that it takes. They decide how `--set KEY=VALUE` is read."""

from collections.abc import Iterator
from typing import Annotated, Literal, get_args, get_origin

from pydantic.fields import FieldInfo


def accepted_types(field: FieldInfo) -> frozenset[type]:
    """The types of the values that a key takes; of a list also the types of its items.

    >>> from codetune.project.sections import keys
    >>> sorted(found.__name__ for found in accepted_types(dict(keys())["evaluate.benchmarks"]))
    ['list', 'str']
    """
    return frozenset(_types_in(field.annotation))


def _types_in(annotation: object) -> Iterator[type]:
    if get_origin(annotation) is Literal:
        yield from map(type, get_args(annotation))
    elif get_origin(annotation) is Annotated:
        yield from _types_in(get_args(annotation)[0])
    else:  # a union, a list, or a plain type
        yield from (one for one in (annotation, get_origin(annotation)) if isinstance(one, type))
        for part in get_args(annotation):
            yield from _types_in(part)
