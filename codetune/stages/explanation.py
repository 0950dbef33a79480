"""Why a finished selection has taken a row or not, in numbers: its own, and those of its cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from codetune.data.ids import IdIndex, pack_ids
from codetune.errors import InputError
from codetune.selection.duplicates import similarity
from codetune.selection.strategies import STRATEGIES, Measure
from codetune.stages.holdout import HELD_OUT
from codetune.stages.select import SELECT
from codetune.stages.selection_inputs import read_selective_ifd
from codetune.stages.stage import RunContext
from codetune.stages.status import require
from codetune.store.examples import open_lines, read_example
from codetune.store.row_artefacts import ELIGIBLE, TAKEN, RowOutcome, read_outcomes, read_score_columns

NEAR = "near duplicate of "


@dataclass(frozen=True, slots=True)
class Explanation:
    """The outcome of one row. A figure that the strategy does not know is absent; `eligible` are the rows of its
    cluster (of all, where there are none) that were taken or could have been."""

    row: RowOutcome
    text: str  # how its instruction begins; "" for a row that could not be read
    eligible: int
    taken: int
    measure: Measure | None  # what the strategy ranks rows by; None where it ranks by nothing
    value: float | None  # the measure of the row; None where it is not eligible
    harder: int | None  # eligible rows with a higher value
    lowest_taken: float | None  # the lowest value of the rows that were taken
    jaccard: float | None  # with the row that it nearly repeats

    @property
    def is_taken(self) -> bool:
        return self.row["why"] == TAKEN


def explain_row(context: RunContext, wanted: str) -> Explanation:
    """`wanted` is an id, or the place of a row without one (FILE:LINE). Raises StaleError where no
    selection is finished as the project asks for it, InputError for a row that it does not know."""
    require(context, SELECT)
    row = next((row for row in read_outcomes(context.run) if wanted in (row["id"], row.get("at"))), None)
    if row is None:
        raise InputError(
            f"The selection in {context.run.selection} knows no row {wanted!r}. Expected: an id, or the place of a row "
            f"without one, as in that file and in {context.run.excluded.name}. Fix --explain"
        )
    peers = {
        other["id"]: other["why"] == TAKEN
        for other in read_outcomes(context.run)
        if other["id"] and other["why"] in ELIGIBLE and other.get("cluster") == row.get("cluster")
    }
    measure = STRATEGIES[context.project.select.strategy].measure
    values = {} if measure is None else _values(context, measure, list(peers))
    own = values.get(row["id"] or "")
    return Explanation(
        row=row,
        text=_text(context, row),
        eligible=len(peers),
        taken=sum(peers.values()),
        measure=measure,
        value=own,
        harder=None if own is None else sum(value > own for value in values.values()),
        lowest_taken=min((value for row_id, value in values.items() if peers[row_id]), default=None),
        jaccard=_jaccard(context, row),
    )


def _values(context: RunContext, measure: Measure, ids: Sequence[str]) -> dict[str, float]:
    """The measure of some rows, by id; a row without one is absent."""
    held = [row["id"] for row in read_outcomes(context.run) if row["id"] and row["why"] == HELD_OUT]
    scores = read_score_columns(context.run)
    scores = scores.only(~IdIndex(pack_ids(held)).holds(scores.ids))
    needs_tokens = STRATEGIES[context.project.select.strategy].needs_tokens
    column = read_selective_ifd(context, scores) if needs_tokens else getattr(scores, measure.column)
    values = column[IdIndex(scores.ids).positions(pack_ids(ids))].tolist()
    return {row_id: value for row_id, value in zip(ids, values, strict=True) if not np.isnan(value)}


def _text(context: RunContext, row: RowOutcome) -> str:
    if row["id"] is None:
        return ""
    with open_lines(context.run) as line_of:
        try:
            return " ".join(read_example(line_of(row["id"])).instruction.split())
        except KeyError:  # refused as it was read
            return ""


def _jaccard(context: RunContext, row: RowOutcome) -> float | None:
    if row["id"] is None or not row["why"].startswith(NEAR):
        return None
    with open_lines(context.run) as line_of:
        one, other = (read_example(line_of(row_id)) for row_id in (row["id"], row["why"].removeprefix(NEAR)))
    return similarity(one, other)
