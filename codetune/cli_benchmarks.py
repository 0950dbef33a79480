"""The commands about a benchmark and models: generate, sanitize and evaluate, and `eval`, which does all of it. Imports
what they need inside functions, as `cli.py` does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codetune.cli_app import perform
from codetune.cli_options import (
    AfterOption,
    BenchmarkArgument,
    ComparedArgument,
    CompleteOption,
    InstructOption,
    JsonOption,
    LimitOption,
    MeasuredArgument,
    ModelOption,
    ModelsOption,
    ProjectOption,
    SamplesOption,
    SetOption,
    TasksOption,
    only_samples,
    optional_project,
)

if TYPE_CHECKING:
    from codetune.console import CommandResult
    from codetune.records import ModelRef
    from codetune.stages.stage import RunContext


def generate(
    benchmark: BenchmarkArgument,
    model: ModelOption = None,
    instruct: InstructOption = None,
    project: ProjectOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Generate completions for a benchmark's tasks. Continues where it stopped."""
    loaded = optional_project(project, set_, instruct, ["generate"])

    def work() -> CommandResult:
        from codetune import render, workflow
        from codetune.stages import benchmarks
        from codetune.stages.generate import GENERATE
        from codetune.stages.runner import open_context, run_stage

        context = open_context(loaded)
        tasks = benchmarks.open_benchmark(context, benchmark)
        request = workflow.model_request(tasks, _model(context, model))
        return render.stage(run_stage(context, GENERATE, request))

    perform(work, as_json)


def sanitize(
    source: Annotated[str, typer.Argument(metavar="BENCHMARK|FILE", help="A benchmark, or a file of samples.")],
    model: ModelOption = None,
    instruct: InstructOption = None,
    project: ProjectOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Turn completions into programs that can be run."""
    loaded = optional_project(project, set_, instruct, ["sanitize"])

    def work() -> CommandResult:
        from codetune import render, workflow
        from codetune.stages import benchmarks
        from codetune.stages.runner import open_context, run_stage
        from codetune.stages.sanitize import SANITIZE

        context = open_context(loaded)
        if benchmarks.is_samples_file(context, source):
            tasks = benchmarks.open_benchmark(context, benchmarks.benchmark_of_samples(context, Path(source)))
            request = benchmarks.samples_request(context, tasks, Path(source))
        else:
            tasks = benchmarks.open_benchmark(context, source)
            request = workflow.model_request(tasks, _model(context, model))
        return render.stage(run_stage(context, SANITIZE, request))

    perform(work, as_json)


def evaluate(
    benchmark: MeasuredArgument,
    samples: SamplesOption = None,
    model: ModelOption = None,
    instruct: InstructOption = None,
    limit: LimitOption = None,
    task: TasksOption = None,
    after: AfterOption = "",
    complete: CompleteOption = False,
    project: ProjectOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge programs in a sandbox -> pass@k."""
    file = only_samples(samples, model)
    loaded = optional_project(project, set_, instruct, ["evaluate"])

    def work() -> CommandResult:
        from codetune import render, workflow
        from codetune.benchmark.benchmarks import HOLDOUT
        from codetune.stages import benchmarks
        from codetune.stages.evaluate import EVALUATE
        from codetune.stages.likelihood import measure_holdout, require_no_parts
        from codetune.stages.model_ref import default_model
        from codetune.stages.runner import open_context, run_stage

        context = open_context(loaded)
        if benchmark == HOLDOUT:
            require_no_parts(limit, task or [], file, complete, after)
            return render.one_likelihood(*measure_holdout(context, [default_model(context, model)]))
        whole = benchmarks.open_benchmark(context, benchmark)
        tasks = benchmarks.part_of_benchmark(whole, limit, task or [], after)
        if file:
            request = benchmarks.samples_request(context, tasks, file)
        else:
            request = workflow.model_request(tasks, _model(context, model, ", or --samples FILE"), whole)
        result = run_stage(context, EVALUATE, dataclasses.replace(request, complete=complete))
        path = file or (request.model.directory if request.model else None)
        (report,) = workflow.reports_in(context, [result], {request.label: path} if path else {})
        return render.one_evaluation(report)

    perform(work, as_json)


def eval_(
    benchmark: ComparedArgument,
    models: ModelsOption = None,
    all_checkpoints: Annotated[
        bool, typer.Option("--all-checkpoints", help="Also evaluate `tuned` and every checkpoint of its training.")
    ] = False,
    instruct: InstructOption = None,
    limit: LimitOption = None,
    task: TasksOption = None,
    after: AfterOption = "",
    project: ProjectOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Generate, sanitize and evaluate in one go, or measure the loss on held-out rows; several models are compared."""
    loaded = optional_project(project, set_, instruct, ["generate", "sanitize", "evaluate"])

    def work() -> CommandResult:
        from codetune import render, workflow
        from codetune.benchmark.benchmarks import HOLDOUT
        from codetune.stages import benchmarks, model_ref
        from codetune.stages.likelihood import measure_holdout, require_no_parts
        from codetune.stages.runner import open_context

        context = open_context(loaded)
        names = model_ref.names_of_the_run(context, models or []) if all_checkpoints else models or []
        if benchmark == HOLDOUT:
            require_no_parts(limit, task or [], after=after)
            return render.likelihoods(*measure_holdout(context, names))
        wholes = benchmarks.open_benchmarks(context, benchmark)
        parts = [benchmarks.part_of_benchmark(whole, limit, task or [], after) for whole in wholes]
        names = list(dict.fromkeys(names or [model_ref.default_model(context, None)]))
        reports = workflow.evaluate_on_each(context, parts, names)
        return render.evaluation(reports, workflow.compare(context, reports))

    perform(work, as_json)


def _model(context: RunContext, said: str | None, instead: str = "") -> ModelRef:
    from codetune.stages.model_ref import default_model, model_ref

    return model_ref(context, default_model(context, said, instead))
