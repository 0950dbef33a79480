"""Benchmark name or path -> Problems: EvalPlus' HumanEval+ and MBPP+, or a user's own JSONL in the same format.

The official files come from EvalPlus' override variables, else its cache, else its own download. JSON knows neither
tuples nor sets, so MBPP's inputs are rebuilt as EvalPlus does. Which special rules and prompts a task has follows from
the task itself, so a copy or a subset of a benchmark is treated like the original. Runs none of the programs.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from evalplus.data.humaneval import HUMANEVAL_PLUS_VERSION
from evalplus.data.mbpp import MBPP_PLUS_VERSION, mbpp_deserialize_inputs

from codetune.benchmark.download import official_file
from codetune.benchmark.rows import read_rows, require_unicode
from codetune.errors import DataError, UsageError
from codetune.project.sections import BENCHMARK_NAMES
from codetune.records import Completion, Problem, Solution

# name: the variable that EvalPlus reads a local path from, its name of the data set, the version it asks for
OFFICIAL = {
    "humaneval": ("HUMANEVAL_OVERRIDE_PATH", "HumanEvalPlus", HUMANEVAL_PLUS_VERSION),
    "mbpp": ("MBPP_OVERRIDE_PATH", "MbppPlus", MBPP_PLUS_VERSION),
}

Rules = Literal["humaneval", "mbpp", "none"]
Sample = TypeVar("Sample", bound=Completion | Solution)


def read_problems(benchmark: str, location: str | None) -> list[Problem]:
    """The tasks of a benchmark, in its order. `location` is the file where the caller knows it (`demo`, a path beside
    the project file); else `benchmark` is an official name or a path itself."""
    path = find_benchmark(benchmark, location)
    problems: dict[str, Problem] = {}
    for place, row in read_rows(path, "a JSONL of tasks in EvalPlus format"):
        problem = _problem(place, row)
        if problem.task_id in problems:
            raise DataError(
                f"{place}: task_id {problem.task_id!r} stands in the file already. Expected: every task once. "
                "Delete or rename one of them."
            )
        problems[problem.task_id] = problem
    if not problems:
        raise DataError(f"{path}: no tasks. Expected: one JSON object a line, in EvalPlus format. Name another file.")
    return list(problems.values())


def find_benchmark(benchmark: str, location: str | None) -> Path:
    """The file of a benchmark. Raises UsageError for a name that is neither one of ours nor a path."""
    if location is not None:
        return Path(location).expanduser()
    if benchmark in OFFICIAL:
        variable, dataset, version = OFFICIAL[benchmark]
        # Read here, not by evalplus at its import, so that an empty value is no path and a wrong one is named.
        override = os.environ.get(variable)
        if override and not Path(override).is_file():
            raise DataError(
                f"{variable} names {override}, which is no file. Expected: {dataset}-{version}.jsonl or .jsonl.gz. "
                "Correct the variable, or unset it."
            )
        return Path(override) if override else official_file(dataset, version)
    path = Path(benchmark).expanduser()
    if path.is_file():
        return path
    near = difflib.get_close_matches(benchmark, BENCHMARK_NAMES, n=1)
    kind = "file" if path.suffix or len(path.parts) > 1 else "benchmark"
    raise UsageError(
        f"There is no {kind} {benchmark!r}{f' (did you mean {near[0]}?)' if near else ''}. Expected: "
        f"{', '.join(BENCHMARK_NAMES)}, or the path of a JSONL file of tasks in EvalPlus format. Name one of them."
    )


def pick_problems(problems: Sequence[Problem], tasks: Sequence[str]) -> list[Problem]:
    """The tasks of these ids, in the benchmark's order; all where none is named."""
    known = {problem.task_id for problem in problems}
    for task_id in tasks:
        if task_id not in known:
            near = difflib.get_close_matches(task_id, known, n=1)
            raise UsageError(
                f"--task {task_id}: the benchmark has no such task{f' (did you mean {near[0]}?)' if near else ''}. "
                f"Expected: an id such as {problems[0].task_id}. Correct it."
            )
    return [problem for problem in problems if not tasks or problem.task_id in tasks]


