"""The demo: makes its little world, runs every stage on it in this process, and shows what came out, controls included.
Every number is measured in the run, whichever way the comparison goes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codetune import render, workflow
from codetune.console import CommandResult, percent
from codetune.errors import InputError
from codetune.project.file import read_project
from codetune.project.sections import PROJECT_FILE
from codetune.records import Score
from codetune.stages import evaluate
from codetune.stages.stage import StageResult, open_context
from codetune.stages.status import RunContext
from codetune.store import row_artefacts

if TYPE_CHECKING:
    from codetune.benchmark.evaluate import Report
    from codetune.demo.demo_project import DemoProject

SELECTED = "tuned on the selection"


@dataclass(frozen=True, slots=True)
class Way:
    """One way from the data to a figure, and how long it took."""

    name: str
    rows: int
    report: Report


def demo(directory: Path, full: bool, seed: int, assignments: Sequence[str]) -> CommandResult:
    """Runs the whole pipeline in `directory`; with `full` also tuned on a random draw of the same size, and on all."""
    from codetune.demo.demo_project import write_demo_project

    _require_own(directory)
    began = time.monotonic()
    world = write_demo_project(directory, seed)
    made_seconds = time.monotonic() - began
    context = open_context(read_project(world.project_file, assignments, {}))
    results, seconds = _timed(workflow.run(context, workflow.stages_between("score", "evaluate")))
    stages = [result for result in results if isinstance(result, StageResult)]
    base, tuned = workflow.reports_in(results)
    chosen = next(result.rows for result in stages if result.stage == "select")
    ways = [Way("base", 0, base), Way(SELECTED, chosen, tuned)]
    if full:
        usable = sum(result.rows for result in stages if result.stage == "embed")
        ways.append(_control(world, assignments, "random", {"select.ratio": min(1.0, (chosen + 0.5) / usable)}))
        ways.append(_control(world, assignments, "all", {}))
    seconds = {"make the world": made_seconds, **seconds, "total": time.monotonic() - began}
    return _shown(context, world, stages, ways, seconds)


def _require_own(directory: Path) -> None:
    """An earlier demo may be run again; a directory with anything else in it is not written to."""
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    marks = (PROJECT_FILE, "benchmark.jsonl", "base")
    if not all((directory / mark).exists() for mark in marks):
        raise InputError(
            f"{directory} is not empty and holds no demo; nothing was written. Name a new directory: codetune demo DIR"
        )


def _control(world: DemoProject, assignments: Sequence[str], strategy: str, flags: Mapping[str, Any]) -> Way:
    settings = {**flags, "name": f"demo-{strategy}", "select.strategy": strategy}
    context = open_context(read_project(world.project_file, assignments, settings))
    results = list(workflow.run(context, workflow.stages_between("select", "train")))
    rows = next(result.rows for result in results if isinstance(result, StageResult) and result.stage == "select")
    (report,) = workflow.evaluate_by_name(context, evaluate.open_bench(context, "demo"), ["tuned"])
    return Way(f"tuned on {'a random draw' if strategy == 'random' else 'all rows'}", rows, report)


def _timed(results: Iterable[StageResult | Report]) -> tuple[list[StageResult | Report], dict[str, float]]:
    """The results and the seconds of each stage, loading included; those of a benchmark are of both models together."""
    gathered: list[StageResult | Report] = []
    seconds: dict[str, float] = {}
    before = time.monotonic()
    for result in results:
        stage = result.stage if isinstance(result, StageResult) else "evaluate"
        seconds[stage] = seconds.get(stage, 0.0) + time.monotonic() - before
        before = time.monotonic()
        gathered.append(result)
    return gathered, seconds


def _dropped(context: RunContext, world: DemoProject) -> tuple[int, int]:
    """Mismatched rows, and other rows, with an IFD of `max_ifd` or more."""
    limit = context.project.select.max_ifd
    dropped = [row.id for row in row_artefacts.read_scores(context.run) if isinstance(row, Score) and row.ifd >= limit]
    mismatched = sum(row_id in world.mismatched for row_id in dropped)
    return mismatched, len(dropped) - mismatched


def _shown(
    context: RunContext, world: DemoProject, stages: list[StageResult], ways: list[Way], seconds: Mapping[str, float]
) -> CommandResult:
    mismatched, others = _dropped(context, world)
    good = len(world.trivial) + len(world.composed)
    compared = workflow.compare(context, [way.report for way in ways[:2]])
    document = {
        "stages": [render.stage_document(result) for result in stages],
        "models": [{"name": way.name, "rows": way.rows, **way.report} for way in ways],
        "comparison": compared,
        "mismatched": {"rows": len(world.mismatched), "dropped": mismatched},
        "good": {"rows": good, "dropped": others},
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }
    table = [
        [
            way.name,
            f"{way.rows:,}" if way.rows else "",
            *(_figure(way.report, suite) for suite in ("base", "plus")),
        ]
        for way in ways
    ]
    notes = [
        f"of {len(world.mismatched)} mismatched rows {mismatched} were dropped by their IFD "
        f"({percent(mismatched / len(world.mismatched))}), of {good:,} good rows {others}",
        *(line for entry in compared for line in render.comparison_lines(entry)),
        "seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()),
        f"everything lies in {world.directory}; try: cd {world.directory} && codetune status",
    ]
    tasks = f"{world.tasks} held-out tasks"
    return CommandResult(
        document, f"demo: {tasks}, pass@1 (95 % interval)", ("model", "rows", "base", "plus"), table, notes
    )


def _figure(report: Report, suite: str) -> str:
    low, high = report["interval_95"][suite]["pass@1"]
    return f"{percent(report['pass_at_k'][suite]['pass@1'])} ({100 * low:.0f} to {100 * high:.0f})"
