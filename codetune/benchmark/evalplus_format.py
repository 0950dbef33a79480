"""JSONL files in EvalPlus' two formats, plain or gzipped -> benchmark tasks and samples.

A task is one line with prompt, entry point, canonical solution and inputs; a sample is one line with `task_id` and
`completion` or `solution` (https://github.com/evalplus/evalplus, version 0.3.1). Every mistake is an error that names
file and line: a damaged file never gives fewer tasks or samples. Which benchmark a file holds is in `benchmarks.py`.
"""

from __future__ import annotations

import codecs
import json
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from codetune.errors import DataError
from codetune.records import Completion, Problem, Solution
from codetune.text import lone_surrogate
from codetune.user_files import open_limited, read_lines, require_plain_file

TASKS_FORMAT = "a JSONL of tasks in EvalPlus format"
SAMPLES_FORMAT = "a JSONL of samples in EvalPlus format: task_id, and completion or solution"

JsonRow = Mapping[str, object]
CallInputs = list[list[object]]  # one argument list a call
AnySample = TypeVar("AnySample", bound=Completion | Solution)


def read_tasks(path: Path, rebuild_inputs: Callable[[str, CallInputs], CallInputs]) -> list[Problem]:
    """Reads the tasks of a file, in its order. `rebuild_inputs` turns the inputs of a task id into those that JSON
    cannot hold, such as tuples. Raises DataError for an unreadable file, a malformed task, a task id that occurs twice
    and a file without tasks."""
    problems: dict[str, Problem] = {}
    for position, row in read_rows(path, TASKS_FORMAT):
        problem = _problem(position, row, rebuild_inputs)
        require_new_task(position, problem.task_id, problems)
        problems[problem.task_id] = problem
    if not problems:
        raise DataError(f"{path}: no tasks. Expected: one JSON object a line, in EvalPlus format. Name another file.")
    return list(problems.values())


def require_new_task(position: str, task_id: str, known: Container[str]) -> None:
    """Raises DataError for a task id that is known."""
    if task_id in known:
        raise DataError(
            f"{position}: task_id {task_id!r} stands in the file already. Expected: every task once. Delete or rename "
            "one of them."
        )


def read_samples(path: Path) -> list[Completion | Solution]:
    """Reads the samples of a file; those of one task are numbered in the order of their lines. Raises DataError for an
    unreadable file, a malformed sample and a file without samples."""
    samples: list[Completion | Solution] = []
    seen: Counter[str] = Counter()
    for position, row in read_rows(path, SAMPLES_FORMAT):
        # Where a line has both, EvalPlus takes the solution.
        form = "solution" if "solution" in row else "completion"
        task_id, text = row.get("task_id"), row.get(form)
        if not isinstance(task_id, str) or not isinstance(text, str):
            raise DataError(
                f"{position}: {_sample_mistake(row, form)} (found: {', '.join(row) or 'nothing'}). Expected: "
                f"{SAMPLES_FORMAT}, all of them text; several samples of a task are several lines. Fix the line."
            )
        _require_unicode(position, "task_id", task_id)
        samples.append((Solution if form == "solution" else Completion)(task_id, text, seen[task_id]))
        seen[task_id] += 1
    if not samples:
        raise DataError(f"{path}: no samples. Expected: {SAMPLES_FORMAT}. Name another file.")
    return samples


def sample_row(sample: Completion | Solution) -> dict[str, str]:
    """The line of a samples file that `read_samples` and EvalPlus read back."""
    if isinstance(sample, Completion):
        return {"task_id": sample.task_id, "completion": sample.completion}
    return {"task_id": sample.task_id, "solution": sample.solution}


def holds_samples(path: Path) -> bool:
    """Whether a file holds samples rather than tasks, by its first line: samples may repeat the prompt of their task,
    tasks have no completion and no solution. Raises DataError for an unreadable file."""
    _, first = next(read_rows(path, "a benchmark, or samples"), ("", {}))
    return not {"prompt", "entry_point"} & first.keys() or bool({"completion", "solution"} & first.keys())


def pair_with_problems(problems: Sequence[Problem], samples: Sequence[AnySample]) -> list[tuple[Problem, AnySample]]:
    """Every sample beside its task. Raises DataError that names the tasks which are not in the benchmark."""
    tasks = {problem.task_id: problem for problem in problems}
    unknown = sorted({sample.task_id for sample in samples} - tasks.keys())
    if unknown:
        named = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise DataError(
            f"{len(unknown)} of the samples' tasks are not in the benchmark: {named}. Expected: task ids such as "
            f"{problems[0].task_id}. Name the benchmark that the samples were made for, or fix their task_id."
        )
    return [(tasks[sample.task_id], sample) for sample in samples]


def as_solution(problem: Problem, sample: Completion | Solution) -> Solution:
    """The program that EvalPlus judges where a sample was not sanitized."""
    if isinstance(sample, Completion):
        return Solution(sample.task_id, problem.prompt + sample.completion, sample.sample)
    return sample


