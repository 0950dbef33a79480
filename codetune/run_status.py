"""`status`: how all of a run stands, a line for each stage, benchmark and model. Looks at files only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from codetune.benchmark.benchmarks import HOLDOUT
from codetune.console import counts, percent, quantity
from codetune.records import TUNED
from codetune.stages.benchmarks import directory_name
from codetune.stages.dataset import dataset_is_here, dataset_paths
from codetune.stages.evaluate import EVALUATE, read_report
from codetune.stages.generate import GENERATE
from codetune.stages.likelihood import EVALUATE_HOLDOUT, read_likelihood
from codetune.stages.pipeline import STAGES
from codetune.stages.runner import lock_name
from codetune.stages.sanitize import SANITIZE
from codetune.stages.stage import RunContext, Stage, StageRequest
from codetune.stages.status import StageStatus, State, stage_status
from codetune.store.locks import holders
from codetune.store.manifest import Manifest, set_aside_command
from codetune.store.takeover import TAKEN_FROM
from codetune.text import setting_text
from codetune.workflow import COMPARED

if TYPE_CHECKING:
    from codetune.benchmark.evaluate import Report

TUNED_IS_OLD = "the tuned model is not what would be trained now"


@dataclass(frozen=True, slots=True)
class StatusLine:
    """The state of one artefact; `detail` says why it is stale, how far it is, or what is in it."""

    stage: str
    state: State | Literal["not needed"]
    detail: str
    command: str  # that makes it
    is_running: bool = False


def run_status(context: RunContext) -> list[StatusLine]:
    """A line for each stage, in their order, and for each benchmark and model."""
    lines = [
        _with_running(_stage_line(context, stage), _running(context, [stage], StageRequest()))
        for stage in STAGES
        if not stage.of_benchmark
    ]
    trained = lines[-1].state == "done"
    stages = [stage for stage in STAGES if stage.of_benchmark]
    for reference in context.project.evaluate.benchmarks:
        for label in COMPARED:
            request = StageRequest(benchmark=directory_name(context, reference), label=label)
            line = _benchmark_line(context, reference, label, trained)
            lines.append(_with_running(line, _running(context, stages, request)))
    return [*lines, *(_holdout_line(context, label) for label in COMPARED if context.project.train.holdout)]


def _holdout_line(context: RunContext, label: str) -> StatusLine:
    found = stage_status(context, EVALUATE_HOLDOUT, request := StageRequest(benchmark=HOLDOUT, label=label))
    detail = found.why
    if found.state == "done":
        detail = (
            f"{read_likelihood(EVALUATE_HOLDOUT.artefact(context.run, request))['nats_per_token']:.4f} nats a token"
        )
    command = _remedy(found) or f"codetune eval {HOLDOUT} --model {label}"
    return StatusLine(f"{HOLDOUT} {label}", found.state, detail, command)


def _remedy(found: StageStatus) -> str:
    """The command without which no other helps: it sets a damaged manifest aside; "" where none is damaged."""
    return set_aside_command(found.damaged) if found.damaged else ""


def _running(context: RunContext, stages: Sequence[Stage], request: StageRequest) -> str:
    """The processes that work on an artefact now, as the end of a line of status; "" if none does."""
    found = [(stage, holder) for stage in stages for holder in holders(context.run, lock_name(stage, request))]
    return "".join(f"; {stage.name} is running: {holder.named}, {holder.details}" for stage, holder in found)


def _with_running(line: StatusLine, running: str) -> StatusLine:
    return replace(line, detail=(line.detail + running).removeprefix("; "), is_running=bool(running))


def _stage_line(context: RunContext, stage: Stage) -> StatusLine:
    if not stage.is_needed(context.project):
        return StatusLine(stage.name, "not needed", f"select.strategy is {context.project.select.strategy}", "")
    found = stage_status(context, stage)
    command = stage.command(StageRequest(replace=found.state == "stale"))
    if found.state == "done" and found.manifest is not None:
        return StatusLine(
            stage.name, "done", _content(stage, found.manifest) + _remarks(context, stage, found), command
        )
    if found.state == "partial":
        command = stage.continue_command(context) or command
    return StatusLine(stage.name, found.state, found.why, _remedy(found) or command)


def _content(stage: Stage, manifest: Manifest) -> str:
    refused = f"; {stage.refused_word}: {counts(manifest.refused)}" if manifest.refused else ""
    by_flag = ", ".join(f"{key}={setting_text(value, str)}" for key, value in manifest.overrides.items())
    taken = f"; taken over from {manifest.facts[TAKEN_FROM]}" if TAKEN_FROM in manifest.facts else ""
    return f"{quantity(manifest.rows, 'row')}{refused}" + (f"; by flag: {by_flag}" if by_flag else "") + taken


def _remarks(context: RunContext, stage: Stage, found: StageStatus) -> str:
    """The stage's own remark, and a data set that cannot be compared here."""
    remarks = [stage.remark(context)]
    if found.manifest is not None and "dataset" in found.manifest.inputs and not dataset_is_here(context):
        remarks.append(f"{dataset_paths(context.project)} was not found, so it was not compared")
    return "".join(f"; {remark}" for remark in remarks if remark)


def _benchmark_line(context: RunContext, reference: str, label: str, trained: bool) -> StatusLine:
    """The line of a benchmark and a model, by the manifests alone: no tasks are read, and no Hub is asked."""
    name = directory_name(context, reference)
    request, command = StageRequest(benchmark=name, label=label), f"codetune eval {reference} --model {label}"
    line = f"{name} {label}"
    found = stage_status(context, EVALUATE, request)
    if found.state in ("missing", "partial"):
        generated, sanitized = (stage_status(context, stage, request) for stage in (GENERATE, SANITIZE))
        if remedy := _remedy(generated) or _remedy(sanitized):
            return StatusLine(line, "stale", generated.why or sanitized.why, remedy)
        progress = {"missing": "", "partial": generated.why}.get(generated.state, "generated")
        return StatusLine(line, "partial" if progress else "missing", progress, command)
    changed = found.why or (TUNED_IS_OLD if label == TUNED and not trained else "")
    if changed:
        return StatusLine(line, "stale", changed, _remedy(found) or command)
    taken = found.manifest.facts.get(TAKEN_FROM) if found.manifest else None
    figures = _figures(read_report(EVALUATE.artefact(context.run, request)))
    return StatusLine(line, "done", figures + (f"; taken over from {taken}" if taken else ""), command)


def _figures(report: Report) -> str:
    figures = report["pass_at_k"]
    return "; ".join(
        f"{k} {percent(figures['base'][k])} base, {percent(figures['plus'][k])} plus" for k in figures["base"]
    )
