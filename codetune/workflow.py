"""Several stages in one command: `run` (the pipeline), and `eval` (a benchmark in one go). Both are loops over
`STAGES`; what is done, and still true, is not done again.

    data set -> examples --> score --+
                       +---> embed --+--> select --> train     once for the run
    tasks ---> generate --> sanitize --> evaluate              for each benchmark, with the base and the tuned model
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from codetune.benchmark.benchmarks import HOLDOUT, Benchmark
from codetune.benchmark.parts import part_of
from codetune.records import BASE, TUNED, ModelRef
from codetune.stages.benchmarks import distinct_benchmarks, open_benchmark
from codetune.stages.checks import check_ahead, is_pending, require_samples
from codetune.stages.evaluate import EVALUATE, read_report
from codetune.stages.generate import GENERATE
from codetune.stages.inputs import require_named_inputs
from codetune.stages.likelihood import measure_likelihoods
from codetune.stages.model_ref import model_ref
from codetune.stages.pipeline import STAGES
from codetune.stages.runner import run_stage
from codetune.stages.sanitize import SANITIZE
from codetune.stages.stage import RunContext, Stage, StageRequest, StageResult
from codetune.stages.train import TRAIN
from codetune.store.manifest import read_manifest

if TYPE_CHECKING:
    from codetune.benchmark.evaluate import ModelComparison, Report

COMPARED = (BASE, TUNED)  # the models that `run` evaluates
# Facts of completions and of the programs made of them.
COUNTED = ("tokens", "truncated", "changed", "not_parsing", "given_up")


def run(
    context: RunContext, wanted: Sequence[Stage], replace: bool = False, limit: int | None = None
) -> Iterator[StageResult]:
    """Runs the stages in their order; yields each result when it is done. What any of them needs is checked before the
    first begins. `replace`: a finished model of another recipe may be discarded; `limit`: the first tasks of each
    benchmark only."""
    tasks = check(context, wanted, replace, limit)
    for stage, request in _work_of_run(context, wanted, replace):
        yield run_stage(context, stage, request)
    for stage, part in _benchmark_work(context, wanted, tasks, is_trained_here=False):
        yield run_stage(context, stage, part)
    if EVALUATE in wanted and context.project.train.holdout:
        yield from measure_likelihoods(context, COMPARED)


def check(
    context: RunContext, wanted: Sequence[Stage], replace: bool = False, limit: int | None = None
) -> Sequence[Benchmark]:
    """Raises the first error that these stages are certain to end in; returns the tasks of the benchmarks."""
    of_run = _work_of_run(context, wanted, replace)
    for stage, request in of_run:
        require_named_inputs(context.project, stage.inputs(context.project, request))
    tasks: list[Benchmark] = []
    if any(stage.of_benchmark for stage in wanted):
        require_samples(context)
        tasks = [part_of(open_benchmark(context, name), limit, []) for name in distinct_benchmarks(context)]
    training = StageRequest(replace=replace)
    is_trained_here = (TRAIN, training) in of_run and is_pending(context, TRAIN, training, of_run)
    check_ahead(context, [*of_run, *_benchmark_work(context, wanted, tasks, is_trained_here)])
    return tasks


def _work_of_run(context: RunContext, wanted: Sequence[Stage], replace: bool) -> list[tuple[Stage, StageRequest]]:
    """The stages that make one artefact for the run, of those that the project needs."""
    request = StageRequest(replace=replace)
    return [(stage, request) for stage in wanted if not stage.of_benchmark and stage.is_needed(context.project)]


def _benchmark_work(
    context: RunContext, wanted: Sequence[Stage], tasks: Sequence[Benchmark], is_trained_here: bool
) -> list[tuple[Stage, StageRequest]]:
    """The benchmark stages for each benchmark and model; the tuned model is absent while it is still to be trained."""
    if not tasks:
        return []
    models = {name: None if name == TUNED and is_trained_here else model_ref(context, name) for name in COMPARED}
    requests = [
        model_request(benchmark, model)
        if model
        else StageRequest(benchmark=benchmark.name, label=name, tasks=benchmark)
        for benchmark in tasks
        for name, model in models.items()
    ]
    return [(stage, request) for request in requests for stage in wanted if stage.of_benchmark]


def evaluate_models(context: RunContext, tasks: Benchmark, names: Sequence[str]) -> list[Report]:
    """Generates, sanitizes and evaluates each model on one benchmark."""
    return evaluate_on_each(context, [tasks], names)


def evaluate_on_each(context: RunContext, benchmarks: Sequence[Benchmark], names: Sequence[str]) -> list[Report]:
    """Generates, sanitizes and evaluates each model on each benchmark. All names are resolved before the first is run;
    a model with two names is evaluated once."""
    require_samples(context)
    models = {model.label: model for model in [model_ref(context, name) for name in names]}
    stages = [stage for stage in STAGES if stage.of_benchmark]
    requests = [model_request(tasks, model) for tasks in benchmarks for model in models.values()]
    check_ahead(context, [(stage, request) for request in requests for stage in stages])
    results = [run_stage(context, stage, request) for request in requests for stage in stages]
    return reports_in(context, results, {model.label: model.directory for model in models.values()})


def model_request(tasks: Benchmark, model: ModelRef, whole: Benchmark | None = None) -> StageRequest:
    """The request to a benchmark stage. `whole` is the benchmark, if `tasks` are a part of it that is judged alone."""
    return StageRequest(benchmark=tasks.name, label=model.label, tasks=tasks, whole=whole, model=model)


def compare(context: RunContext, reports: Sequence[Report]) -> list[ModelComparison]:
    """The comparisons of every two models on the same benchmark."""
    if len(reports) < 2:
        return []
    from codetune.benchmark.evaluate import compare

    return compare(reports, context.project.seed)


def reports_in(
    context: RunContext, results: Sequence[StageResult], paths: Mapping[str, Path] | None = None
) -> list[Report]:
    """The report of each evaluation among the results. `paths`: of models or files, by label."""
    evaluated = [result for result in results if result.stage == EVALUATE.name]
    return [_report(context, result, paths or {}) for result in evaluated if result.artefact.parent.name != HOLDOUT]


def _report(context: RunContext, result: StageResult, paths: Mapping[str, Path]) -> Report:
    """The report of an evaluation, with what is known of the completions behind it, and with the path of a model or
    file whose label does not say which one it is."""
    report = read_report(result.artefact)
    request = StageRequest(benchmark=result.artefact.parent.name, label=result.artefact.stem)
    if facts := _facts_of_completions(context, request):
        report["completions"] = facts
    if request.label in paths and request.label not in COMPARED:
        report["path"] = str(paths[request.label])
    return report


def _facts_of_completions(context: RunContext, request: StageRequest) -> dict[str, int]:
    """The counts of the completions; empty where codetune has not generated them, or where a part of them was
    judged."""
    made = [read_manifest(stage.artefact(context.run, request)) for stage in (GENERATE, SANITIZE)]
    manifests = [manifest for manifest in made if manifest is not None]
    if len(manifests) < len(made):
        return {}
    facts = {name: value for manifest in manifests for name, value in manifest.facts.items()}
    refused = sum(count for manifest in manifests for count in manifest.refused.values())
    return {name: facts[name] for name in COUNTED if name in facts} | ({"refused": refused} if refused else {})