def _problem(position: str, row: JsonRow, rebuild_inputs: Callable[[str, CallInputs], CallInputs]) -> Problem:
    texts = {key: text_of(position, row, key) for key in ("task_id", "prompt", "entry_point", "canonical_solution")}
    optional = {key: text_of(position, row, key) for key in ("contract", "assertion") if row.get(key) is not None}
    if not texts["task_id"].strip():
        raise DataError(f"{position}: task_id is empty. Expected: a name that no other task has. Give it one.")
    if not texts["entry_point"].isidentifier():
        raise DataError(
            f"{position}: entry_point is {texts['entry_point']!r}. Expected: the name of the function. Fix the task."
        )
    base, plus = (_inputs(position, row, key, rebuild_inputs) for key in ("base_input", "plus_input"))
    if not base:
        raise DataError(f"{position}: base_input is empty. Expected: a list of argument lists, one a call. Add a call.")
    return Problem(
        task_id=texts["task_id"],
        prompt=texts["prompt"],
        entry_point=texts["entry_point"],
        canonical_solution=texts["canonical_solution"],
        base_input=base,
        plus_input=plus,
        atol=_tolerance(position, row),
        contract=optional.get("contract", ""),
        assertion=optional.get("assertion", ""),
    )


def _tolerance(position: str, row: JsonRow) -> float:
    atol = row.get("atol")
    if isinstance(atol, bool) or not isinstance(atol, int | float) or not 0 <= atol <= sys.float_info.max:
        found = f"atol is {atol!r}"[:60] if "atol" in row else "no atol"
        raise DataError(f"{position}: {found}. Expected: how far a float may be off, 0 for exact. Add it to the task.")
    return atol


def _inputs(
    position: str, row: JsonRow, key: str, rebuild_inputs: Callable[[str, CallInputs], CallInputs]
) -> CallInputs:
    # MBPP+ v0.2.0 writes an empty object where it has no further inputs (Mbpp/793).
    inputs = [] if row.get(key) == {} else row.get(key)
    if not isinstance(inputs, list) or not all(isinstance(call, list) for call in inputs):
        raise DataError(
            f"{position}: {key} is {'not there' if key not in row else 'no list of lists'}. Expected: a list of "
            "argument lists, one a call. Fix the task."
        )
    task_id = str(row["task_id"])
    try:
        return rebuild_inputs(task_id, inputs)
    except (ValueError, TypeError, IndexError, AttributeError) as why:
        benchmark = task_id.partition("/")[0]
        raise DataError(
            f"{position}: {key} does not fit the {benchmark.upper()} task {task_id} ({why}). Expected: the inputs as "
            f"EvalPlus writes them. Give a task of your own an id that does not begin with {benchmark}/."
        ) from why


def text_of(position: str, row: JsonRow, key: str) -> str:
    """The text under a key. Raises DataError where there is none."""
    value = row.get(key)
    if not isinstance(value, str):
        found = f"{key} is {type(value).__name__}" if key in row else f"no {key} (found: {', '.join(row) or 'nothing'})"
        raise DataError(f"{position}: {found}. Expected: text. Add it to the task.")
    _require_unicode(position, key, value)
    return value


def _sample_mistake(row: JsonRow, form: str) -> str:
    if not isinstance(row.get("task_id"), str):
        return "no task_id that is text"
    return f"{form} is {type(row[form]).__name__}" if form in row else "neither completion nor solution"


def read_rows(path: Path, expected: str) -> Iterator[tuple[str, JsonRow]]:
    """`FILE:LINE` and the JSON object of every line that is not blank; `expected` says what the file should be."""
    for number, line in enumerate(_lines(path, expected), start=1):
        content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if not content.strip():
            continue
        position = f"{path}:{number}"
        try:
            row = json.loads(content.decode("utf-8"))
        # ValueError: besides JSONDecodeError, no UTF-8, and an integer of more digits than Python converts.
        except (ValueError, RecursionError) as why:
            raise DataError(f"{position}: not JSON ({why}). Expected: {expected}. Fix the line, or delete it.") from why
        if not isinstance(row, dict):
            raise DataError(
                f"{position}: {type(row).__name__} instead of a JSON object. Expected: {expected}. Fix the line."
            )
        yield position, row


def _require_unicode(position: str, key: str, text: str) -> None:
    index = lone_surrogate(text)
    if index is not None:
        raise DataError(
            f"{position}: {key} is {text[:60]!a}, which is not text: character {index + 1} is half of a surrogate "
            "pair. Expected: Unicode. Fix the line."
        )


def _lines(path: Path, expected: str) -> Iterator[bytes]:
    try:
        require_plain_file(path)
        with path.open("rb") as start:
            is_gzip = start.read(2) == b"\x1f\x8b"
        with open_limited(path, str(path), is_gzip) as stream:
            yield from read_lines(stream, str(path))
    except (OSError, EOFError, zlib.error) as why:
        # The text of an OSError repeats the path.
        reason = why.strerror if isinstance(why, OSError) and why.strerror else str(why)
        raise DataError(
            f"{path} cannot be read ({reason}). Expected: {expected}, as UTF-8, plain or gzipped. Name another file."
        ) from why