def benchmark_digest(problems: Sequence[Problem]) -> str:
    """What results are keyed by: equal for equal tasks in equal order, whatever file they came from."""
    return hashlib.sha256("\n".join(problem_digest(problem) for problem in problems).encode()).hexdigest()


def problem_digest(problem: Problem) -> str:
    parts = {name: getattr(problem, name) for name in Problem.__dataclass_fields__}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_canonical).encode()).hexdigest()


def rules_of(problem: Problem) -> Rules:
    """Whose special comparison rules hold: EvalPlus binds them to its benchmark and the name of a function."""
    if problem.task_id.startswith("HumanEval/"):
        return "humaneval"
    return "mbpp" if problem.task_id.startswith("Mbpp/") else "none"


def pair_with_problems(problems: Sequence[Problem], samples: Sequence[Sample]) -> list[tuple[Problem, Sample]]:
    """Every sample beside its task; samples for unknown tasks are an error that names them."""
    tasks = {problem.task_id: problem for problem in problems}
    unknown = sorted({sample.task_id for sample in samples} - tasks.keys())
    if unknown:
        named = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise DataError(
            f"{len(unknown)} of the samples' tasks are not in the benchmark: {named}. Expected: task ids such as "
            f"{problems[0].task_id}. Name the benchmark that the samples were made for, or mend their task_id."
        )
    return [(tasks[sample.task_id], sample) for sample in samples]


def _problem(place: str, row: Mapping[str, Any]) -> Problem:
    texts = {key: _text(place, row, key) for key in ("task_id", "prompt", "entry_point", "canonical_solution")}
    optional = {key: _text(place, row, key) for key in ("contract", "assertion") if row.get(key) is not None}
    if not texts["task_id"].strip():
        raise DataError(f"{place}: task_id is empty. Expected: a name that no other task has. Give it one.")
    if not texts["entry_point"].isidentifier():
        raise DataError(
            f"{place}: entry_point is {texts['entry_point']!r}. Expected: the name of the function. Mend the task."
        )
    base, plus = (_calls(place, row, key, texts["task_id"]) for key in ("base_input", "plus_input"))
    if not base:
        raise DataError(f"{place}: base_input is empty. Expected: a list of argument lists, one a call. Add a call.")
    atol = row.get("atol")
    if isinstance(atol, bool) or not isinstance(atol, int | float) or not 0 <= atol <= sys.float_info.max:
        found = f"atol is {atol!r}"[:60] if "atol" in row else "no atol"
        raise DataError(f"{place}: {found}. Expected: how far a float may be off, 0 for exact. Add it to the task.")
    return Problem(**texts, base_input=base, plus_input=plus, atol=atol, **optional)


def _text(place: str, row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        found = f"{key} is {type(value).__name__}" if key in row else f"no {key} (found: {', '.join(row) or 'nothing'})"
        raise DataError(f"{place}: {found}. Expected: text, as in EvalPlus format. Add it to the task.")
    require_unicode(place, key, value)
    return value


def _calls(place: str, row: Mapping[str, Any], key: str, task_id: str) -> list[list[object]]:
    # MBPP+ v0.2.0 writes an empty object where it has no further inputs (Mbpp/793).
    calls = [] if row.get(key) == {} else row.get(key)
    if not isinstance(calls, list) or not all(isinstance(call, list) for call in calls):
        raise DataError(
            f"{place}: {key} is {'not there' if key not in row else 'no list of lists'}. Expected: a list of argument "
            "lists, one a call. Mend the task."
        )
    if not task_id.startswith("Mbpp/"):
        return calls
    try:
        rebuilt: list[list[object]] = mbpp_deserialize_inputs(task_id, calls)
    except (ValueError, TypeError, IndexError, AttributeError) as why:
        raise DataError(
            f"{place}: {key} does not fit the MBPP task {task_id} ({why}). Expected: the inputs as EvalPlus writes "
            "them. Give a task of your own an id that does not begin with Mbpp/."
        ) from why
    return rebuilt


def _canonical(value: object) -> object:
    """What JSON does not know, in an order that does not change from run to run."""
    return sorted(map(repr, value)) if isinstance(value, set | frozenset) else repr(value)
