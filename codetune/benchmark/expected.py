"""What a task's canonical solution returns and how long it takes, computed once and kept, a file a task.

The files are written as values come out of the sandbox (`serialization.py`), as JSON would lose tuples and sets, and
read by the same reader, which admits no code; EvalPlus' own pickles from its cache are never read.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from codetune.benchmark.problems import problem_digest
from codetune.records import Problem
from codetune.sandbox import serialization


@dataclass(frozen=True, slots=True)
class Calls:
    """Of every call of a suite, in order: what it returned, and how many seconds it took."""

    outputs: list[Any]
    seconds: list[float]


@dataclass(frozen=True, slots=True)
class Expected:
    base: Calls
    plus: Calls

    def suite(self, name: str) -> Calls:
        return self.base if name == "base" else self.plus


def expected_path(directory: Path, problem: Problem) -> Path:
    """Another task, EvalPlus, Python or format is another file: values and times may differ."""
    made_by = (
        f"{problem_digest(problem)} evalplus {version('evalplus')} python {platform.python_version()} "
        f"format {serialization.FORMAT}"
    )
    return directory / f"{hashlib.sha256(made_by.encode()).hexdigest()}.values"


def write_expected(expected: Expected, path: Path) -> None:
    content = serialization.encode([(calls.outputs, calls.seconds) for calls in (expected.base, expected.plus)])
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    Path(name).replace(path)


def read_expected(path: Path) -> Expected:
    base, plus = serialization.decode(path.read_bytes())
    return Expected(Calls(*base), Calls(*plus))
