"""Completions -> runnable programs, by `evalplus.sanitize`: the entry point and what it needs, cut out of prose,
Markdown and left-overs along the syntax tree. Also the reader and the rows of EvalPlus' samples files.

A sample is one of EvalPlus' two forms: `completion` continues the task's prompt (`Completion`), `solution` stands on
its own (`Solution`), such as a chat answer. Nothing is run here.
"""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from evalplus.sanitize import sanitize as extract

from codetune.benchmark.rows import read_rows
from codetune.errors import DataError
from codetune.records import Completion, Problem, Solution

EXPECTED = "a JSONL of samples in EvalPlus format: task_id, and completion or solution"


@dataclass(frozen=True, slots=True)
class Sanitized:
    solution: Solution
    changed: bool  # differs from what the model wrote, behind its prompt where it continued one
    parses: bool


def sanitize(problem: Problem, sample: Completion | Solution) -> Sanitized:
    """Idempotent on its own solutions. A text without any code comes back as it is and is judged as it is."""
    # The line break is EvalPlus' (evalplus 0.3.1, sanitize.script): a prompt may end without one.
    written = f"{problem.prompt}\n{sample.completion}" if isinstance(sample, Completion) else sample.solution
    code = _extract(written, problem.entry_point)
    return Sanitized(Solution(problem.task_id, code, sample.sample), changed=code != written, parses=_parses(code))


def as_it_is(problem: Problem, sample: Completion | Solution) -> Solution:
    """The program that EvalPlus judges where a sample was not sanitized."""
    if isinstance(sample, Completion):
        return Solution(sample.task_id, problem.prompt + sample.completion, sample.sample)
    return sample


def read_samples(path: Path) -> list[Completion | Solution]:
    """A file in EvalPlus format; a task's samples are counted in the order in which they stand."""
    samples: list[Completion | Solution] = []
    seen: Counter[str] = Counter()
    for place, row in read_rows(path, EXPECTED):
        # As in EvalPlus, a solution goes before a completion.
        form = "solution" if "solution" in row else "completion"
        task_id, text = row.get("task_id"), row.get(form)
        if not isinstance(task_id, str) or not isinstance(text, str):
            raise DataError(
                f"{place}: {_missing(row, form)} (found: {', '.join(row) or 'nothing'}). Expected: {EXPECTED}, all "
                "of them text; several samples of a task are several lines. Mend the line."
            )
        samples.append((Solution if form == "solution" else Completion)(task_id, text, seen[task_id]))
        seen[task_id] += 1
    if not samples:
        raise DataError(f"{path}: no samples. Expected: {EXPECTED}. Name another file.")
    return samples


def sample_row(sample: Completion | Solution) -> dict[str, str]:
    """The line of a samples file that `read_samples` and EvalPlus read back."""
    if isinstance(sample, Completion):
        return {"task_id": sample.task_id, "completion": sample.completion}
    return {"task_id": sample.task_id, "solution": sample.solution}


def _extract(written: str, entry_point: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser's, about escapes and comparisons in the model's code
            code: str = extract(written, entry_point)
    # evalplus 0.3.1 expects a SyntaxError only: null bytes, lone surrogates and deep nesting raise these.
    except (ValueError, RecursionError):
        return written
    return code


def _parses(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _missing(row: dict[str, object], form: str) -> str:
    if not isinstance(row.get("task_id"), str):
        return "no task_id that is text"
    return f"{form} is {type(row[form]).__name__}" if form in row else "neither completion nor solution"
