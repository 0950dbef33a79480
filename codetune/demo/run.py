"""The demo: makes a small data set, benchmark and base model, runs every stage on them in this process, and shows what
came out. Every number is measured in that run, whichever way the comparison goes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from codetune import render, workflow
from codetune.console import CommandResult, percent
from codetune.errors import InputError, unusable_directory
from codetune.project.file import read_project
from codetune.project.sections import PROJECT_FILE
from codetune.records import TUNED
from codetune.stages import benchmarks
from codetune.stages.checks import is_pending
from codetune.stages.embed import EMBED
from codetune.stages.evaluate import EVALUATE
from codetune.stages.pipeline import stages_between
from codetune.stages.runner import open_context, read_context
from codetune.stages.select import SELECT
from codetune.stages.selection_report import figure_lines
from codetune.stages.stage import RunContext, Stage, StageRequest, StageResult
from codetune.stages.train import TRAIN
from codetune.store import row_artefacts

if TYPE_CHECKING:
    from codetune.benchmark.evaluate import Report
    from codetune.demo.demo_project import DemoProject

SELECTED = "tuned on the selection"
CONTROLS = {"random": "a random draw", "all": "all rows"}


@dataclass(frozen=True, slots=True)
class Control:
    """A model of the comparison: how many rows it was tuned on, and its evaluation."""

    name: str
    rows: int
    report: Report


def demo(directory: Path, full: bool, seed: int, assignments: Sequence[str], replace: bool = False) -> CommandResult:
    """Runs the whole pipeline in `directory`; with `full` also tuned on a random draw of the same size, and on all.
    With `replace` the models of an earlier demo there, of other tasks or settings, may be discarded."""
    from codetune.demo.demo_project import write_demo_project

    began = time.monotonic()
    try:
        _require_own(directory)
        _require_replaceable(directory / PROJECT_FILE, seed, assignments, replace)
        demo_project = write_demo_project(directory, seed)
    except OSError as why:
        raise unusable_directory(directory, why, "Name another directory: codetune demo DIR") from None
    made_seconds = time.monotonic() - began
    context = open_context(read_project(demo_project.project_file, assignments, {}))
    results, seconds = _timed(workflow.run(context, stages_between("score", "evaluate"), replace))
    base, tuned = workflow.reports_in(context, results)
    chosen = _rows_of(results, SELECT)
    controls = [Control("base", 0, base), Control(SELECTED, chosen, tuned)]
    if full:
        share = min(1.0, (chosen + 0.5) / _rows_of(results, EMBED))
        as_many = {"select.ratio": share, "select.ratio_of": "all"}
        controls.append(_control(demo_project, assignments, "random", as_many, replace))
        controls.append(_control(demo_project, assignments, "all", {}, replace))
    seconds = {"make the data": made_seconds, **seconds, "total": time.monotonic() - began}
    return _shown(context, demo_project, results, controls, seconds)


def _require_own(directory: Path) -> None:
    """An earlier demo may be run again; a directory with anything else in it is not written to."""
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    marks = (PROJECT_FILE, "benchmark.jsonl", "base")
    if not all((directory / mark).exists() for mark in marks):
        raise InputError(
            f"{directory} is not empty and holds no demo; nothing was written. Name a new directory: codetune demo DIR"
        )


def _require_replaceable(project_file: Path, seed: int, assignments: Sequence[str], replace: bool) -> None:
    """Raises StaleError for the finished model of an earlier demo with another seed; its data set stays as well."""
    if project_file.is_file():
        context = read_context(read_project(project_file, assignments, {"seed": seed}))
        is_pending(context, TRAIN, StageRequest(replace=replace), [])


def _rows_of(results: Iterable[StageResult], stage: Stage) -> int:
    return sum(result.rows for result in results if result.stage == stage.name)


def _control(
    demo_project: DemoProject, assignments: Sequence[str], strategy: str, flags: Mapping[str, object], replace: bool
) -> Control:
    settings = {**flags, "name": f"demo-{strategy}", "select.strategy": strategy}
    context = open_context(read_project(demo_project.project_file, assignments, settings))
    results = list(workflow.run(context, stages_between("select", "train"), replace))
    (report,) = workflow.evaluate_models(context, benchmarks.open_benchmark(context, "demo"), [TUNED])
    return Control(f"tuned on {CONTROLS[strategy]}", _rows_of(results, SELECT), report)


def _timed(results: Iterable[StageResult]) -> tuple[list[StageResult], dict[str, float]]:
    """The results and the seconds of each stage, loading included; those of a benchmark are of both models together."""
    gathered: list[StageResult] = []
    seconds: dict[str, float] = {}
    before = time.monotonic()
    for result in results:
        seconds[result.stage] = seconds.get(result.stage, 0.0) + time.monotonic() - before
        before = time.monotonic()
        gathered.append(result)
    return gathered, seconds


def _dropped(context: RunContext, demo_project: DemoProject) -> tuple[int, int]:
    """Mismatched rows, and other rows, that the selection dropped as mismatched pairs."""
    excluded = row_artefacts.read_excluded(context.run)
    dropped = [row_id for row_id, why in excluded if why.startswith("mismatched pair")]
    mismatched = sum(row_id in demo_project.mismatched for row_id in dropped)
    return mismatched, len(dropped) - mismatched


def _shown(
    context: RunContext,
    demo_project: DemoProject,
    results: list[StageResult],
    controls: list[Control],
    seconds: Mapping[str, float],
) -> CommandResult:
    mismatched, others = _dropped(context, demo_project)
    good = len(demo_project.trivial) + len(demo_project.composed)
    compared = workflow.compare(context, [control.report for control in controls[:2]])
    document = {
        "stages": [render.stage_document(result) for result in results if result.stage != EVALUATE.name],
        "models": [{"name": control.name, "rows": control.rows, **control.report} for control in controls],
        "comparison": compared,
        "mismatched": {"rows": len(demo_project.mismatched), "dropped": mismatched},
        "good": {"rows": good, "dropped": others},
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }
    table = [
        [
            control.name,
            f"{control.rows:,}" if control.rows else "",
            *(_figure(control.report, suite) for suite in ("base", "plus")),
        ]
        for control in controls
    ]
    notes = [
        f"of {len(demo_project.mismatched)} mismatched rows {mismatched} were dropped as such "
        f"({percent(mismatched / len(demo_project.mismatched))}), of {good:,} good rows {others}",
        *(line for result in results if result.stage == SELECT.name for line in _diagnostics(result)),
        *(line for entry in compared for line in render.comparison_lines(entry)),
        "seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()),
    ]
    tasks = f"{demo_project.tasks} held-out tasks"
    title, columns = f"demo: {tasks}, pass@1 (95 % interval)", ("model", "rows", "base", "plus")
    where = f"everything lies in {demo_project.directory}; try: cd {demo_project.directory} && codetune status"
    return CommandResult(title, columns, table, notes, asides=[where], document=document)


def _diagnostics(result: StageResult) -> list[str]:
    """What the selection was like, and what smells."""
    return [*figure_lines(result), *(f"warning: {line}" for line in SELECT.details(result).warnings)]


def _figure(report: Report, suite: str) -> str:
    low, high = report["interval_95"][suite]["pass@1"]
    return f"{percent(report['pass_at_k'][suite]['pass@1'])} ({100 * low:.0f} to {100 * high:.0f})"
