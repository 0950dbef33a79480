"""Results as a user sees them: each becomes its `--json` document and a short table. Computes and reads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from codetune.console import CommandResult, counts, percent, quantity
from codetune.run_status import StatusLine
from codetune.stages.evaluate import EVALUATE
from codetune.stages.pipeline import stage_named
from codetune.stages.stage import StageResult
from codetune.sweep.outcomes import HELD_OUT_LOSS, VariantOutcome, document_of
from codetune.text import setting_text

if TYPE_CHECKING:
    from codetune.benchmark.evaluate import ModelComparison, PairedTest, Report
    from codetune.benchmark.likelihood import LikelihoodComparison, LikelihoodReport
    from codetune.benchmark.seeds import SeedEstimate
    from codetune.stages.explanation import Explanation

SHOWN_TASKS = 5  # by name, of those that two models differ on
SHOWN_PAIRS = 3
SHOWN_CHARACTERS = 100  # of an instruction
FIGURES = "pass@k (95 % interval)"
OPTIONAL_FIGURES = ("tasks", "benchmark")  # columns whose content stands in the caption as well
LOSSES = {
    "truncated": "{:,} cut at generate.max_new_tokens",
    "refused": "{:,} not generated (the model cannot take their prompts)",
    "not_parsing": "{:,} not valid Python",
    "given_up": "{:,} given up by sanitize",
}


def stage_document(result: StageResult) -> dict[str, object]:
    """The `--json` document of a stage."""
    return {
        "stage": result.stage,
        "state": result.state,
        "rows": result.rows,
        "reused": result.reused,
        "refused": dict(result.refused),
        "artefact": str(result.artefact),
        "seconds": result.seconds,
        "overrides": dict(result.overrides),
        **{name: result.facts[name] for name in stage_named(result.stage).documented if name in result.facts},
        **({"taken_from": result.taken_from} if result.taken_from else {}),
    }


def stage(result: StageResult) -> CommandResult:
    rows = quantity(result.rows, "row")
    title = f"{result.stage}: {result.state}, {rows} in {result.artefact}"
    if result.state == "partial":
        title = f"{result.stage}: partial, {rows} so far; the last shard to finish writes {result.artefact}"
    elif _is_up_to_date(result):
        title = f"{result.stage}: already up to date ({rows}), {result.artefact}"
    reused = f", {quantity(result.reused, 'row')} reused" if 0 < result.reused < result.rows else ""
    notes = [f"{result.seconds:.1f} s{reused}"]
    if result.refused:
        notes.append(f"{stage_named(result.stage).refused_word}: {counts(result.refused)}")
    if result.overrides:
        notes.append(
            "by flag: " + ", ".join(f"{key}={setting_text(value, str)}" for key, value in result.overrides.items())
        )
    if result.facts.get("replaced"):
        notes.append(f"replaced the previous one: {result.facts['replaced']}")
    if result.taken_from:
        notes.append(f"taken over from {result.taken_from}, which made it from the same inputs and settings")
    details = stage_named(result.stage).details(result)
    notes += [*details.notes, *(f"warning: {line}" for line in details.warnings if line not in details.notes)]
    return CommandResult(title, details.columns, details.rows, notes, details.optional, document=stage_document(result))


def pushed(result: StageResult, address: str) -> CommandResult:
    """A training whose model lies on the Hub at `address` now."""
    shown = stage(result)
    return replace(
        shown, document={**stage_document(result), "pushed_to": address}, notes=[*shown.notes, f"pushed to {address}"]
    )


def explanation(found: Explanation) -> CommandResult:
    """Why a row was taken or not."""
    row = found.row
    name, where = row["id"] or row["at"], f"cluster {row['cluster']}" if "cluster" in row else "all rows"
    notes = [found.text[:SHOWN_CHARACTERS]] if found.text else []
    figures = {"IFD": row.get("ifd"), "pmi": row.get("pmi")}
    notes += [f"{title} {figure:.4f}" for title, figure in figures.items() if figure is not None]
    if found.jaccard is not None:
        notes.append(f"Jaccard index of the two: {found.jaccard:.4f}")
    notes.append(f"{where}: {found.eligible:,} eligible, {found.taken:,} taken")
    if (measure := found.measure) and found.value is not None:
        value = "" if measure.column in row else f" than {measure.format(found.value)}"
        notes.append(f"{found.harder:,} of the eligible have a higher {measure.title}{value}")
    if measure and found.lowest_taken is not None:
        notes.append(f"lowest {measure.title} taken: {measure.format(found.lowest_taken)}")
    document = {
        **row,
        "taken": found.is_taken,
        "eligible_in_cluster": found.eligible,
        "taken_in_cluster": found.taken,
        "ranked_by": measure.column if measure else None,
        "value": found.value,
        "harder_in_cluster": found.harder,
        "lowest_taken": found.lowest_taken,
        "jaccard": found.jaccard,
    }
    return CommandResult(f"{name}: {row['why']}", notes=notes, document=document)


def one_evaluation(report: Report) -> CommandResult:
    """The report of `evaluate`, which judges one model or file."""
    return replace(evaluation([report], []), document=report)


def evaluation(reports: Sequence[Report], compared: Sequence[ModelComparison]) -> CommandResult:
    """The reports of `eval`, of one model or of several, as a list with the comparison beside it."""
    return CommandResult(
        FIGURES,
        *_figures(reports),
        [_caption(reports), *_labels(reports), *_losses(reports), *_compared_lines(compared)],
        OPTIONAL_FIGURES,
        document={"models": list(reports), "comparison": list(compared)},
    )


def one_likelihood(reports: Sequence[LikelihoodReport], compared: Sequence[LikelihoodComparison]) -> CommandResult:
    """The report of `evaluate holdout`, which measures one model."""
    return replace(likelihoods(reports, compared), document=reports[0])


def likelihoods(reports: Sequence[LikelihoodReport], compared: Sequence[LikelihoodComparison]) -> CommandResult:
    """The losses of models on the held-out rows, with the comparison of every two."""
    rows = [[report["model"], f"{report['rows']:,}", f"{report['tokens']:,}", _nats(report)] for report in reports]
    refused = [
        f"{report['model']}: rows without a loss: {counts(report['refused'])}"
        for report in reports
        if report["refused"]
    ]
    columns = ("model", "rows", "tokens", "nats a token")
    notes = [*map(_compared_likelihoods, compared), *_not_compared(reports, compared), *refused]
    title = "loss on held-out rows (95 % interval)"
    return CommandResult(title, columns, rows, notes, document=_likelihood_document(reports, compared))


def _not_compared(reports: Sequence[LikelihoodReport], compared: Sequence[LikelihoodComparison]) -> Sequence[str]:
    """A line for each pair of models whose tokenizers do not cut the rows alike."""
    known = [tuple(pair["models"]) for pair in compared]
    pairs = combinations([report["model"] for report in reports], 2)
    return [
        f"{second} against {first}: not compared. They have no row in common, or their tokenizers cut the rows into "
        "different numbers of tokens: then a nat a token is not the same for both"
        for first, second in pairs
        if (first, second) not in known
    ]


def _likelihood_document(
    reports: Sequence[LikelihoodReport], compared: Sequence[LikelihoodComparison]
) -> dict[str, object]:
    return {"models": list(reports), "comparison": list(compared)}


def _likelihood_line(report: LikelihoodReport) -> str:
    return f"held-out loss of {report['model']}: {_nats(report)} nats a token on {quantity(report['rows'], 'row')}"


def _nats(report: LikelihoodReport) -> str:
    low, high = report["interval_95"]
    return f"{report['nats_per_token']:.4f} ({low:.4f} to {high:.4f})"


def _compared_likelihoods(compared: LikelihoodComparison) -> str:
    first, second = compared["models"]
    low, high = compared["interval_95"]
    least = compared["least_difference"]
    find = "so few rows find none" if least is None else f"they find {least:.4f} or more"
    return (
        f"held-out loss, {second} against {first} ({quantity(compared['rows'], 'row')} in common): "
        f"{compared['difference']:+z.4f} nats a token ({low:+z.4f} to {high:+z.4f}; paired bootstrap "
        f"p = {compared['p_value']:.2g}), {'told' if compared['told_apart'] else 'not told'} apart ({find}); "
        "lower is better"
    )


def sweep(outcomes: Sequence[VariantOutcome], path: Path) -> CommandResult:
    """The variants and controls of a sweep over their seeds, and how each variant compares with its controls."""
    figures = list(dict.fromkeys(name for outcome in outcomes for name in outcome.figures))
    columns = ("variant", "seeds", "rows", *figures, "tokens", "training", "in all")
    rows = [
        [
            outcome.name,
            f"{outcome.seeds}",
            _count(outcome.rows),
            *(_estimate(name, found) if (found := outcome.figures.get(name)) else "" for name in figures),
            _count(outcome.tokens),
            _spent(outcome.training_seconds),
            _spent(outcome.total_seconds),
        ]
        for outcome in outcomes
    ]
    notes = [
        f"{outcome.name} against {control}: {'; '.join(_compared_seeds(*pair) for pair in differences.items())}"
        for outcome in outcomes
        for control, differences in outcome.against.items()
        if differences
    ]
    asides = [
        "in all: training, and all that selecting its rows cost, counted whole for every variant that shares it",
        f"everything stands in {path}",
    ]
    document = {"artefact": str(path), **document_of(outcomes)}
    seeds = max(outcome.seeds for outcome in outcomes)
    over = (
        "mean over seeds (95 % interval over tasks and seeds)" if seeds > 1 else "one seed (95 % interval over tasks)"
    )
    optional = ("in all", "training", "tokens", "seeds", "rows")
    return CommandResult(f"sweep: {over}", columns, rows, notes, optional, asides=asides, document=document)


def _compared_seeds(outcome: str, found: SeedEstimate) -> str:
    least = "so few tasks and seeds find none"
    if outcome == HELD_OUT_LOSS or found.least_difference <= 1:
        least = f"they find {_amount(outcome, found.least_difference)} or more"
    return f"{outcome} {_estimate(outcome, found, '+')}, {'' if found.told_apart else 'not '}told apart ({least})"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _spent(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:,.1f} s"


def _estimate(outcome: str, found: SeedEstimate, sign: str = "") -> str:
    """A mean with its interval: nats a token of a loss, else per cent."""
    mean, low, high = (_amount(outcome, value, sign) for value in (found.mean, found.low, found.high))
    return f"{mean} ({low} to {high})"


def _amount(outcome: str, value: float, sign: str = "") -> str:
    return f"{value:{sign}z.4f}" if outcome == HELD_OUT_LOSS else f"{100 * value:{sign}z.1f}"


def pipeline(
    results: Sequence[StageResult],
    reports: Sequence[Report],
    compared: Sequence[ModelComparison],
    likelihoods: Sequence[LikelihoodReport] = (),
    compared_likelihoods: Sequence[LikelihoodComparison] = (),
) -> CommandResult:
    """Everything that `run` made; an evaluation is shown by its report."""
    stages = [result for result in results if result.stage != EVALUATE.name]
    document = {
        "stages": [stage_document(result) for result in stages],
        "models": list(reports),
        "comparison": list(compared),
        **({"holdout": _likelihood_document(likelihoods, compared_likelihoods)} if likelihoods else {}),
    }
    times = [f"{_name(result)} {result.seconds:.1f} s" for result in results]
    replaced = [
        f"{result.stage} replaced: {result.facts['replaced']}" for result in stages if "replaced" in result.facts
    ]
    notes = [
        f"time: {', '.join(times)}",
        *_taken(results),
        *replaced,
        *_stage_warnings(stages),
        *_compared_lines(compared),
        *map(_likelihood_line, likelihoods),
        *map(_compared_likelihoods, compared_likelihoods),
    ]
    if not reports:
        states = ["up to date" if _is_up_to_date(result) else result.state for result in stages]
        lines = [
            [result.stage, state, f"{result.rows:,}", counts(result.refused)]
            for result, state in zip(stages, states, strict=True)
        ]
        columns = ("stage", "state", "rows", "refused")
        return CommandResult("run: done", columns, lines, notes, has_prose=True, document=document)
    said = [_caption(reports), *_losses(reports)]
    return CommandResult(FIGURES, *_figures(reports), [*said, *notes], OPTIONAL_FIGURES, document=document)


def _stage_warnings(results: Sequence[StageResult]) -> list[str]:
    """What the stages warn of in their results."""
    return [
        f"warning: {result.stage}: {line}"
        for result in results
        for line in stage_named(result.stage).details(result).warnings
    ]


def _is_up_to_date(result: StageResult) -> bool:
    return result.state == "done" and result.reused == result.rows


def _name(result: StageResult) -> str:
    """A stage; one of a benchmark with the benchmark and the model, which are the name of its artefact."""
    if not stage_named(result.stage).of_benchmark:
        return result.stage
    return f"{result.stage} {result.artefact.parent.name} {result.artefact.stem}"


def _taken(results: Sequence[StageResult]) -> list[str]:
    """A line for each run that stages were taken over from."""
    found: dict[str, list[str]] = {}
    for result in results:
        if result.taken_from:
            found.setdefault(result.taken_from, []).append(result.stage)
    return [f"taken over from {directory}: {', '.join(dict.fromkeys(stages))}" for directory, stages in found.items()]


def status(lines: Sequence[StatusLine]) -> CommandResult:
    following = next((line for line in lines if line.state not in ("done", "not needed")), None)
    document = {
        "stages": [{"stage": line.stage, "state": line.state, "detail": line.detail} for line in lines],
        "next": following.command if following else None,
    }
    rows = [[line.stage, line.state, line.detail] for line in lines]
    note = "everything is done"
    if following:  # a second process on the same artefact is refused
        note = "next, when this has ended: codetune status" if following.is_running else f"next: {following.command}"
    return CommandResult("status", ("stage", "state", ""), rows, [note], has_prose=True, document=document)


def _figures(reports: Sequence[Report]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    names = list(reports[0]["pass_at_k"]["base"])
    columns = ["benchmark", "model", "tasks", *(f"{suite} {k}" for k in names for suite in ("base", "plus"))]
    rows = [
        [
            report["benchmark"],
            report["model"],
            f"{report['tasks']} of {report['tasks_in_benchmark']}",
            *(_figure(report, suite, k) for k in names for suite in ("base", "plus")),
        ]
        for report in reports
    ]
    return columns, rows


def _figure(report: Report, suite: str, k: str) -> str:
    low, high = report["interval_95"][suite][k]
    return f"{percent(report['pass_at_k'][suite][k])} ({100 * low:.1f} to {100 * high:.1f})"


def _caption(reports: Sequence[Report]) -> str:
    tasks = dict.fromkeys((report["benchmark"], report["tasks"]) for report in reports)
    worth = ", ".join(f"of {name} ({count}) {100 / count:.2f}" for name, count in tasks)
    return f"points that one task is worth: {worth}; sandbox: {reports[0]['sandbox']}"


def _labels(reports: Sequence[Report]) -> list[str]:
    """The path behind each label that is made of a name and a digest."""
    return list(dict.fromkeys(f"{report['model']}: {report['path']}" for report in reports if "path" in report))


def _losses(reports: Sequence[Report]) -> list[str]:
    """Samples lost before they are judged: answers that were cut, programs that do not parse."""
    lines = []
    for report in reports:
        found = report.get("completions", {})
        losses = [text.format(found[name]) for name, text in LOSSES.items() if found.get(name)]
        name = f"{report['benchmark']} {report['model']}"
        completions = quantity(report["samples"], "completion")
        lines += [f"{name}, {completions}: {', '.join(losses)}"] if losses else []
    return lines


def comparison_lines(compared: ModelComparison) -> list[str]:
    """A line for each suite: how far the second model is from the first, and which tasks make the difference."""
    first, second = compared["models"]
    return [
        f"{compared['benchmark']}, {suite} tests, {second} against {first} ({compared['tasks']} tasks in common): "
        + _difference(compared["base" if suite == "base" else "plus"])
        for suite in ("base", "plus")
    ]


def _difference(found: PairedTest) -> str:
    low, high = found["interval_95"]
    return (
        f"{100 * found['difference']:+z.1f} points ({100 * low:+z.1f} to {100 * high:+z.1f}; {found['test']} "
        f"p = {found['p_value']:.2g}), {_verdict(found)}; won {_named(found['won'])}; lost {_named(found['lost'])}"
    )


def _verdict(found: PairedTest) -> str:
    """Whether the difference is one that these tasks can find."""
    verdict, least = "told apart" if found["told_apart"] else "not told apart", found["least_difference"]
    return f"{verdict} (so few tasks find none)" if least > 1 else f"{verdict} (they find {100 * least:.1f} or more)"


def _named(tasks: Sequence[str]) -> str:
    """The number of tasks, and the first of them.

    >>> _named(["HumanEval/3", "HumanEval/10"])
    '2 (HumanEval/3, HumanEval/10)'
    """
    more = f" and {len(tasks) - SHOWN_TASKS} more" if len(tasks) > SHOWN_TASKS else ""
    return f"{len(tasks)}" + (f" ({', '.join(tasks[:SHOWN_TASKS])}{more})" if tasks else "")


def _compared_lines(compared: Sequence[ModelComparison]) -> list[str]:
    """The comparisons as lines; of many models all against the first of their benchmark. The document has every
    pair."""
    firsts = {entry["benchmark"]: entry["models"][0] for entry in reversed(compared)}
    shown = [entry for entry in compared if entry["models"][0] == firsts[entry["benchmark"]]]
    return [line for entry in (compared if len(compared) <= SHOWN_PAIRS else shown) for line in comparison_lines(entry)]
