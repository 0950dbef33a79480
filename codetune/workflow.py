"""The verbs over several stages: run (the whole pipeline), eval (a benchmark in one go), status (how all of it stands).
What is done and still true is not done again.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from codetune.console import counts, percent
from codetune.errors import StaleError, UsageError
from codetune.selection.select import STRATEGIES
from codetune.stages import evaluate
from codetune.stages import stage as pipeline
from codetune.stages.resume import begun_otherwise, training_place
from codetune.stages.stage import StageResult
from codetune.stages.status import RowStage, RunContext, State, dataset_is_here, settings_of, stage_status
from codetune.store.block_log import read_logs
from codetune.store.manifest import Manifest, manifest_path, read_manifest

if TYPE_CHECKING:
    from codetune.benchmark.evaluate import ModelComparison, Report

Stage = Literal["score", "embed", "select", "train", "generate", "sanitize", "evaluate"]
STAGES: tuple[Stage, ...] = get_args(Stage)
ROW_STAGES: tuple[RowStage, ...] = get_args(RowStage)
COMPARED = ("base", "tuned")
COUNTED = ("tokens", "truncated", "changed", "not_parsing")  # of completions, and of the programs made of them


@dataclass(frozen=True, slots=True)
class Line:
    """How one stage stands; `detail` says why it is stale, how far it is, or what is in it."""

    stage: str
    state: State | Literal["not needed"]
    detail: str
    command: str


def run(context: RunContext, wanted: Sequence[Stage]) -> Iterator[StageResult | Report]:
    """Each of the stages (see `stages_between`), yielded when it is done."""
    benches: list[evaluate.Bench] = []
    if {"generate", "sanitize", "evaluate"} & set(wanted):  # a typo there is told before hours of training
        _require_samples(context)
        benches = [evaluate.open_bench(context, said) for said in _distinct(context)]
    for stage in ROW_STAGES:
        if stage in wanted and needed(context, stage):
            yield _row_stage(context, stage)
    if not benches:
        return
    models = [evaluate.model_ref(context, name) for name in COMPARED]
    for bench in benches:
        for model in models:
            if "generate" in wanted:
                yield evaluate.generate(context, bench, model)
            if "sanitize" in wanted:
                yield evaluate.sanitize(context, bench, model)
            if "evaluate" in wanted:
                yield evaluate.evaluate(context, bench, model, bench)


def evaluate_by_name(context: RunContext, bench: evaluate.Bench, names: Sequence[str]) -> list[Report]:
    """Generate, sanitize and evaluate each model on one benchmark. All names are resolved before the first is run; a
    model that has two of them is one."""
    _require_samples(context)
    models = {model.label: model for model in [evaluate.model_ref(context, name) for name in names]}
    return [_evaluated(context, bench, model) for model in models.values()]


def _evaluated(context: RunContext, bench: evaluate.Bench, model: evaluate.ModelRef) -> Report:
    made = [verb(context, bench, model) for verb in (evaluate.generate, evaluate.sanitize)]
    report = evaluate.evaluate(context, bench, model, bench)
    facts = {name: value for result in made for name, value in result.facts.items()}
    report["completions"] = {name: facts[name] for name in COUNTED}
    return report


def compare(context: RunContext, reports: Sequence[Report]) -> list[ModelComparison]:
    """Every two models on the same benchmark."""
    if len(reports) < 2:
        return []
    from codetune.benchmark.evaluate import compare

    return compare(reports, context.project.seed)


def needed(context: RunContext, stage: RowStage) -> bool:
    """Whether the selection strategy makes any use of the stage."""
    strategy = STRATEGIES[context.project.select.strategy]
    return {"score": strategy.needs_scores, "embed": strategy.needs_embeddings}.get(stage, True)


def status(context: RunContext) -> list[Line]:
    """A line per stage, in their order; looks at files only."""
    lines = [_row_line(context, stage) for stage in ROW_STAGES]
    trained = lines[-1].state == "done"
    benchmarks = context.project.evaluate.benchmarks
    return lines + [_benchmark_line(context, said, label, trained) for said in benchmarks for label in COMPARED]


def _require_samples(context: RunContext) -> None:
    """Said before hours of generation, not after."""
    most, samples = max(context.project.evaluate.k), context.project.generate.samples_per_task
    if most > samples:
        raise UsageError(
            f"evaluate.k asks for pass@{most}, and generate.samples_per_task makes {samples} of a task. Expected: as "
            f"many samples as the largest k. Set generate.samples_per_task to {most} or more (and generate.temperature "
            "above 0), or evaluate.k lower"
        )


def _distinct(context: RunContext) -> Sequence[str]:
    """The project's benchmarks, where no two of them would write the same artefacts."""
    benchmarks = context.project.evaluate.benchmarks
    names = [evaluate.bench_name(context, said) for said in benchmarks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"evaluate.benchmarks names {twice!r} twice ({', '.join(benchmarks)}); results are kept by name. Leave "
            "one out, or rename the file"
        )
    return benchmarks


