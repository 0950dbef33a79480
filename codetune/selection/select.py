"""Scored and clustered rows -> the rows to train on.

What is eligible is decided here, before the strategy chooses (`strategies.py`): filtered rows are not (repeats, leaks,
failed checks), nor, where the strategy looks at scores, rows without a score and mismatched pairs. Rows are columns in
ascending order of their ids, 53 bytes each. Ties are broken by id, and the order of the data set changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codetune.errors import DataError
from codetune.project.sections import Selection
from codetune.records import SelectedRows
from codetune.selection.row_vectors import Floats, RowIndices
from codetune.selection.strategies import STRATEGIES, Candidates, SelectionInputs

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class ClusterDiagnostics:
    """Counts of one cluster, or of the whole set where `cluster` is None. `rows` is the sum of `refused` (no score),
    `filtered` (repeats, leaks, failed checks), `dropped` (mismatched pairs) and `eligible`; `taken` is a part of
    `eligible`."""

    cluster: int | None
    rows: int
    refused: int
    filtered: int
    dropped: int
    eligible: int
    taken: int
    ifd_quantiles: tuple[float, ...] | None  # minimum, quartiles, maximum of the scored rows; None without any
    pmi_quantiles: tuple[float, ...] | None = None  # of those whose pmi is known


@dataclass(frozen=True, slots=True)
class SelectionResult:
    rows: SelectedRows
    diagnostics: tuple[ClusterDiagnostics, ...]
    taken: RowIndices  # in the order of `rows`
    eligible: RowIndices  # ascending


def select(inputs: SelectionInputs, settings: Selection, seed: int) -> SelectionResult:
    """The selected rows, sorted by cluster, then by descending IFD, then by id; and counts for each cluster. Raises
    DataError where `select.count` is above the eligible rows."""
    strategy = STRATEGIES[settings.strategy]
    assert not (strategy.needs_scores and inputs.ifd is None)
    assert not (strategy.needs_embeddings and inputs.cluster is None)
    eligible = eligible_rows(inputs, settings)
    _require_count(settings, len(inputs.ids), len(eligible))
    is_taken = np.zeros(len(inputs.ids), dtype=np.bool_)
    is_taken[strategy.choose(Candidates(inputs, eligible, settings, seed))] = True
    taken = np.flatnonzero(is_taken)
    keys = [column[taken] for column in (_negative_ifd(inputs), inputs.cluster) if column is not None]
    ordered = taken[np.lexsort(keys)] if keys else taken  # stable: ties stay in the order of ids
    rows = SelectedRows(
        inputs.ids[ordered],
        None if inputs.ifd is None else inputs.ifd[ordered],
        None if inputs.pmi is None else inputs.pmi[ordered],
        None if inputs.cluster is None else inputs.cluster[ordered],
    )
    diagnostics = (_diagnose(inputs, *cluster, settings, is_taken) for cluster in _by_cluster(inputs))
    return SelectionResult(rows, tuple(diagnostics), ordered, eligible)


def why_taken(inputs: SelectionInputs, result: SelectionResult, settings: Selection) -> Iterator[str]:
    """Why each row of the result was taken, in numbers, in its order: its rank among the eligible rows of its cluster
    by what the strategy looks at, or, where it looks at no figure, how many of them were taken.

    `IFD 0.9312, rank 3 of 120 in cluster 4`"""
    measure = STRATEGIES[settings.strategy].measure
    column: Floats | None = None if measure is None else getattr(inputs, measure.column)
    cluster = np.zeros(len(inputs.ids), dtype=np.int32) if inputs.cluster is None else inputs.cluster
    sizes = np.bincount(cluster[result.eligible], minlength=1)
    ranks = _ranks_in_clusters(column, cluster, result) if column is not None else np.bincount(cluster[result.taken])
    for row in result.taken.tolist():
        label = int(cluster[row])
        where = f"{sizes[label]:,} rows" if inputs.cluster is None else f"{sizes[label]:,} in cluster {label}"
        if measure is None or column is None:
            yield f"one of {ranks[label]:,} taken of {where}"
        else:
            yield f"{measure.title} {measure.format(column[row])}, rank {ranks[row]:,} of {where}"


def _ranks_in_clusters(column: Floats, cluster: NDArray[np.int32], result: SelectionResult) -> NDArray[np.int64]:
    """For each row that was taken its rank by `column` among the eligible rows of its cluster; 1 is the highest."""
    ranks = np.zeros(len(column), dtype=np.int64)
    for label in np.unique(cluster[result.taken]).tolist():
        ascending = np.sort(-column[result.eligible[cluster[result.eligible] == label]])
        rows = result.taken[cluster[result.taken] == label]
        ranks[rows] = 1 + np.searchsorted(ascending, -column[rows])
    return ranks


def eligible_rows(inputs: SelectionInputs, settings: Selection) -> RowIndices:
    """The rows that the strategy may take, ascending."""
    return np.flatnonzero(_is_eligible(inputs, np.arange(len(inputs.ids)), settings))


def why_not_taken(inputs: SelectionInputs, row: int, settings: Selection) -> str:
    """Why the row at index `row`, which has a score or needs none, was not taken."""
    if _is_eligible(inputs, np.array([row]), settings)[0] or inputs.ifd is None:
        return "not taken"
    if inputs.ifd[row] >= settings.max_ifd:
        return f"mismatched pair: IFD {inputs.ifd[row]:.4f}, the limit is {settings.max_ifd:g}"
    assert inputs.pmi is not None
    assert inputs.pmi_limit is not None
    return f"mismatched pair: pmi {inputs.pmi[row]:.4f}, of its length shuffled pairs reach {inputs.pmi_limit[row]:.4f}"


def figures_of(inputs: SelectionInputs, row: int) -> dict[str, float]:
    """IFD, pmi and cluster of the row at index `row`, as far as the strategy knows them."""
    columns = {"ifd": inputs.ifd, "pmi": inputs.pmi, "cluster": inputs.cluster}
    return {name: column[row].item() for name, column in columns.items() if column is not None}


def count_mismatched(inputs: SelectionInputs, settings: Selection) -> Counter[str]:
    """The rows that are dropped as mismatched pairs, by reason."""
    assert inputs.ifd is not None
    by_ifd, dropped = inputs.ifd >= settings.max_ifd, _is_mismatched(inputs, settings)
    return +Counter(
        {
            f"mismatched pair: IFD of {settings.max_ifd:g} or more": int((dropped & by_ifd).sum()),
            "mismatched pair: pmi of shuffled pairs": int((dropped & ~by_ifd).sum()),
        }
    )


def most_mismatched(inputs: SelectionInputs, settings: Selection, count: int) -> RowIndices:
    """The first `count` rows that are dropped as mismatched pairs, by descending IFD, then by id."""
    assert inputs.ifd is not None
    dropped = np.flatnonzero(_is_mismatched(inputs, settings))
    return dropped[np.argsort(-inputs.ifd[dropped], kind="stable")][:count]


def _is_mismatched(inputs: SelectionInputs, settings: Selection) -> NDArray[np.bool_]:
    return ~_is_eligible(inputs, np.arange(len(inputs.ids)), settings) & ~inputs.refused & ~inputs.is_filtered


def require_selected_rows(result: SelectionResult, settings: Selection) -> None:
    """Raises DataError where no row is selected; the message counts why."""
    if len(result.rows.ids):
        return
    clusters = result.diagnostics
    rows, refused, filtered, dropped, eligible = (
        sum(getattr(cluster, name) for cluster in clusters)
        for name in ("rows", "refused", "filtered", "dropped", "eligible")
    )
    needs_scores = STRATEGIES[settings.strategy].needs_scores
    reasons = f"{filtered:,} repeat others, hold benchmark tasks or fail a check"
    if needs_scores:
        mismatched = f"IFD of {settings.max_ifd:g} or more, or the pmi of shuffled pairs"
        reasons = (
            f"{refused:,} have no score (the reasons are in scores.jsonl), {reasons}, "
            f"{dropped:,} are mismatched pairs ({mismatched})"
        )
    if not eligible:
        limit = ", or raise select.max_ifd" if needs_scores else ""
        raise DataError(
            f"No row is selected of {rows:,}: {reasons}. Expected: at least one that may be taken. Fix the data set, "
            f"or set aside less by select.deduplicate, select.decontaminate or select.checks{limit}"
        )
    where = f" in {len(clusters)} clusters" if len(clusters) > 1 else ""
    fewer = ", or lower select.clusters" if where else ""
    raise DataError(
        f"No row is selected of {rows:,}: {reasons}, and of the other {eligible:,}{where} the ratio "
        f"{settings.ratio:g} takes none. Expected: at least one. Raise select.ratio{fewer}"
    )


def _require_count(settings: Selection, rows: int, eligible: int) -> None:
    if settings.count is not None and settings.count > eligible:
        reasons = "have no score, repeat others, hold benchmark tasks, fail a check or are mismatched pairs"
        others = f"; the others {reasons}" if rows > eligible else ""
        raise DataError(
            f"select.count is {settings.count:,}, and {eligible:,} of {rows:,} rows are eligible{others}. Expected: at "
            f"most {eligible:,}. Lower select.count, or add rows to the data set"
        )


def _negative_ifd(inputs: SelectionInputs) -> NDArray[np.float64] | None:
    """A sort key, ascending from the hardest row; rows without a score (NaN) come last."""
    return None if inputs.ifd is None else -inputs.ifd


def _is_eligible(inputs: SelectionInputs, rows: RowIndices, settings: Selection) -> NDArray[np.bool_]:
    """Whether each row may be taken. Only a strategy that needs scores drops rows by their IFD."""
    # Of these rows alone: one row is asked about as often as there are rows.
    is_left = np.ones(len(rows), dtype=np.bool_)
    if inputs.ifd is not None:
        is_left &= ~np.isnan(inputs.ifd[rows])
    if inputs.filtered is not None:
        is_left &= ~inputs.filtered[rows]
    if inputs.ifd is None or not STRATEGIES[settings.strategy].needs_scores or settings.mismatch == "none":
        return is_left
    is_left &= inputs.ifd[rows] < settings.max_ifd
    if inputs.pmi is not None and inputs.pmi_limit is not None:
        is_left &= ~(inputs.pmi[rows] < inputs.pmi_limit[rows])
    return is_left


def _by_cluster(inputs: SelectionInputs) -> Iterator[tuple[int | None, RowIndices]]:
    """Each cluster with its rows in the order of their ids; the whole set as one where there are no clusters."""
    if inputs.cluster is None:
        if len(inputs.ids):
            yield None, np.arange(len(inputs.ids))
        return
    for cluster in np.unique(inputs.cluster).tolist():
        yield cluster, np.flatnonzero(inputs.cluster == cluster)


def _diagnose(
    inputs: SelectionInputs, cluster: int | None, rows: RowIndices, settings: Selection, is_taken: NDArray[np.bool_]
) -> ClusterDiagnostics:
    refused, filtered = int(inputs.refused[rows].sum()), int(inputs.is_filtered[rows].sum())
    eligible = int(_is_eligible(inputs, rows, settings).sum())
    return ClusterDiagnostics(
        cluster=cluster,
        rows=len(rows),
        refused=refused,
        filtered=filtered,
        dropped=len(rows) - refused - filtered - eligible,
        eligible=eligible,
        taken=int(is_taken[rows].sum()),
        ifd_quantiles=_quantiles(inputs.ifd, rows),
        pmi_quantiles=_quantiles(inputs.pmi, rows),
    )


def _quantiles(column: Floats | None, rows: RowIndices) -> tuple[float, ...] | None:
    known = np.empty(0) if column is None else column[rows][~np.isnan(column[rows])]
    return tuple(np.quantile(known, QUANTILES).tolist()) if len(known) else None
