"""The finished artefacts of a run -> the document of its page, as JSON: nothing is measured here, and what is missing
stands there as a sentence that says how to make it.

The rows of the selection are in `page_rows.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codetune import __version__, workflow
from codetune.benchmark.benchmarks import HOLDOUT
from codetune.benchmark.evalplus_format import read_samples
from codetune.benchmark.likelihood import LikelihoodReport, compare_likelihoods
from codetune.errors import StaleError
from codetune.records import Completion
from codetune.report.page_rows import cut, page_rows
from codetune.report.page_sweep import page_sweep
from codetune.run_status import run_status
from codetune.selection.cost import documented_cost
from codetune.selection.diagnostics import MapDocument
from codetune.selection.row_vectors import spread_sample
from codetune.selection.strategies import STRATEGIES
from codetune.stages.dataset import left_out_notes
from codetune.stages.evaluate import read_report
from codetune.stages.likelihood import read_likelihood
from codetune.stages.stage import RunContext
from codetune.store.manifest import Manifest, read_manifest, set_aside_command
from codetune.store.run_directory import METRICS, Run

if TYPE_CHECKING:
    from codetune.benchmark.evaluate import ModelComparison, Report

METRIC_LINES = 2_000  # that the curves have at most
PROGRAM_TASKS = 300  # of a benchmark whose programs the page has; those that models differ on come first
PROGRAM_CHARACTERS = 4_000

Document = dict[str, Any]


def page_document(context: RunContext) -> Document:
    """Everything on the page. A part that cannot be shown is `{"missing": SENTENCE}`. Raises StaleError for a damaged
    artefact."""
    training = _training(context.run)
    return {
        "project": {"name": context.project.name, "version": __version__},
        "status": [asdict(line) for line in run_status(context)],
        "selection": _selection(context, _epochs(training) or context.project.train.epochs),
        "training": training,
        "benchmarks": _benchmarks(context),
        "likelihood": _likelihood(context),
        "sweep": _sweep(context.run),
        "provenance": _provenance(context),
    }


def _selection(context: RunContext, epochs: float) -> Document:
    run, manifest = context.run, _unchanged(context, context.run.selection)
    if manifest is None:
        return _missing("There is no finished selection", "codetune select")
    if not run.selection_report.exists() or not run.excluded.exists():
        again = f"{set_aside_command(run.selection)} && codetune select"
        return _missing("The diagnostics of this selection are not here", again)
    report = _parse(run.selection_report.read_bytes(), run.selection_report)
    drawn: MapDocument | None = report.pop("map", None)
    seed, cost = manifest.settings.get("seed"), report.get("cost")
    return {
        "report": report,
        "saved": cost and {"epochs": epochs, "share": documented_cost(cost).saved_share(epochs)},
        "rule": STRATEGIES[report["strategy"]].description,
        "refused": dict(manifest.refused),
        "data_sets": left_out_notes(manifest),
        "rows": _rows(context, drawn, report, seed if isinstance(seed, int) else context.project.seed),
    }


def _rows(context: RunContext, drawn: MapDocument | None, report: Document, seed: int) -> Document:
    run = context.run
    for artefact in (run.examples, run.scores, run.embeddings):
        _unchanged(context, artefact)
    return page_rows(run, drawn, report["rows"], report["taken"], seed)


def _training(run: Run) -> Document:
    path = run.train / METRICS
    if not path.exists():
        return _missing("There is no training", "codetune train")
    lines = list(_metric_lines(path))
    kept = spread_sample(len(lines), METRIC_LINES).tolist()
    manifest = read_manifest(run.model)
    facts = {} if manifest is None else {name: value for name, value in manifest.facts.items() if _is_plain(value)}
    return {
        "lines": [lines[index] for index in kept],
        "of_lines": len(lines),
        "is_finished": manifest is not None,
        "facts": facts,
    }


def _epochs(training: Document) -> float | None:
    """Those of a finished training: `train.max_steps` or `train.patience` may have ended it early."""
    lines = training.get("lines")
    return lines[-1].get("epoch") if lines and training["is_finished"] else None


def _metric_lines(path: Path) -> Iterator[Document]:
    """The whole lines: a training that runs, or was killed, may leave an incomplete one."""
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield _parse(line, path)


def _benchmarks(context: RunContext) -> Document:
    found = [part for directory in _directories(context.run) if (part := _benchmark(context, directory))]
    return {"found": found} if found else _missing("No model is evaluated", "codetune run")


def _benchmark(context: RunContext, directory: Path) -> Document | None:
    paths = _sealed(context, directory)
    if not paths:
        return None
    reports = [read_report(path) for path in paths]
    compared = [pair for other in reports[1:] for pair in workflow.compare(context, [reports[0], other])]
    tasks = _tasks_with_programs(reports, compared)
    solutions = {path.stem: context.run.solutions(directory.name, path.stem) for path in paths}
    return {
        "name": directory.name,
        "reports": reports,
        "comparisons": compared,
        "tasks": tasks,
        "programs": {label: _programs(path, tasks) for label, path in solutions.items() if _unchanged(context, path)},
    }


def _tasks_with_programs(reports: Sequence[Report], compared: Sequence[ModelComparison]) -> list[str]:
    """Those that a model wins or loses first, then the others in the benchmark's order."""
    differing = [task for pair in compared for kind in ("won", "lost") for task in pair["plus"][kind]]
    every = [task for report in reports for task in report["verdicts"]]
    return list(dict.fromkeys([*differing, *every]))[:PROGRAM_TASKS]