def _row_stage(context: RunContext, stage: RowStage) -> StageResult:
    found = stage_status(context, stage)
    if found.state == "done" and found.manifest is not None:
        return pipeline.found_done(context, stage, found.manifest)
    if stage == "score":
        return pipeline.score(context, None)
    if stage == "embed":
        return pipeline.embed(context, None)
    return pipeline.select(context) if stage == "select" else pipeline.train(context)


def _row_line(context: RunContext, stage: RowStage) -> Line:
    if not needed(context, stage):
        strategy = STRATEGIES[context.project.select.strategy]
        return Line(stage, "not needed", f"select.strategy is {strategy.name}: {strategy.description}", "")
    found = stage_status(context, stage)
    command = f"codetune {stage}"
    if found.manifest is not None and found.state == "done":
        unseen = (
            ""
            if _can_compare(context, found.manifest)
            else f"; {context.project.dataset.path} is not here to compare with"
        )
        beside = (
            f"; begun beside it: {_progress(context, stage)}"
            if stage == "train" and context.run.next_train.exists()
            else ""
        )
        return Line(stage, "done", _counted(found.manifest.rows, found.manifest.refused) + unseen + beside, command)
    if found.state == "partial":
        settings = settings_of(context.project, stage)
        differing, going_on = begun_otherwise(context.run, settings) if stage == "train" else ("", "")
        progress = _progress(context, stage) + (f", made otherwise: {differing}" if differing else "")
        return Line(stage, "partial", progress, going_on or command)
    if found.manifest is None and found.why:  # a damaged manifest
        command = f"rm {manifest_path(context.artefact(stage))}"
    return Line(stage, found.state, found.why, command)


def _can_compare(context: RunContext, manifest: Manifest) -> bool:
    return "dataset" not in manifest.inputs or dataset_is_here(context)


def _progress(context: RunContext, stage: RowStage) -> str:
    if stage == "train":
        checkpoints = [
            int(path.name.rpartition("-")[2]) for path in training_place(context.run).glob("checkpoint-*[0-9]")
        ]
        return f"checkpoint of step {max(checkpoints)}" if checkpoints else "no checkpoint yet"
    return f"{len(read_logs(context.run.parts(context.artefact(stage)))):,} rows"


def _benchmark_line(context: RunContext, said: str, label: str, trained: bool) -> Line:
    """By the manifests alone: nobody's tasks are read, and no network or hub is asked."""
    name = evaluate.bench_name(context, said)
    stage, command = f"{name} {label}", f"codetune eval {said} --model {label}"
    paths = [place(name, label) for place in (context.run.completions, context.run.solutions, context.run.evaluation)]
    try:
        manifests = [read_manifest(path) for path in paths]
    except StaleError as why:
        return Line(stage, "stale", str(why), command)
    if manifests[2] is None:
        done = "generated" if manifests[0] else "begun" if context.run.parts(paths[0]).exists() else ""
        return Line(stage, "partial" if done else "missing", done, command)
    changed = "" if trained or label != "tuned" else "the tuned model has changed since"
    changed = changed or evaluate.changed_since(context, label, paths, manifests)
    return Line(stage, "stale" if changed else "done", changed or _figures(context, name, label), command)


def _figures(context: RunContext, name: str, label: str) -> str:
    report = json.loads(context.run.evaluation(name, label).read_text(encoding="utf-8"))
    figures = report["pass_at_k"]
    return "; ".join(
        f"{k} {percent(figures['base'][k])} base, {percent(figures['plus'][k])} plus" for k in figures["base"]
    )


def _counted(rows: int, refused: Mapping[str, int]) -> str:
    return f"{rows:,} rows" + (f"; refused: {counts(refused)}" if refused else "")


def stages_between(first: str, last: str) -> Sequence[Stage]:
    """From `first` to `last`, both among them."""
    begin, end = STAGES.index(_stage_named(first)), STAGES.index(_stage_named(last))
    if begin > end:
        raise UsageError(f"--from {first} --to {last}: {last} comes before {first}. The order is: {' '.join(STAGES)}")
    return STAGES[begin : end + 1]


def _stage_named(name: str) -> Stage:
    for stage in STAGES:
        if stage == name:
            return stage
    near = difflib.get_close_matches(name, STAGES, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise UsageError(f"{name} is no stage{hint} Expected one of: {', '.join(STAGES)}")


def reports_in(results: Sequence[StageResult | Report]) -> list[Report]:
    return [result for result in results if not isinstance(result, StageResult)]
