"""Does the runs of a sweep. First what they share, one run after another: every run is checked, its rows are scored,
embedded and selected, and `base` is evaluated. What one run has made is taken over by the next, so nothing is made
twice. Then the trainings, which share nothing: one after another, or several side by side, each in a process of its own
with GPUs of its own.

Every run is an ordinary one: it continues where it was killed, and is not done again. Input that is wrong for one of
them is an error before the first training; if one fails later, the others are done before it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from codetune import console, workflow
from codetune.console import quantity
from codetune.errors import CodetuneError, InputError, UsageError
from codetune.launch.dispatch import SWEEP_JOB, Job, run_independent_jobs
from codetune.launch.environment import current_rank
from codetune.launch.workers import JSON
from codetune.project.sections import Project
from codetune.records import BASE, TUNED
from codetune.stages.benchmarks import distinct_benchmarks, open_benchmark
from codetune.stages.likelihood import measure_holdout
from codetune.stages.pipeline import stages_between
from codetune.stages.runner import open_context
from codetune.stages.stage import RunContext, Stage
from codetune.store.manifest import read_manifest
from codetune.store.run_directory import Run
from codetune.sweep.variants import RANDOM, Sweep, SweepRun, Variant

if TYPE_CHECKING:
    from codetune.benchmark.evaluate import Report

Losses = dict[str, tuple[float, int]]  # held-out row -> nats and tokens


@dataclass(slots=True)
class _Failures:
    """The errors of the runs, by their names."""

    found: dict[str, CodetuneError] = field(default_factory=dict)

    def attempt(self, name: str, work: Callable[[], object]) -> None:
        try:
            work()
        except CodetuneError as error:
            self.found[name] = error

    def tell(self, done: str) -> None:
        """Raises the errors as one, which says what became of the other runs; does nothing where there is none."""
        if not self.found:
            return
        kind = InputError if all(isinstance(error, InputError) for error in self.found.values()) else CodetuneError
        lines = "\n".join(f"{name}: {error}" for name, error in self.found.items())
        raise kind(f"{quantity(len(self.found), 'run')} failed; {done}\n{lines}")


def run_sweep(sweep: Sweep) -> Iterator[str]:
    """Does every run; yields the name of each when it is done. Raises ProjectError, UsageError and InputError before
    the first training where the settings, the number of runs at a time or the input of any run is wrong; the errors of
    trainings after the last one."""
    groups = _device_groups(sweep)
    failures = _Failures()
    runs = _prepare(sweep, failures)
    _evaluate_base(sweep, runs, failures)
    ended = _side_by_side(sweep, runs, groups) if len(groups) > 1 else _in_turn(sweep, runs)
    for run, error in ended:
        if error is None:
            yield run.name
        else:
            failures.found[run.name] = error
            console.warn(f"sweep: {run.name} failed: {error}")
    failures.tell("the others are done. Fix the cause, and run the same command: it does what is missing")


def control_runs(sweep: Sweep, variant: Variant, offset: int) -> dict[str, SweepRun]:
    """The controls of a run whose rows are selected, by their names: as many random rows, and all rows."""
    selection = read_manifest(Run(sweep.run_of(variant, offset).project.run_dir).selection)
    assert selection is not None
    return {
        name: sweep.run_of(control, offset, selection.rows if name == RANDOM else None)
        for name, control in variant.controls.items()
    }


def base_runs(sweep: Sweep) -> dict[tuple[str, int], SweepRun]:
    """The run in whose directory `base` is evaluated, by its name and the offset of the seed."""
    found: dict[tuple[str, int], SweepRun] = {}
    for variant in sweep.variants:
        for offset in range(sweep.seeds):
            found.setdefault((variant.base, offset), sweep.run_of(variant, offset))
    return found


def evaluate(context: RunContext, model: str, has_benchmarks: bool) -> tuple[list[Report], Losses]:
    """The reports of a model on the benchmarks, and its losses on held-out rows; what is done is read."""
    names = distinct_benchmarks(context) if has_benchmarks else ()
    reports = [workflow.evaluate_models(context, open_benchmark(context, name), [model])[0] for name in names]
    if not context.project.train.holdout:
        return reports, {}
    (report,), _ = measure_holdout(context, [model])
    return reports, {row: (nats, tokens) for row, (nats, tokens) in report["losses"].items()}


def train_one(job: Job) -> JSON:
    """One training of a sweep, with its evaluation, in a process of its own."""
    console.set_quiet(bool(job.details["is_quiet"]))
    _train(job.project, bool(job.details["has_benchmarks"]), bool(job.details["replace"]))
    return None


def _prepare(sweep: Sweep, failures: _Failures) -> list[SweepRun]:
    """Selects the rows of every run; returns the runs in the order of the variants, but for those that failed. Raises
    InputError for those whose input is wrong, after all of them were tried. The controls that draw random rows come
    last: how many, the selections of the others say."""
    pairs = [(variant, offset) for variant in sweep.variants for offset in range(sweep.seeds)]
    own = [sweep.run_of(variant, offset) for variant, offset in pairs]
    alone = [
        sweep.run_of(control, offset)
        for variant, offset in pairs
        for name, control in variant.controls.items()
        if name != RANDOM
    ]
    _select(sweep, [*own, *alone], failures)
    ordered = list[SweepRun]()
    for run, (variant, offset) in zip(own, pairs, strict=True):
        if run.name not in failures.found:
            ordered += run, *control_runs(sweep, variant, offset).values()
    done = {run.name for run in [*own, *alone]}
    _select(sweep, [run for run in ordered if run.name not in done], failures)
    return [run for run in {run.name: run for run in ordered}.values() if run.name not in failures.found]


def _select(sweep: Sweep, runs: Iterable[SweepRun], failures: _Failures) -> None:
    distinct = {run.name: run for run in runs}
    stages = stages_between("score", "evaluate" if sweep.has_benchmarks else "train")
    for name, run in distinct.items():
        failures.attempt(name, partial(_check, run.project, stages, sweep.replace))
    _tell_wrong_input(failures)
    for name, run in distinct.items():
        if name not in failures.found:
            failures.attempt(name, partial(_run_stages, run.project, "select", sweep.replace))
    _tell_wrong_input(failures)


def _tell_wrong_input(failures: _Failures) -> None:
    if any(isinstance(error, InputError) for error in failures.found.values()):
        failures.tell("nothing was trained. Fix the cause, or leave the value out")


def _evaluate_base(sweep: Sweep, runs: Sequence[SweepRun], failures: _Failures) -> None:
    ready = {run.name for run in runs}
    for (name, offset), run in base_runs(sweep).items():
        if run.name in ready:
            of_base = f"{name}-seed{sweep.project.seed + offset}"
            failures.attempt(of_base, partial(_evaluate, run.project, BASE, sweep.has_benchmarks))


def _in_turn(sweep: Sweep, runs: Sequence[SweepRun]) -> Iterator[tuple[SweepRun, CodetuneError | None]]:
    for run in runs:
        try:
            _train(run.project, sweep.has_benchmarks, sweep.replace)
            error = None
        except CodetuneError as why:
            error = why
        yield run, error


def _side_by_side(
    sweep: Sweep, runs: Sequence[SweepRun], groups: Sequence[Sequence[str]]
) -> Iterator[tuple[SweepRun, CodetuneError | None]]:
    details = {"is_quiet": console.is_quiet(), "has_benchmarks": sweep.has_benchmarks, "replace": sweep.replace}
    jobs = [Job(SWEEP_JOB, run.project, details) for run in runs]
    for index, error in run_independent_jobs(jobs, groups, [run.name for run in runs]):
        yield runs[index], error


def _train(project: Project, has_benchmarks: bool, replace: bool) -> None:
    _run_stages(project, "train", replace)
    _evaluate(project, TUNED, has_benchmarks)


def _check(project: Project, stages: Sequence[Stage], replace: bool) -> None:
    workflow.check(open_context(project), stages, replace)


def _evaluate(project: Project, model: str, has_benchmarks: bool) -> None:
    evaluate(open_context(project), model, has_benchmarks)


def _run_stages(project: Project, last: str, replace: bool) -> None:
    for _ in workflow.run(open_context(project), stages_between("score", last), replace):
        pass


def _device_groups(sweep: Sweep) -> list[Sequence[str]]:
    """The GPUs of each of the runs that go side by side; none for any where there are no GPUs. A run takes
    `launch.processes` GPUs, with `auto` all of them, or its share of them where the number of runs is given. Raises
    UsageError for more runs than there are GPUs for."""
    launch = [variant.project.launch for variant in sweep.variants]
    asked = sweep.at_once or 1
    is_alone = current_rank().world_size == 1 and all(each.nodes == 1 for each in launch)
    if not is_alone:
        if asked > 1:
            raise UsageError(
                f"--side-by-side {asked}: this command was started by a launcher, or launch.nodes is more than 1. "
                "Expected: one process on one machine. Leave the flag out"
            )
        return [[]]
    from codetune.launch.devices import visible_gpus

    processes = [each.processes for each in launch]
    if sweep.at_once is None and "auto" in processes:
        return [[]]
    gpus = visible_gpus()
    if not gpus:
        return [[]] * asked
    needed = max((count for count in processes if isinstance(count, int)), default=max(1, len(gpus) // asked))
    fitting = max(1, len(gpus) // needed)
    if asked > fitting:
        raise UsageError(
            f"--side-by-side {asked}: {asked} runs of {quantity(needed, 'process')} need {asked * needed} GPUs, and "
            f"{quantity(len(gpus), 'GPU')} are here. Expected: {fitting} runs at most. Lower it, or launch.processes"
        )
    width = len(gpus) // asked if sweep.at_once and "auto" in processes else needed
    return [gpus[first : first + width] for first in range(0, width * (sweep.at_once or fitting), width)]