def _programs(path: Path, tasks: Sequence[str]) -> Document:
    """The first program of each task."""
    wanted, found = set(tasks), {}
    for sample in read_samples(path):
        if sample.task_id in wanted and sample.task_id not in found:
            text = sample.completion if isinstance(sample, Completion) else sample.solution
            found[sample.task_id] = cut(text, PROGRAM_CHARACTERS)
    return found


def _likelihood(context: RunContext) -> Document:
    paths = _sealed(context, context.run.evaluations / HOLDOUT)
    if not paths:
        apart = "codetune run --set name=NEW --set train.holdout=0.1"  # this run has held out no rows
        command = "codetune eval holdout" if context.project.train.holdout else apart
        return _missing("The loss on held-out rows is not measured", command)
    reports = [read_likelihood(path) for path in paths]
    pairs = [pair for other in reports[1:] for pair in compare_likelihoods([reports[0], other], context.project.seed)]
    return {"reports": [_without_losses(report) for report in reports], "comparisons": pairs}


def _without_losses(report: LikelihoodReport) -> Document:
    return {name: value for name, value in report.items() if name != "losses"}


def _directories(run: Run) -> list[Path]:
    """A directory for each benchmark that was evaluated."""
    return sorted(path for path in run.evaluations.glob("*") if path.is_dir() and path.name != HOLDOUT)


def _sealed(context: RunContext, directory: Path) -> list[Path]:
    """The evaluations that are finished: base and tuned first."""
    ranks = {label: rank for rank, label in enumerate(workflow.COMPARED)}
    found = [path for path in directory.glob("*.json") if _unchanged(context, path) is not None]
    return sorted(found, key=lambda path: (ranks.get(path.stem, len(ranks)), path.stem))


def _sweep(run: Run) -> Document | None:
    """None where none is finished: most projects have none."""
    path = run.sweep_table
    if not path.exists():
        return None
    try:
        table = _parse(path.read_bytes(), path, "codetune sweep")
        return page_sweep([*table.get("base", ()), *table["variants"]])
    except (LookupError, TypeError, AttributeError) as why:
        raise _damaged(path, why, f"mv {path} {path}.old", "codetune sweep") from None


def _provenance(context: RunContext) -> Document:
    run = context.run
    settings = _parse(run.project.read_bytes(), run.project)
    artefacts = [run.examples, run.scores, run.embeddings, run.selection, run.model, *sorted(_of_benchmarks(run))]
    found = [(path, manifest) for path in artefacts if (manifest := read_manifest(path)) is not None]
    return {
        "manifests": [_manifest_document(path.relative_to(run.directory).as_posix(), each) for path, each in found],
        "settings": settings["settings"],
        "overrides": settings.get("overrides", {}),
    }


def _of_benchmarks(run: Run) -> Iterator[Path]:
    for kind in ("completions", "solutions", "evaluation"):
        yield from (run.directory / kind).glob("*/*.json*")


def _manifest_document(name: str, manifest: Manifest) -> Document:
    """Without the diagnostics, which stand elsewhere on the page, and the settings, which are the project's."""
    return {key: value for key, value in asdict(manifest).items() if key not in ("facts", "settings")} | {"name": name}


def _missing(what: str, command: str) -> Document:
    return {"missing": f"{what}, so this part is left out. Run: {command}"}


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _unchanged(context: RunContext, artefact: Path) -> Manifest | None:
    """The manifest of an artefact that is about to be read; None where it is not finished. Raises StaleError where its
    content is not what the manifest says."""
    manifest = read_manifest(artefact)
    if manifest is not None and context.digests.artefact(artefact) != manifest.digest:
        raise StaleError(
            f"{artefact} was changed after codetune wrote it. Expected: the content of its manifest. Make it again: "
            f"{set_aside_command(artefact)} && codetune run"
        )
    return manifest


def _parse(text: str | bytes, path: Path, maker: str = "codetune run") -> Document:
    """Raises StaleError where a file of the run is damaged. Numbers that are not finite become None."""
    try:
        found: Document = json.loads(text, parse_constant=lambda name: None)
    except ValueError as why:
        raise _damaged(path, why, f"mv {path} {path}.old", maker) from None
    return found


def _damaged(path: Path, why: Exception, command: str, maker: str) -> StaleError:
    return StaleError(
        f"{path} is damaged ({why}). Expected: JSON, as codetune wrote it. Make it again: {command} && {maker}"
    )
