"""What a task's canonical solution returns and how long it takes, computed once and kept, a file a task.

The files are pickles, because JSON loses tuples and sets; they are written here and nowhere else, below the directory
that the caller names, and never EvalPlus' own from its cache. As programs under judgement may have reached them, they
are read by an unpickler that makes plain values and nothing that runs code.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import platform
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS
from evalplus.gen.util import trusted_exec

from codetune.benchmark.problems import problem_digest, rules_of
from codetune.records import Problem

# Constructors of plain values; a global that a pickle names must be one of them.
PLAIN = {
    "builtins": "bool bytearray bytes complex dict float frozenset int list range set slice str tuple",
    "collections": "Counter OrderedDict defaultdict deque",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "numpy": "dtype ndarray",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy._core.numeric": "_frombuffer",
}


@dataclass(frozen=True, slots=True)
class Expected:
    """Of every call, in order: what it returns, and how many seconds the canonical solution took."""

    base: list[Any]
    base_seconds: list[float]
    plus: list[Any]
    plus_seconds: list[float]


def expected_path(directory: Path, problem: Problem) -> Path:
    """Another task, EvalPlus or Python is another file: values and times may differ."""
    made_by = f"{problem_digest(problem)} evalplus {version('evalplus')} python {platform.python_version()}"
    return directory / f"{hashlib.sha256(made_by.encode()).hexdigest()}.pickle"


def write_expected(problem: Problem, path: Path) -> None:
    """Runs the canonical solution here, as EvalPlus does; what it raises is not caught."""
    code = problem.prompt + problem.canonical_solution
    not_none = rules_of(problem) == "mbpp" and problem.entry_point in MBPP_OUTPUT_NOT_NONE_TASKS
    parts: list[Any] = []
    for calls in (problem.base_input, problem.plus_input):
        parts += trusted_exec(code, calls, problem.entry_point, record_time=True, output_not_none=not_none)
    content = pickle.dumps(parts, protocol=5)
    _PlainUnpickler(io.BytesIO(content)).load()  # what could not be read back is not kept
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    Path(name).replace(path)


def read_expected(path: Path) -> Expected:
    with path.open("rb") as file:
        return Expected(*_PlainUnpickler(file).load())


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in PLAIN.get(module, "").split():
            raise pickle.UnpicklingError(f"{module}.{name} is not a plain value")
        return super().find_class(module, name)
