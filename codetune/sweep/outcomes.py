"""The finished runs of a sweep -> the outcomes of each variant and control over its seeds, with intervals, and of each
variant the paired comparisons with its controls and with `base`. All of it stands in `sweep.json`. The formulas are in
`benchmark/seeds.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from codetune.records import BASE, TUNED
from codetune.stages.embed import EMBED
from codetune.stages.runner import open_context
from codetune.stages.score import SCORE
from codetune.stages.select import SELECT
from codetune.stages.stage import RunContext, Stage, StageRequest
from codetune.store.files import write_text
from codetune.store.manifest import read_manifest
from codetune.sweep.perform import base_runs, control_runs, evaluate
from codetune.sweep.variants import RANDOM, Assigned, Sweep, SweepRun, Variant

if TYPE_CHECKING:
    from codetune.benchmark.seeds import SeedEstimate

HELD_OUT_LOSS = "held-out loss"  # the name of an outcome
RANDOM_AS = "random as "  # before the name of a variant: its control of as many random rows


@dataclass(frozen=True, slots=True)
class Trained:
    """One run: its directory, its rows, what it cost, and its outcomes. Of `base` there are outcomes alone."""

    directory: Path
    passed: Mapping[str, Mapping[str, float]]  # benchmark and suite -> task -> share of samples that pass
    losses: Mapping[str, tuple[float, int]]  # held-out row -> nats and tokens
    rows: int | None = None
    tokens: int | None = None
    training_seconds: float | None = None
    selecting_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class VariantOutcome:
    """A variant, a control or `base`, over its seeds. `against` is by control, then by outcome. What `base` did not
    cost is None."""

    name: str
    settings: Assigned
    seeds: int
    runs: Sequence[str]  # their directories
    rows: float | None  # the mean over seeds, as all that follow
    tokens: float | None
    training_seconds: float | None
    total_seconds: float | None  # with all that selecting cost, shared with other runs or not
    figures: Mapping[str, SeedEstimate]
    against: Mapping[str, Mapping[str, SeedEstimate]]


def sweep_outcomes(sweep: Sweep) -> list[VariantOutcome]:
    """The outcomes of a finished sweep: `base`, each variant, then each control once; written to `sweep.json` as
    well."""
    draw_seed = sweep.project.seed  # of the bootstraps, where there is one seed: as `codetune eval` draws in that run
    of_base = {key: _outcomes_of(sweep, run, BASE) for key, run in base_runs(sweep).items()}
    bases, found, controls = dict[str, VariantOutcome](), dict[str, VariantOutcome](), dict[str, VariantOutcome]()
    for variant in sweep.variants:
        own = [_outcomes_of(sweep, sweep.run_of(variant, offset)) for offset in range(sweep.seeds)]
        base = [of_base[variant.base, offset] for offset in range(sweep.seeds)]
        bases.setdefault(variant.base, _outcome(variant.base, {}, base, {}, draw_seed))
        against = {BASE: _differences(own, base, draw_seed)}
        for name, theirs in _by_control(sweep, variant).items():
            control = variant.controls[name]
            against[name] = _differences(own, theirs, draw_seed)
            title = f"{RANDOM_AS}{variant.name}" if name == RANDOM else control.name
            controls.setdefault(title, _outcome(title, control.settings, theirs, {}, draw_seed))
        found[variant.name] = _outcome(variant.name, variant.settings, own, against, draw_seed)
    outcomes = [*bases.values(), *found.values(), *(controls[name] for name in controls if name not in found)]
    write_text(sweep.table, json.dumps(document_of(outcomes), indent=2) + "\n")
    return outcomes


def document_of(outcomes: Sequence[VariantOutcome]) -> dict[str, object]:
    """The document of `sweep.json` and of `--json`: `base` stands beside the variants and controls."""
    return {
        "base": [asdict(outcome) for outcome in outcomes if outcome.rows is None],
        "variants": [asdict(outcome) for outcome in outcomes if outcome.rows is not None],
    }


def _by_control(sweep: Sweep, variant: Variant) -> dict[str, list[Trained]]:
    """The control runs of a variant, by control, in the order of the seeds."""
    by_seed = [control_runs(sweep, variant, offset) for offset in range(sweep.seeds)]
    return {name: [_outcomes_of(sweep, controls[name]) for controls in by_seed] for name in variant.controls}


def _outcomes_of(sweep: Sweep, run: SweepRun, model: str = TUNED) -> Trained:
    context = open_context(run.project)
    reports, every = evaluate(context, model, sweep.has_benchmarks)
    losses = {row: loss for row, loss in every.items() if row not in sweep.uncounted}
    passed = {
        f"{report['benchmark']} {suite}": {
            task: sum(each[suite] == "pass" for each in verdicts) / len(verdicts)
            for task, verdicts in report["verdicts"].items()
        }
        for report in reports
        for suite in ("base", "plus")
    }
    if model != TUNED:
        return Trained(context.run.directory, passed, losses)
    training = read_manifest(context.run.model)
    assert training is not None
    needed = [stage for stage in (SCORE, EMBED, SELECT) if stage.is_needed(context.project)]
    selecting = sum(_seconds(context, stage) for stage in needed)
    seconds = training.facts["seconds"]
    return Trained(context.run.directory, passed, losses, training.rows, training.facts["tokens"], seconds, selecting)


def _seconds(context: RunContext, stage: Stage) -> float:
    manifest = read_manifest(stage.artefact(context.run, StageRequest()))
    return manifest.seconds if manifest else 0.0


def _outcome(
    name: str,
    settings: Assigned,
    runs: Sequence[Trained],
    against: Mapping[str, Mapping[str, SeedEstimate]],
    draw_seed: int,
) -> VariantOutcome:
    training = _mean([run.training_seconds for run in runs])
    selecting = _mean([run.selecting_seconds for run in runs])
    total = None if training is None or selecting is None else training + selecting
    rows, tokens = _mean([run.rows for run in runs]), _mean([run.tokens for run in runs])
    figures = _figures([run.passed for run in runs], [run.losses for run in runs], draw_seed, are_differences=False)
    places = [str(run.directory) for run in runs]
    return VariantOutcome(name, settings, len(runs), places, rows, tokens, training, total, figures, against)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _figures(
    passed: Sequence[Mapping[str, Mapping[str, float]]],
    losses: Sequence[Mapping[str, tuple[float, int]]],
    draw_seed: int,
    are_differences: bool,
) -> dict[str, SeedEstimate]:
    """The estimate of each outcome from those of each seed."""
    import numpy as np

    from codetune.benchmark.seeds import crossed_difference, crossed_share, nested

    crossed = crossed_difference if are_differences else crossed_share
    figures = {
        outcome: crossed(np.array([[seed[outcome][task] for task in passed[0][outcome]] for seed in passed]), draw_seed)
        for outcome in passed[0]
    }
    if all(losses):
        rows = [list(seed.values()) for seed in losses]
        pairs = [([nats for nats, _ in seed], [tokens for _, tokens in seed]) for seed in rows]
        figures[HELD_OUT_LOSS] = nested(pairs, draw_seed)
    return figures


def _differences(own: Sequence[Trained], theirs: Sequence[Trained], draw_seed: int) -> dict[str, SeedEstimate]:
    """The differences of a variant and a control, seed by seed, on the same tasks and rows. Losses are compared where
    both models cut a row into as many tokens."""
    passed = [
        {
            outcome: {task: share - two.passed[outcome][task] for task, share in tasks.items()}
            for outcome, tasks in one.passed.items()
        }
        for one, two in zip(own, theirs, strict=True)
    ]
    losses = [
        {
            row: (nats - two.losses[row][0], tokens)
            for row, (nats, tokens) in one.losses.items()
            if row in two.losses and two.losses[row][1] == tokens
        }
        for one, two in zip(own, theirs, strict=True)
    ]
    return _figures(passed, losses, draw_seed, are_differences=True)
