"""Why a finished selection has taken a row or not, in numbers: its own, and those of its cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from codetune.errors import InputError
from codetune.selection.duplicates import similarity
from codetune.stages.select import SELECT
from codetune.stages.stage import RunContext
from codetune.stages.status import require
from codetune.store.examples import open_lines, read_example
from codetune.store.row_artefacts import TAKEN, read_outcomes

NEAR = "near duplicate of "
ELIGIBLE = (TAKEN, "not taken")


@dataclass(frozen=True, slots=True)
class Explanation:
    """The outcome of one row. A figure that the strategy does not know is absent; `eligible` are the rows of its
    cluster (of all, where there are none) that were taken or could have been."""

    row: Mapping[str, Any]  # id or at, why, ifd, pmi, cluster
    text: str  # how its instruction begins; "" for a row that could not be read
    eligible: int
    taken: int
    harder: int | None  # eligible rows with a higher IFD; None where the row is not eligible or no IFD is known
    lowest_taken_ifd: float | None
    jaccard: float | None  # with the row that it nearly repeats

    @property
    def is_taken(self) -> bool:
        return bool(self.row["why"] == TAKEN)


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
    peers = [
        (other["why"] == TAKEN, other.get("ifd"))
        for other in read_outcomes(context.run)
        if other["why"] in ELIGIBLE and other.get("cluster") == row.get("cluster")
    ]
    is_known = row["why"] in ELIGIBLE and "ifd" in row
    return Explanation(
        row=row,
        text=_text(context, row),
        eligible=len(peers),
        taken=sum(is_taken for is_taken, _ in peers),
        harder=sum(ifd > row["ifd"] for _, ifd in peers) if is_known else None,
        lowest_taken_ifd=min((ifd for is_taken, ifd in peers if is_taken and ifd is not None), default=None),
        jaccard=_jaccard(context, row),
    )


def _text(context: RunContext, row: Mapping[str, Any]) -> str:
    if row["id"] is None:
        return ""
    with open_lines(context.run) as line_of:
        try:
            return " ".join(read_example(line_of(row["id"])).instruction.split())
        except KeyError:  # refused as it was read
            return ""


def _jaccard(context: RunContext, row: Mapping[str, Any]) -> float | None:
    if not row["why"].startswith(NEAR):
        return None
    with open_lines(context.run) as line_of:
        one, other = (read_example(line_of(row_id)) for row_id in (row["id"], row["why"].removeprefix(NEAR)))
    return similarity(one, other)
