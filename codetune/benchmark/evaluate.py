"""Verdicts -> the report document of `codetune evaluate --json`: pass@k with its interval, and every verdict. Fractions
are 0 to 1. Judges nothing itself (`judge.py`) and compares no models (`statistics.py`)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NotRequired, TypedDict

from codetune.benchmark.problems import pair_with_problems
from codetune.benchmark.statistics import bootstrap_interval, pass_at_k, wilson_interval
from codetune.errors import InputError
from codetune.records import Completion, Problem, Solution, Verdict


class Report(TypedDict):
    benchmark: str
    model: str
    sandbox: str
    tasks: int  # judged
    tasks_in_benchmark: int
    samples: int
    pass_at_k: dict[str, dict[str, float]]  # base or plus -> pass@k -> fraction
    interval_95: dict[str, dict[str, tuple[float, float]]]
    verdicts: dict[str, list[dict[str, str]]]
    failures: dict[str, list[str]]  # of tasks with one: the first call that went wrong, and how; "" where none did
    completions: NotRequired[dict[str, int]]  # tokens, truncated, changed, not_parsing: where codetune generated them


def evaluate(
    benchmark: str,
    model: str,
    sandbox: str,
    problems: Sequence[Problem],
    verdicts: Iterable[Verdict],
    k: Sequence[int],
    seed: int,
) -> Report:
    """`verdicts` in any order; tasks without one are counted in `tasks_in_benchmark` only. `seed` draws the bootstrap,
    which stands in for Wilson's interval where tasks have several samples."""
    by_task: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in sorted(verdicts, key=lambda verdict: verdict.sample):
        by_task[verdict.task_id].append(verdict)
    # In the benchmark's order, so that the document does not depend on who finished first.
    judged = {problem.task_id: by_task[problem.task_id] for problem in problems if problem.task_id in by_task}
    _require_samples(Counter({task_id: len(of_task) for task_id, of_task in judged.items()}), k)
    figures = {
        suite: {f"pass@{size}": _figure(judged, passes, size, seed) for size in k} for suite, passes in SUITES.items()
    }
    return Report(
        benchmark=benchmark,
        model=model,
        sandbox=sandbox,
        tasks=len(judged),
        tasks_in_benchmark=len(problems),
        samples=sum(map(len, judged.values())),
        pass_at_k={suite: {name: figure[0] for name, figure in of.items()} for suite, of in figures.items()},
        interval_95={suite: {name: figure[1] for name, figure in of.items()} for suite, of in figures.items()},
        verdicts={
            task_id: [{"base": verdict.base, "plus": verdict.plus} for verdict in of_task]
            for task_id, of_task in judged.items()
        },
        failures={
            task_id: [verdict.failure for verdict in of_task]
            for task_id, of_task in judged.items()
            if any(verdict.failure for verdict in of_task)
        },
    )


def check_samples(problems: Sequence[Problem], samples: Sequence[Completion | Solution], k: Sequence[int]) -> None:
    """What would make the figures impossible, said before anything is run."""
    pair_with_problems(problems, samples)
    _require_samples(Counter(sample.task_id for sample in samples), k)


def _base_passes(verdict: Verdict) -> bool:
    return verdict.base == "pass"


def _plus_passes(verdict: Verdict) -> bool:
    return verdict.plus == "pass"


SUITES: Mapping[str, Callable[[Verdict], bool]] = {"base": _base_passes, "plus": _plus_passes}


def _figure(
    judged: Mapping[str, Sequence[Verdict]], passes: Callable[[Verdict], bool], k: int, seed: int
) -> tuple[float, tuple[float, float]]:
    counts = [(len(of_task), sum(map(passes, of_task))) for of_task in judged.values()]
    estimates = [pass_at_k(samples, passed, k) for samples, passed in counts]
    if all(samples == 1 for samples, _ in counts):
        interval = wilson_interval(sum(passed for _, passed in counts), len(counts))
    else:
        interval = bootstrap_interval(estimates, seed)
    return sum(estimates) / len(estimates), interval


def _require_samples(counts: Counter[str], k: Sequence[int]) -> None:
    if not counts:
        raise InputError(
            "There are no samples to evaluate. Expected: one for a task at least. Run: codetune generate, then "
            "codetune sanitize"
        )
    task_id, fewest = min(counts.items(), key=lambda pair: (pair[1], pair[0]))
    if max(k) > fewest:
        raise InputError(
            f"pass@{max(k)} was asked for, and {task_id} has {fewest} sample{'s' if fewest > 1 else ''}. Expected: as "
            f"many samples of every task as the largest k. Set evaluate.k to numbers up to {fewest}, or make more "
            "samples."
        )
