"""select: the rows worth training on -> `selection.jsonl`, chat format, in the strategy's order.

What is known of each row is joined in `selection_inputs.py`, what is set aside before is found in `exclusions.py`, and
the figures of what was taken are made in `selection_report.py`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from codetune import console
from codetune.console import counts, percent, quantity
from codetune.data.ids import IdIndex
from codetune.errors import DataError, StaleError
from codetune.project.sections import Project
from codetune.records import DUPLICATE_OF, Refusal, ScoreColumns, SelectedRows
from codetune.selection.mismatch import FEWEST_PAIRS, MismatchTest, find_mismatched
from codetune.selection.select import (
    count_mismatched,
    figures_of,
    most_mismatched,
    require_selected_rows,
    why_not_taken,
    why_taken,
)
from codetune.selection.select import select as select_rows
from codetune.selection.strategies import STRATEGIES, SelectionInputs, needs_scores
from codetune.stages.dataset import (
    READING_FACTS,
    TAKEN_BY_SOURCE,
    dataset_input,
    examples_manifest,
    left_out_notes,
    reading_facts,
    rows_by_source,
)
from codetune.stages.embed import EMBED
from codetune.stages.enough_rows import check_enough_rows
from codetune.stages.exclusions import (
    DECONTAMINATED,
    NOT_AT_HAND,
    Exclusions,
    check_filters,
    exclude_less_likely_answers,
    exclusion_notes,
    find_exclusions,
    named_benchmarks_input,
)
from codetune.stages.holdout import HELD_OUT, check_holdout, count_refused_holdout, find_holdout
from codetune.stages.inputs import artefact_input
from codetune.stages.score import SCORE
from codetune.stages.selection_inputs import join_rows
from codetune.stages.selection_report import (
    DIAGNOSTICS,
    ClusterDocument,
    cluster_documents,
    diagnostics_fact,
    figure_lines,
    make_report,
    sharpness,
)
from codetune.stages.stage import (
    Details,
    Input,
    Recipe,
    RunContext,
    Stage,
    StageOutput,
    StageRequest,
    StageResult,
)
from codetune.store import row_artefacts
from codetune.store.examples import first_of_duplicates, read_ids, read_lines
from codetune.store.manifest import read_manifest

SHOWN_ROWS, SHOWN_CHARACTERS = 3, 80  # of the hardest and of the mismatched rows
MEDIANS = ("median IFD", "median pmi")  # columns of the table of clusters
USUALLY_SET_ASIDE = 0.2  # the share of rows from which on a warning is due


class _ShownRow(TypedDict):
    id: str
    at: str
    ifd: float
    text: str  # how its instruction begins


def _inputs(project: Project, request: StageRequest) -> Sequence[Input]:
    strategy = STRATEGIES[project.select.strategy]
    upstream = [SCORE] * needs_scores(project.select) + [EMBED] * strategy.needs_embeddings
    return dataset_input(), *map(artefact_input, upstream), *named_benchmarks_input(project)


def _check_ahead(context: RunContext, request: StageRequest, paths: Mapping[str, Path]) -> None:
    check_holdout(context, request, paths)
    check_filters(context, request, paths)
    check_enough_rows(context.project, examples_manifest(context).rows, scores_are_here=SCORE.name in paths)


def _write(context: RunContext, recipe: Recipe, request: StageRequest) -> StageOutput:
    settings = context.project.select
    strategy, held = STRATEGIES[settings.strategy], find_holdout(context)
    is_held = IdIndex(held)
    scores = row_artefacts.read_score_columns(context.run) if needs_scores(settings) else None
    scores = scores and scores.only(~is_held.holds(scores.ids))
    is_tested = strategy.needs_scores and settings.mismatch == "calibrated"
    test = _test_mismatch(context, scores) if scores and is_tested else None
    refused = np.empty(0, dtype=np.uint64) if scores is None else scores.ids[np.isnan(scores.ifd)]
    exclusions = find_exclusions(context, np.concatenate([refused, held]))
    inputs = join_rows(context, strategy, scores, test, is_held)
    inputs = replace(inputs, filtered=exclusions.among(inputs.ids))
    if settings.best_answer:
        exclude_less_likely_answers(context, inputs, exclusions)
        inputs = replace(inputs, filtered=exclusions.among(inputs.ids))
    selected = select_rows(inputs, settings, context.project.seed)
    require_selected_rows(selected, settings)
    clusters = cluster_documents(inputs, selected, exclusions)
    report = make_report(context, inputs, selected, clusters, scores, test)
    row_artefacts.write_holdout(context.run, held)
    row_artefacts.write_excluded(context.run, _excluded(context, inputs, exclusions, selected.rows, is_held))
    row_artefacts.write_selection_report(context.run, report)
    row_artefacts.write_selection(context.run, selected.rows, why_taken(inputs, selected, settings))
    row_artefacts.write_dataset_info(context.run)
    facts: dict[str, object] = {"clusters": clusters, DIAGNOSTICS: diagnostics_fact(report)}
    facts |= {**reading_facts(context), **rows_by_source(context, lambda: selected.rows.ids), **exclusions.facts}
    if test:
        facts["mismatch_test"] = test.summary()
    if inputs.ifd is not None:
        facts |= _shown_rows(context, inputs, selected.rows)
    set_aside = _set_aside(context, inputs, is_held) + exclusions.counts()
    _warn_of_many(context, set_aside, sum(cluster.eligible for cluster in selected.diagnostics))
    return StageOutput(len(selected.rows.ids), set_aside, facts)


def _warn_of_many(context: RunContext, set_aside: Counter[str], eligible: int) -> None:
    """Warns where so many rows are set aside that the data set, or the model that scores, may be the wrong one. Rows
    that repeat others, or are held out, say nothing of that."""
    rows = set_aside.total() + eligible
    no_faults = ("duplicate", "duplicate instruction", HELD_OUT)
    faults = Counter({reason: count for reason, count in set_aside.items() if not reason.endswith(no_faults)})
    found = faults.total()
    if found > USUALLY_SET_ASIDE * rows:
        console.warn(
            f"select: {found:,} of {quantity(rows, 'row')} {'is' if found == 1 else 'are'} set aside "
            f"({percent(found / rows)}): {counts(faults)}. Usually it is less than {percent(USUALLY_SET_ASIDE)}. Look "
            f"at some of them: {context.run.excluded}"
        )


def _shown_rows(context: RunContext, inputs: SelectionInputs, taken: SelectedRows) -> dict[str, object]:
    """The hardest rows taken, and those set aside that fit their instructions least, with the beginning of their
    text."""
    assert inputs.ifd is not None
    assert taken.ifd is not None
    hardest = np.argsort(-taken.ifd, kind="stable")[:SHOWN_ROWS]
    mismatched = most_mismatched(inputs, context.project.select, SHOWN_ROWS)
    return {
        "hardest": _with_text(context, taken.ids[hardest], taken.ifd[hardest]),
        "mismatched": _with_text(context, inputs.ids[mismatched], inputs.ifd[mismatched]),
    }


def _with_text(context: RunContext, ids: NDArray[np.uint64], ifd: NDArray[np.float64]) -> list[_ShownRow]:
    shown: list[_ShownRow] = []
    for line, difficulty in zip(read_lines(context.run, ids), ifd.tolist(), strict=True):
        row = json.loads(line)
        text = " ".join(row["messages"][-2]["content"].split())
        shown.append({"id": row["id"], "at": row["at"], "ifd": difficulty, "text": text[:SHOWN_CHARACTERS]})
    return shown


def _set_aside(context: RunContext, inputs: SelectionInputs, is_held: IdIndex) -> Counter[str]:
    """The rows that cannot be selected, by reason: those that reading refused, those that are held out, and those that
    scoring refused or that are mismatched pairs, where the strategy looks at scores."""
    held = Counter({HELD_OUT: len(is_held)})
    if inputs.ifd is None:
        return +(Counter(examples_manifest(context).refused) + held)
    scores = read_manifest(context.run.scores)
    assert scores is not None  # an input, of the same rows
    refused = Counter(scores.refused) - count_refused_holdout(context, is_held)
    return +Counter({**refused, **held, **count_mismatched(inputs, context.project.select)})


def _test_mismatch(context: RunContext, scores: ScoreColumns) -> MismatchTest | None:
    """The calibrated test; None where no row has a score. Raises StaleError for scores without the empty prompt, and
    DataError for too few shuffled pairs."""
    is_scored, pairs = ~np.isnan(scores.ifd), int(np.count_nonzero(~np.isnan(scores.shuffled_pmi)))
    if not is_scored.any():
        return None
    without = np.count_nonzero(is_scored & np.isnan(scores.pmi))
    if without:
        raise StaleError(
            f"{context.run.scores} has no nll_empty for {without:,} rows, which select.mismatch calibrated needs. Run: "
            "codetune score (with score.empty_prompt true; it makes the missing passes only). Or set select.mismatch "
            "to ifd"
        )
    if pairs < FEWEST_PAIRS:
        raise DataError(
            f"{context.run.scores} has {pairs} shuffled pairs of {int(is_scored.sum()):,} rows with a score. Expected: "
            f"at least {FEWEST_PAIRS}, from which select.mismatch calibrated learns what mismatched pairs look like. "
            "Set score.shuffled_rows to 256 and run: codetune score. With fewer rows, or one instruction for all of "
            "them, set select.mismatch to ifd"
        )
    level = context.project.select.mismatch_level
    return find_mismatched(scores.pmi, scores.answer_tokens, scores.shuffled_pmi, level)


def _excluded(
    context: RunContext, inputs: SelectionInputs, exclusions: Exclusions, taken: SelectedRows, is_held: IdIndex
) -> Iterator[tuple[Refusal | str, str, Mapping[str, float]]]:
    """Every row that was not taken, in data-set order, why, and what is known of it in figures."""
    index, is_taken, repeated = IdIndex(inputs.ids), IdIndex(taken.ids), first_of_duplicates(context.run)
    for row in read_ids(context.run) if inputs.ifd is None else row_artefacts.read_scores(context.run):
        row_id = row if isinstance(row, str) else row.id
        if row_id is not None and is_held.find(row_id) is not None:
            yield row_id, HELD_OUT, {}
            continue
        if isinstance(row, Refusal):
            first = repeated.get(row.reason)
            yield row, f"refused: {row.reason}" if first is None else f"{DUPLICATE_OF}{first}", {}
            continue
        assert row_id is not None
        position = index.find(row_id)
        if position is not None and is_taken.find(row_id) is None:
            why = exclusions.why.get(row_id) or why_not_taken(inputs, position, context.project.select)
            yield row_id, why, figures_of(inputs, position)


def _details(result: StageResult) -> Details:
    clusters, test = result.facts.get("clusters", ()), result.facts.get("mismatch_test")
    found = result.facts.get(DIAGNOSTICS)
    eligible, set_aside = sum(cluster["eligible"] for cluster in clusters), sum(result.refused.values())
    rows = quantity(eligible + set_aside, "row")
    total = f"of {rows} {set_aside:,} set aside, {eligible:,} eligible, {result.rows:,} taken"
    notes = [
        total,
        *figure_lines(result),
        *_row_lines("hardest taken", result.facts.get("hardest", ())),
    ]
    notes += _row_lines("set aside as mismatched", result.facts.get("mismatched", ()))
    notes += [*left_out_notes(result), *exclusion_notes(result), *([sharpness(test)] if test else [])]
    warnings = found["warnings"] if found else ()
    if len(clusters) < 2:
        return Details(notes, warnings=warnings)
    columns, cells = _cluster_table(clusters)
    optional = [column for column in columns if column in ("set aside", *MEDIANS)]
    return Details(notes, columns, cells, warnings, optional)


def _cluster_table(clusters: Sequence[ClusterDocument]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Columns and rows: the counts of each cluster and of all, and the medians that are known."""
    figures = [[cluster["rows"], *(cluster[key] for key in ("eligible", "taken"))] for cluster in clusters]
    figures.append([sum(column) for column in zip(*figures, strict=True)])
    names = [*(str(cluster["cluster"]) for cluster in clusters), "all"]
    cells = [
        [name, *(f"{figure:,}" for figure in (rows, rows - eligible, eligible, taken))]
        for name, (rows, eligible, taken) in zip(names, figures, strict=True)
    ]
    columns = ["cluster", "rows", "set aside", "eligible", "taken"]
    for title, column in (
        (MEDIANS[0], [cluster["ifd_quantiles"] for cluster in clusters]),
        (MEDIANS[1], [cluster.get("pmi_quantiles") for cluster in clusters]),
    ):
        if any(column):
            columns.append(title)
            medians = [f"{quantiles[2]:.3f}" if quantiles else "" for quantiles in column]
            cells = [[*row, cell] for row, cell in zip(cells, [*medians, ""], strict=True)]
    return tuple(columns), cells


def _row_lines(title: str, rows: Sequence[_ShownRow]) -> list[str]:
    """One line for each row: where it stands, its IFD, and how its instruction begins."""
    return [f"{title}: {row['at']} (IFD {row['ifd']:.3f}) {row['text']}" for row in rows]


SELECT = Stage(
    "select",
    _inputs,
    lambda run, request: run.selection,
    _write,
    check_ahead=_check_ahead,
    details=_details,
    documented=(
        *READING_FACTS,
        TAKEN_BY_SOURCE,
        DECONTAMINATED,
        NOT_AT_HAND,
        "mismatch_test",
        "clusters",
        DIAGNOSTICS,
        "hardest",
        "mismatched",
    ),
    refused_word="set aside",
)
