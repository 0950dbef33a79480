"""Completions -> runnable programs, by `evalplus.sanitize`: the entry point and what it needs, cut out of prose,
Markdown and left-overs along the syntax tree. Also the reader and the rows of EvalPlus' samples files.

EvalPlus keeps the longest stretch of lines that parses. Where that does not hold the entry point at all (an answer's
tests were longer than its function, or the function's body stands alone), each part between Markdown fences is tried by
itself, then as the body of the task's prompt: the one deviation from `evalplus.sanitize`. Nothing is run here.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from evalplus.sanitize import sanitize as extract

from codetune.benchmark.rows import read_rows
from codetune.errors import DataError
from codetune.records import Completion, Problem, Solution

FENCE_LINE = re.compile(r"^[ \t]*(?:```|~~~).*$", re.MULTILINE)
EXPECTED = "a JSONL of samples in EvalPlus format: task_id, and completion or solution"


@dataclass(frozen=True, slots=True)
class Sanitized:
    solution: Solution
    changed: bool  # differs from what the model wrote, behind its prompt where it continued one
    parses: bool


def sanitize(problem: Problem, sample: Completion | Solution) -> Sanitized:
    """Idempotent on its own solutions. A text without any code comes back as it is and is judged as it is.

    A sample is one of EvalPlus' two forms: `completion` continues the task's prompt (`Completion`), `solution` stands
    on its own (`Solution`), such as a chat answer."""
    # The line break is EvalPlus' (evalplus 0.3.1, sanitize.script): a prompt may end without one.
    text = sample.completion if isinstance(sample, Completion) else sample.solution
    written = f"{problem.prompt}\n{text}" if isinstance(sample, Completion) else text
    code = _extract(written, problem.entry_point)
    if not _defines(code, problem.entry_point):
        others = (_extract(part, problem.entry_point) for part in _parts(problem, text, code))
        code = next((other for other in others if _defines(other, problem.entry_point)), code)
    return Sanitized(
        Solution(problem.task_id, code, sample.sample), changed=code != written, parses=_parsed(code) is not None
    )


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


def _parts(problem: Problem, text: str, code: str) -> Iterator[str]:
    """What may hold the entry point where `code`, the whole text's, does not. Fences are not told into opening and
    closing ones: a text may begin inside of a block or end there, and prose between two blocks defines nothing."""
    between = [textwrap.dedent(part) for part in FENCE_LINE.split(text)]
    yield from between
    for part in (*between, code):
        yield f"{problem.prompt}\n{textwrap.indent(part.strip(), '    ')}"


def _defines(code: str, entry_point: str) -> bool:
    """Whether calling the entry point can come to anything: a function that never returns is a stub."""
    tree = _parsed(code)
    for node in tree.body if tree else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == entry_point:
            return any(isinstance(inner, ast.Return) for inner in _own_nodes(node))
        names = [node.name] if isinstance(node, ast.ClassDef) else map(ast.unparse, getattr(node, "targets", ()))
        if entry_point in names:
            return True
    return False


def _own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """Of its body, without those of functions and classes inside."""
    waiting = [function]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            yield node
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
                waiting.append(node)


def _parsed(code: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _missing(row: dict[str, object], form: str) -> str:
    if not isinstance(row.get("task_id"), str):
        return "no task_id that is text"
    return f"{form} is {type(row[form]).__name__}" if form in row else "neither completion nor solution"
