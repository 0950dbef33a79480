"""Tasks that are kept apart: pass@1 on them chooses the weights of a training (`train.keep_best: pass@1`), so no
reported result may count them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from codetune.benchmark.benchmarks import Benchmark, benchmark_digest
from codetune.errors import UsageError
from codetune.records import Problem


def picked_tasks(problems: Sequence[Problem], count: int | None) -> Sequence[Problem]:
    """`count` tasks, those with the smallest digests of their ids, in the order of the benchmark; None: all. Neither
    the order of the file nor a seed changes which. Raises UsageError where there are fewer."""
    if count is None:
        return problems
    if count > len(problems):
        raise UsageError(
            f"train.task_count is {count}, and train.tasks has {len(problems)} tasks. Expected: no more than that. "
            "Lower it"
        )
    ordered = sorted(problems, key=lambda problem: hashlib.sha256(problem.task_id.encode()).hexdigest())
    picked = {problem.task_id for problem in ordered[:count]}
    return [problem for problem in problems if problem.task_id in picked]


def without_tasks(benchmark: Benchmark, apart: Sequence[Problem]) -> Benchmark:
    """The benchmark without the tasks that are kept apart. Its name stays. Raises UsageError where none is left."""
    left = tasks_left(benchmark.problems, apart)
    if len(left) == len(benchmark.problems):
        return benchmark
    if not left:
        raise UsageError(
            f"{benchmark.title} has no task that is not among those of train.tasks, on which the weights are chosen: "
            "figures on them would be too high. Expected: tasks to report. Name another benchmark, or set "
            "train.task_count"
        )
    return replace(benchmark, digest=benchmark_digest(left), problems=left)


def tasks_left(problems: Sequence[Problem], apart: Sequence[Problem]) -> list[Problem]:
    """The tasks that have neither the id nor the prompt of one that is kept apart, whatever file it comes from."""
    ids, prompts = {problem.task_id for problem in apart}, {problem.prompt.strip() for problem in apart}
    return [problem for problem in problems if problem.task_id not in ids and problem.prompt.strip() not in prompts]
