"""Verdicts -> the report of a model, the document of `codetune evaluate --json`; reports -> comparisons of models.

Fractions are 0 to 1. Programs are judged in `judge.py`, formulas are in `statistics.py`. Comparisons are not corrected
for their number: of twenty pairs of equal models, one is significant.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import NotRequired, TypedDict

from codetune.benchmark import statistics
from codetune.benchmark.evalplus_format import pair_with_problems
from codetune.benchmark.expected_outputs import Suite
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
    failures: dict[str, list[str]]  # of tasks with one: the first call that failed, and how; "" where none did
    left_out: NotRequired[dict[str, str]]  # tasks whose tests cannot be run, and why
    path: NotRequired[str]  # of a model or file whose label is made of a name and a digest
    completions: NotRequired[dict[str, int]]  # tokens, truncated, refused, ...: where codetune generated them


class PairedTest(TypedDict):
    """The second model against the first on one suite: better on the tasks of `won`, worse on those of `lost`."""

    test: str
    p_value: float  # two-sided
    difference: float  # of pass@1, as a fraction
    interval_95: tuple[float, float]
    least_difference: float  # that these tasks and samples find with 80 % power
    told_apart: bool  # significant, and no smaller than that
    only_first: int
    only_second: int
    won: list[str]  # in the benchmark's order, as `lost`
    lost: list[str]


class ModelComparison(TypedDict):
    benchmark: str
    models: list[str]
    tasks: int  # that both have
    one_task: float  # what one task more is worth, as a fraction of pass@1
    base: PairedTest
    plus: PairedTest


def evaluate(
    benchmark: str,
    model: str,
    sandbox: str,
    problems: Sequence[Problem],
    verdicts: Iterable[Verdict],
    k: Sequence[int],
    seed: int,
) -> Report:
    """The report of one model. `verdicts` may have any order; tasks without one only count in `tasks_in_benchmark`.
    `seed` draws the bootstrap, which replaces Wilson's interval where tasks have several samples. Raises InputError
    where there are no verdicts, or a task has fewer samples than the largest `k`."""
    by_task: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in sorted(verdicts, key=lambda verdict: verdict.sample):
        by_task[verdict.task_id].append(verdict)
    # In the benchmark's order, so that the document does not depend on which worker finished first.
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
        verdicts={task: [{"base": each.base, "plus": each.plus} for each in found] for task, found in judged.items()},
        failures={
            task: failures for task, found in judged.items() if any(failures := [each.failure for each in found])
        },
    )


def check_samples(problems: Sequence[Problem], samples: Sequence[Completion | Solution], k: Sequence[int]) -> None:
    """Raises, before anything is run, the errors of samples that no report can be made of: DataError for unknown tasks,
    InputError for fewer samples than the largest `k`."""
    pair_with_problems(problems, samples)
    _require_samples(Counter(sample.task_id for sample in samples), k)


def compare(reports: Sequence[Report], seed: int) -> list[ModelComparison]:
    """Compares every two models that were judged on the same benchmark and have a task in common. With one sample a
    task by the exact McNemar test, with several by the paired bootstrap of pass@1, drawn with `seed`."""
    compared = []
    for first, second in combinations(reports, 2):
        tasks = [task for task in first["verdicts"] if task in second["verdicts"]]
        if first["benchmark"] == second["benchmark"] and tasks:
            compared.append(
                ModelComparison(
                    benchmark=first["benchmark"],
                    models=[first["model"], second["model"]],
                    tasks=len(tasks),
                    one_task=1 / len(tasks),
                    base=_paired_test(first, second, tasks, "base", seed),
                    plus=_paired_test(first, second, tasks, "plus", seed),
                )
            )
    return compared


SUITES: Mapping[Suite, Callable[[Verdict], bool]] = {
    "base": lambda verdict: verdict.base == "pass",
    "plus": lambda verdict: verdict.plus == "pass",
}


def _figure(
    judged: Mapping[str, Sequence[Verdict]], passes: Callable[[Verdict], bool], k: int, seed: int
) -> tuple[float, tuple[float, float]]:
    counts = [(len(of_task), sum(map(passes, of_task))) for of_task in judged.values()]
    estimates = [statistics.pass_at_k(samples, passed, k) for samples, passed in counts]
    if all(samples == 1 for samples, _ in counts):
        interval = statistics.wilson_interval(sum(passed for _, passed in counts), len(counts))
    else:
        interval = statistics.bootstrap_interval(estimates, seed)
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


def _paired_test(first: Report, second: Report, tasks: Sequence[str], suite: Suite, seed: int) -> PairedTest:
    before, after = ([_passed_share(report, task, suite) for task in tasks] for report in (first, second))
    bootstrap = statistics.paired_bootstrap(before, after, seed)
    single = all(len(report["verdicts"][task]) == 1 for report in (first, second) for task in tasks)
    exact = statistics.mcnemar_test([share == 1 for share in before], [share == 1 for share in after])
    won = [task for task, old, new in zip(tasks, before, after, strict=True) if new > old]
    lost = [task for task, old, new in zip(tasks, before, after, strict=True) if new < old]
    least = statistics.least_of_bootstrap(bootstrap.standard_error, len(tasks))
    if single:
        least = statistics.least_difference_found(len(tasks), exact.only_first + exact.only_second)
    p_value = exact.p_value if single else bootstrap.p_value
    return PairedTest(
        test="exact McNemar" if single else "paired bootstrap",
        p_value=p_value,
        difference=bootstrap.difference,
        interval_95=(bootstrap.low, bootstrap.high),
        least_difference=least,
        told_apart=statistics.is_told_apart(bootstrap.difference, least, p_value, len(tasks)),
        only_first=len(lost),
        only_second=len(won),
        won=won,
        lost=lost,
    )


def _passed_share(report: Report, task: str, suite: Suite) -> float:
    """pass@1 of one task."""
    verdicts = report["verdicts"][task]
    return sum(verdict[suite] == "pass" for verdict in verdicts) / len(verdicts)
