"""sweep: a run for each combination of settings and each seed, below one directory, and beside them the controls that a
claim needs: a random draw of as many rows, and all rows. Their outcomes become one table with intervals and paired
comparisons.

Every run is an ordinary one, so it continues where it was killed, is not done again, and takes over the scores,
embeddings and completions that another run below the directory, or the project's own run, has sealed of the same."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from codetune import workflow
from codetune.project.file import read_project
from codetune.project.sections import Project
from codetune.stages.benchmarks import distinct_benchmarks, open_benchmark
from codetune.stages.embed import EMBED
from codetune.stages.likelihood import measure_holdout
from codetune.stages.pipeline import stages_between
from codetune.stages.runner import open_context
from codetune.stages.score import SCORE
from codetune.stages.select import SELECT
from codetune.stages.stage import RunContext, Settings, Stage, StageRequest
from codetune.stages.train import TRAIN
from codetune.store.files import write_text
from codetune.store.manifest import read_manifest
from codetune.store.run_directory import Run

if TYPE_CHECKING:
    from codetune.benchmark.evaluate import Report
    from codetune.benchmark.seeds import SeedEstimate

HELD_OUT_LOSS = "held-out loss"  # the name of an outcome
STRATEGY, RATIO, COUNT = "select.strategy", "select.ratio", "select.count"
# What a random draw and all rows do not read: variants that differ in these alone have the same controls.
UNREAD_BY_CONTROLS = (
    STRATEGY,
    RATIO,
    COUNT,
    "select.ratio_of",
    "select.clusters",
    "select.token_share",
    "select.max_ifd",
    "select.mismatch",
    "select.mismatch_level",
    "embed.model",
    "embed.batch_size",
)


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is asked for: the project, the values of each key that varies, and the number of seeds."""

    file: Path
    assignments: Sequence[str]
    varied: Mapping[str, Sequence[object]]
    seeds: int
    has_controls: bool = True
    has_benchmarks: bool = True
    uncounted: Collection[str] = ()  # held-out rows that no outcome counts, such as those known to be wrong

    @property
    def project(self) -> Project:
        return read_project(self.file, self.assignments, {})

    @property
    def directory(self) -> Path:
        return Run(self.project.run_dir).sweep

    def variants(self) -> list[Settings]:
        return [dict(zip(self.varied, values, strict=True)) for values in product(*self.varied.values())]


@dataclass(frozen=True, slots=True)
class Trained:
    """One run: its directory, its rows, what it cost, and its outcomes."""

    directory: Path
    rows: int
    tokens: int
    training_seconds: float
    selecting_seconds: float
    passed: Mapping[str, Mapping[str, float]]  # benchmark and suite -> task -> share of samples that pass
    losses: Mapping[str, tuple[float, int]]  # held-out row -> nats and tokens


@dataclass(frozen=True, slots=True)
class VariantOutcome:
    """A variant or a control over its seeds. `against` is by control, then by outcome."""

    name: str
    settings: Settings
    seeds: int
    runs: Sequence[str]  # their directories
    rows: float  # the mean over seeds, as all that follow
    tokens: float
    training_seconds: float
    total_seconds: float
    figures: Mapping[str, SeedEstimate]
    against: Mapping[str, Mapping[str, SeedEstimate]]


def require_possible(sweep: Sweep) -> None:
    """Raises ProjectError for the first variant whose settings are wrong, before any of them is run."""
    for settings in sweep.variants():
        read_project(sweep.file, sweep.assignments, settings)


def run_sweep(sweep: Sweep) -> Iterator[str]:
    """Does every run; yields its name when it is done."""
    for settings, offset in product(sweep.variants(), range(sweep.seeds)):
        yield _run(sweep, settings, offset)
        for control in _controls(sweep, settings, offset).values():
            yield _run(sweep, control, offset)


def sweep_outcomes(sweep: Sweep) -> list[VariantOutcome]:
    """The outcomes of a finished sweep, each variant, then each control once; written to `sweep.json` as well."""
    found: dict[str, VariantOutcome] = {}
    for settings in sweep.variants():
        own = [_trained(sweep, settings, offset) for offset in range(sweep.seeds)]
        by_seed = [_controls(sweep, settings, offset) for offset in range(sweep.seeds)]
        against = {}
        for name in by_seed[0]:
            theirs = [_trained(sweep, controls[name], offset) for offset, controls in enumerate(by_seed)]
            against[name] = _differences(own, theirs)
            control = name if name == "all" else f"random as {_name(settings)}"
            found.setdefault(f"~{control}", _outcome(control, by_seed[0][name], theirs, {}))
        found[_name(settings)] = _outcome(_name(settings), settings, own, against)
    outcomes = [found[name] for name in sorted(found, key=lambda name: name.startswith("~"))]
    document = [asdict(outcome) for outcome in outcomes]
    write_text(sweep.directory / "sweep.json", json.dumps({"variants": document}, indent=2) + "\n")
    return outcomes


def _context(sweep: Sweep, settings: Settings, offset: int) -> RunContext:
    seed = sweep.project.seed + offset
    name = f"{_name(settings)}-seed{seed}"
    place = {"name": name, "output_dir": str(sweep.directory / name), "seed": seed}
    return open_context(read_project(sweep.file, sweep.assignments, {**settings, **place}))


