"""A selection -> figures that say what it did: how far it follows the length of answers, moves the shares of the
clusters, is diverse, and differs from a random draw.

Reads columns alone, and changes nothing about which rows are taken. Formulas and sources: docs/method.md, section 1. A
figure that needs scores or embeddings is None where the strategy reads none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from codetune.data.ids import unpack_id
from codetune.project.sections import Selection
from codetune.selection.embedding_map import map_embeddings
from codetune.selection.novelsum import novelsum
from codetune.selection.row_vectors import Floats, RowIndices
from codetune.selection.select import QUANTILES, SelectionResult
from codetune.selection.strategies import STRATEGIES, Candidates, SelectionInputs

BINS = 40
FENCE = 3  # interquartile ranges around the quartiles that a histogram covers (Tukey 1977: "far out" beyond)
MAP_DIGITS = 4
STATES = ("taken", "not taken", "mismatched pair", "set aside", "no score")  # of a row on the map


@dataclass(frozen=True, slots=True)
class SelectionDiagnostics:
    """The figures of one selection, None for what the strategy's columns do not say."""

    ifd_length_correlation: float | None  # Spearman's, from -1 to 1, over the rows with a score
    cluster_distance: float | None  # total variation between all rows and those taken, from 0 to 1
    novelsum: float | None
    novelsum_of_random_draw: float | None
    random_overlap: float  # share of the rows taken that a random draw of the same size takes as well
    random_overlap_by_chance: float  # what it is on average for an independent draw


class MapDocument(TypedDict):
    """The map of the rows as JSON: columns, one entry a row that is drawn."""

    method: str
    rows: int  # that are drawn
    of_rows: int
    variance: tuple[float, float] | None
    states: tuple[str, ...]  # `STATES`
    id: list[str]
    x: list[float]
    y: list[float]
    cluster: list[int] | None
    state: list[int]  # indices in `states`


def diagnose(inputs: SelectionInputs, result: SelectionResult, seed: int) -> SelectionDiagnostics:
    taken, eligible = result.taken, result.eligible
    as_many = Selection(strategy="random", count=len(taken))
    drawn = STRATEGIES["random"].choose(Candidates(inputs, eligible, as_many, seed))
    return SelectionDiagnostics(
        _length_correlation(inputs),
        None if inputs.cluster is None else _cluster_distance(inputs, taken),
        None if inputs.vectors is None else novelsum(inputs.vectors, np.sort(taken)),
        None if inputs.vectors is None else novelsum(inputs.vectors, np.sort(drawn)),
        len(np.intersect1d(taken, drawn)) / len(taken),
        len(taken) / len(eligible),
    )


def rank_correlation(one: Floats, other: Floats) -> float | None:
    """Spearman's rank correlation; equal values have the mean of their ranks. None where a column has one value only.

    >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]))
    0.5
    """
    if len(one) < 2:
        return None
    ranks = [_ranks(one), _ranks(other)]
    first, second = (column - column.mean() for column in ranks)
    spread = float(first @ first) * float(second @ second)
    return float(first @ second) / spread**0.5 if spread else None


def total_variation(before: Floats, after: Floats) -> float:
    """Half of the sum of the differences between shares: the share that has to move to make one of the other.

    >>> total_variation(np.array([50.0, 50.0]), np.array([3.0, 1.0]))
    0.25
    """
    return float(np.abs(before / before.sum() - after / after.sum()).sum() / 2)


def histograms(
    inputs: SelectionInputs, result: SelectionResult, settings: Selection, shuffled_pmi: Floats | None
) -> dict[str, object]:
    """The histograms of IFD and pmi, each with the cuts that set rows aside; None for what is not known."""
    is_cut = STRATEGIES[settings.strategy].needs_scores and settings.mismatch != "none"
    limits = inputs.pmi_limit if is_cut else None
    return {
        "ifd": _histogram(inputs.ifd, result.taken, {}, {"max_ifd": settings.max_ifd if is_cut else None}),
        "pmi": _histogram(
            inputs.pmi,
            result.taken,
            {} if shuffled_pmi is None else {"shuffled": shuffled_pmi},
            {"limit_quantiles": None if limits is None else _quantiles(limits)},
        ),
    }


def map_document(inputs: SelectionInputs, result: SelectionResult) -> MapDocument | None:
    """The rows as points, with cluster and state, as columns; None without vectors."""
    if inputs.vectors is None or not len(inputs.ids):
        return None
    found = map_embeddings(inputs.vectors)
    points = np.round(found.points, MAP_DIGITS) + 0.0  # no -0.0
    return {
        "method": "principal components",
        "rows": len(found.rows),
        "of_rows": len(inputs.ids),
        "variance": found.variance,
        "states": STATES,
        "id": [unpack_id(number) for number in inputs.ids[found.rows].tolist()],
        "x": points[:, 0].tolist(),
        "y": points[:, 1].tolist(),
        "cluster": None if inputs.cluster is None else inputs.cluster[found.rows].tolist(),
        "state": _states(inputs, result)[found.rows].tolist(),
    }


def _length_correlation(inputs: SelectionInputs) -> float | None:
    if inputs.ifd is None or inputs.answer_tokens is None:
        return None
    is_scored = ~inputs.refused
    return rank_correlation(inputs.ifd[is_scored], inputs.answer_tokens[is_scored])


def _ranks(column: Floats) -> Floats:
    _, which, counts = np.unique(column, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2)[which]
    return ranks


def _cluster_distance(inputs: SelectionInputs, taken: RowIndices) -> float:
    assert inputs.cluster is not None
    clusters = int(inputs.cluster.max()) + 1
    before, after = (np.bincount(rows, minlength=clusters) for rows in (inputs.cluster, inputs.cluster[taken]))
    return total_variation(before.astype(np.float64), after.astype(np.float64))


def _histogram(
    column: Floats | None, taken: RowIndices, others: Mapping[str, Floats], cuts: Mapping[str, object]
) -> dict[str, object] | None:
    known = np.empty(0) if column is None else column[~np.isnan(column)]
    if column is None or not len(known):
        return None
    edges = np.histogram_bin_edges(known, BINS, _fences(known))
    columns = {"rows": known, "taken": column[taken], **others}
    return {
        "edges": edges.tolist(),
        "counts": {name: np.histogram(values, edges)[0].tolist() for name, values in columns.items()},
        "below": {name: int((values < edges[0]).sum()) for name, values in columns.items()},
        "above": {name: int((values > edges[-1]).sum()) for name, values in columns.items()},
        "cuts": dict(cuts),
    }


def _fences(values: Floats) -> tuple[float, float]:
    first, third = np.quantile(values, (0.25, 0.75))
    reach = FENCE * (third - first)
    low, high = max(values.min(), first - reach), min(values.max(), third + reach)
    return (float(low), float(high)) if reach else (float(values.min()), float(values.max()))


def _quantiles(column: Floats) -> list[float] | None:
    known = column[~np.isnan(column)]
    quantiles: list[float] = np.quantile(known, QUANTILES).tolist() if len(known) else []
    return quantiles or None


def _states(inputs: SelectionInputs, result: SelectionResult) -> RowIndices:
    """The index in `STATES` of each row."""
    states = np.full(len(inputs.ids), STATES.index("mismatched pair"))
    for rows, state in (
        (result.eligible, "not taken"),
        (result.taken, "taken"),
        (inputs.is_filtered, "set aside"),
        (inputs.refused, "no score"),
    ):
        states[rows] = STATES.index(state)
    return states
