"""The expected outputs of a task: what its canonical solution returns for every call, and how long each call takes.
Computed once (`run_suite.py`) and kept, one file a task.

The files have the format of `sandbox/serialization.py`, whose reader admits no code. EvalPlus' pickles are never read.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from codetune.benchmark.benchmarks import problem_digest
from codetune.benchmark.value_structure import Value
from codetune.records import Problem
from codetune.sandbox import serialization
from codetune.store.files import write_bytes

Suite = Literal["base", "plus"]


@dataclass(frozen=True, slots=True)
class SuiteOutputs:
    """The outputs of all calls of a suite, in their order, and the seconds that each call took."""

    outputs: list[Value]
    seconds: list[float]
    plain: bool = False  # known to be of builtin types alone, which makes them faster to compare


@dataclass(frozen=True, slots=True)
class ExpectedOutputs:
    base: SuiteOutputs
    plus: SuiteOutputs

    def of(self, suite: Suite) -> SuiteOutputs:
        return self.base if suite == "base" else self.plus


def expected_path(directory: Path, problem: Problem) -> Path:
    """The file of a task. Its name depends on the task, the versions of EvalPlus and Python, and the format, because
    values and times may differ between them."""
    made_by = (
        f"{problem_digest(problem)} evalplus {version('evalplus')} python {platform.python_version()} "
        f"format {serialization.FORMAT}"
    )
    return directory / f"{hashlib.sha256(made_by.encode()).hexdigest()}.values"


def write_expected(expected: ExpectedOutputs, path: Path) -> None:
    suites = [(suite.outputs, suite.seconds) for suite in (expected.base, expected.plus)]
    write_bytes(path, serialization.encode(suites))


def read_expected(path: Path) -> ExpectedOutputs:
    """Raises the reader's DecodeError for a file that `write_expected` has not written."""
    found = serialization.decode_and_check(path.read_bytes())
    base, plus = (SuiteOutputs(outputs, seconds, found.plain) for outputs, seconds in found.value)
    return ExpectedOutputs(base, plus)
