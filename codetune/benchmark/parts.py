"""A part of a benchmark: its first tasks, the tasks that are named, or those since a date. A part has a digest and a
name of its own, so that its completions and verdicts stand beside those of the whole."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date

from codetune.benchmark.benchmarks import Benchmark, benchmark_digest
from codetune.errors import UsageError
from codetune.records import Problem

DATE = re.compile(r"\d{4}(-\d\d(-\d\d)?)?")


def part_of(benchmark: Benchmark, limit: int | None, task_ids: Sequence[str], after: str = "") -> Benchmark:
    """The first `limit` of the named tasks, or of all where none is named, that are dated `after` or later, with a name
    of its own: the artefacts of the whole benchmark stay. Raises UsageError for an unknown task id, for a benchmark
    without such a date, and where no task is left."""
    for task_id in task_ids:
        _require_task(benchmark.problems, task_id)
    if after:
        _require_date(benchmark, after)
    picked = [
        problem
        for problem in benchmark.problems
        if (not task_ids or problem.task_id in task_ids) and problem.date >= after
    ][:limit]
    if not picked:
        raise UsageError(
            f"--after {after}: {benchmark.title}: none of the named tasks is dated {after} or later. Expected: one at "
            "least. Name others, or leave --after or --task out"
        )
    if len(picked) == len(benchmark.problems):
        return benchmark
    digest = benchmark_digest(picked)
    return replace(benchmark, name=f"{benchmark.name}-{digest[:8]}", digest=digest, problems=picked)


def _require_task(problems: Sequence[Problem], task_id: str) -> None:
    known = [problem.task_id for problem in problems]
    if task_id not in known:
        near = difflib.get_close_matches(task_id, known, n=1)
        raise UsageError(
            f"--task {task_id}: the benchmark has no such task{f' (did you mean {near[0]}?)' if near else ''}. "
            f"Expected: an id such as {known[0]}. Fix it."
        )


def _require_date(benchmark: Benchmark, after: str) -> None:
    dates = sorted(problem.date for problem in benchmark.problems if problem.date)
    if not _is_date(after) or not dates or dates[-1] < after:
        has = f"its tasks are dated {dates[0]} to {dates[-1]}" if dates else "its tasks have no dates"
        raise UsageError(
            f"--after {after}: {benchmark.title}: {has}. Expected: a year, a month or a day (2024, 2024-10, "
            "2024-10-31) that has tasks on it or after it. Name another, or leave --after out"
        )


def _is_date(text: str) -> bool:
    """Whether it is a year, a month or a day of the calendar."""
    with suppress(ValueError):
        return bool(DATE.fullmatch(text) and date.fromisoformat(text + "0000-01-01"[len(text) :]))
    return False