def _name(settings: Settings) -> str:
    """The name of a variant, by its values."""
    said = {key: value for key, value in settings.items() if value is not None}
    parts = (
        str(value) if key in (STRATEGY, RATIO) else f"{key.rpartition('.')[2]}_{value}" for key, value in said.items()
    )
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(parts)) or "project"


def _controls(sweep: Sweep, settings: Settings, offset: int) -> dict[str, Settings]:
    """The controls of a variant's run that is done: as many random rows, and all rows."""
    context = _context(sweep, settings, offset)
    strategy = context.project.select.strategy
    if not sweep.has_controls or strategy == "all":
        return {}
    others = {key: value for key, value in settings.items() if key not in UNREAD_BY_CONTROLS}
    everything: Settings = {STRATEGY: "all", **others, COUNT: None}
    if strategy == "random":
        return {"all": everything}
    selection = read_manifest(context.run.selection)
    assert selection is not None
    return {"random": {STRATEGY: "random", **others, COUNT: selection.rows}, "all": everything}


def _run(sweep: Sweep, settings: Settings, offset: int) -> str:
    context = _context(sweep, settings, offset)
    for _ in workflow.run(context, stages_between("score", "train")):
        pass
    _evaluate(sweep, context)
    return context.project.name


def _evaluate(sweep: Sweep, context: RunContext) -> tuple[list[Report], Mapping[str, tuple[float, int]]]:
    """The reports on the benchmarks, and the losses on held-out rows; what is done is read."""
    names = distinct_benchmarks(context) if sweep.has_benchmarks else ()
    reports = [workflow.evaluate_models(context, open_benchmark(context, name), ["tuned"])[0] for name in names]
    if not context.project.train.holdout:
        return reports, {}
    (report,), _ = measure_holdout(context, ["tuned"])
    losses = report["losses"].items()
    return reports, {row: (nats, tokens) for row, (nats, tokens) in losses if row not in sweep.uncounted}


def _trained(sweep: Sweep, settings: Settings, offset: int) -> Trained:
    context = _context(sweep, settings, offset)
    reports, losses = _evaluate(sweep, context)
    passed = {
        f"{report['benchmark']} {suite}": {
            task: sum(each[suite] == "pass" for each in verdicts) / len(verdicts)
            for task, verdicts in report["verdicts"].items()
        }
        for report in reports
        for suite in ("base", "plus")
    }
    training = read_manifest(context.run.model)
    assert training is not None
    needed = [stage for stage in (SCORE, EMBED, SELECT) if stage.is_needed(context.project)]
    selecting = sum(_seconds(context, stage) for stage in needed)
    return Trained(
        context.run.directory,
        training.rows,
        training.facts["tokens"],
        _seconds(context, TRAIN),
        selecting,
        passed,
        losses,
    )


def _seconds(context: RunContext, stage: Stage) -> float:
    manifest = read_manifest(stage.artefact(context.run, StageRequest()))
    return manifest.seconds if manifest else 0.0


def _outcome(
    name: str, settings: Settings, runs: Sequence[Trained], against: Mapping[str, Mapping[str, SeedEstimate]]
) -> VariantOutcome:
    count = len(runs)
    training = sum(run.training_seconds for run in runs) / count
    selecting = sum(run.selecting_seconds for run in runs) / count
    rows, tokens = sum(run.rows for run in runs) / count, sum(run.tokens for run in runs) / count
    figures = _figures([run.passed for run in runs], [run.losses for run in runs], are_differences=False)
    places = [str(run.directory) for run in runs]
    return VariantOutcome(name, settings, count, places, rows, tokens, training, training + selecting, figures, against)


def _figures(
    passed: Sequence[Mapping[str, Mapping[str, float]]],
    losses: Sequence[Mapping[str, tuple[float, int]]],
    are_differences: bool,
) -> dict[str, SeedEstimate]:
    """The estimate of each outcome from those of each seed."""
    import numpy as np

    from codetune.benchmark.seeds import crossed_difference, crossed_share, nested

    crossed = crossed_difference if are_differences else crossed_share
    figures = {
        outcome: crossed(np.array([[seed[outcome][task] for task in passed[0][outcome]] for seed in passed]))
        for outcome in passed[0]
    }
    if losses[0]:
        rows = [list(seed.values()) for seed in losses]
        figures[HELD_OUT_LOSS] = nested([([nats for nats, _ in seed], [tokens for _, tokens in seed]) for seed in rows])
    return figures


def _differences(own: Sequence[Trained], theirs: Sequence[Trained]) -> dict[str, SeedEstimate]:
    """Of a variant less a control, seed by seed, on the same tasks and rows."""
    passed = [
        {
            outcome: {task: share - two.passed[outcome][task] for task, share in tasks.items()}
            for outcome, tasks in one.passed.items()
        }
        for one, two in zip(own, theirs, strict=True)
    ]
    losses = [
        {row: (nats - two.losses[row][0], tokens) for row, (nats, tokens) in one.losses.items()}
        for one, two in zip(own, theirs, strict=True)
    ]
    return _figures(passed, losses, are_differences=True)
