"""Scored and clustered rows -> the rows to train on.

A strategy is a record in the table STRATEGIES. `ifd_cluster` is the rule of Lyu et al. 2025 (arXiv 2504.12687, sec. 3)
as their scripts apply it: in each cluster drop the rows with an IFD of `max_ifd` or more, and of the n rows that are
left take the floor(n * ratio) with the highest IFD. `random` and `all` are controls. Rows are columns in ascending
order of their ids, 36 bytes a row. Ties are broken by id, and the order of the data set changes nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codetune.data.ids import unpack_id
from codetune.errors import DataError
from codetune.project.sections import Selection
from codetune.records import SelectedRows

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
RowIndices = NDArray[np.int64]  # positions in the columns of SelectionInputs


@dataclass(frozen=True, slots=True)
class SelectionInputs:
    """The rows to choose from, as columns. A column that the strategy does not need is None."""

    ids: NDArray[np.uint64]  # [rows], ascending
    ifd: NDArray[np.float64] | None  # [rows]; NaN where scoring refused the row
    cluster: NDArray[np.int32] | None  # [rows]
    pmi: NDArray[np.float64] | None = None  # [rows]; NaN where scoring refused the row
    pmi_limit: NDArray[np.float64] | None = None  # [rows]; a row with a lower pmi is a mismatched pair

    @property
    def refused(self) -> NDArray[np.bool_]:
        return np.zeros(len(self.ids), dtype=np.bool_) if self.ifd is None else np.isnan(self.ifd)


@dataclass(frozen=True, slots=True)
class SelectionStrategy:
    """A rule that chooses rows, and the stages whose artefacts it reads."""

    name: str
    description: str
    choose: Callable[[SelectionInputs, Selection, int], RowIndices]  # inputs, settings, seed
    needs_scores: bool = False
    needs_embeddings: bool = False


@dataclass(frozen=True, slots=True)
class ClusterDiagnostics:
    """Counts of one cluster, or of the whole set where `cluster` is None. `rows` is the sum of `refused` (no score),
    `dropped` (mismatched pairs) and `eligible`; `taken` is a part of `eligible`."""

    cluster: int | None
    rows: int
    refused: int
    dropped: int
    eligible: int
    taken: int
    ifd_quantiles: tuple[float, ...] | None  # minimum, quartiles, maximum of the scored rows; None without any


@dataclass(frozen=True, slots=True)
class SelectionResult:
    rows: SelectedRows
    diagnostics: tuple[ClusterDiagnostics, ...]


def select(inputs: SelectionInputs, settings: Selection, seed: int) -> SelectionResult:
    """The selected rows, sorted by cluster, then by descending IFD, then by id; and counts for each cluster."""
    strategy = STRATEGIES[settings.strategy]
    assert not (strategy.needs_scores and inputs.ifd is None)
    assert not (strategy.needs_embeddings and inputs.cluster is None)
    is_taken = np.zeros(len(inputs.ids), dtype=np.bool_)
    is_taken[strategy.choose(inputs, settings, seed)] = True
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
    return SelectionResult(rows, tuple(diagnostics))


def why_not_taken(inputs: SelectionInputs, row: int, settings: Selection) -> str:
    """Why the row at index `row`, which has a score or needs none, was not taken."""
    if _is_eligible(inputs, np.array([row]), settings)[0] or inputs.ifd is None:
        return "not taken"
    if inputs.ifd[row] >= settings.max_ifd:
        return f"mismatched pair: IFD {inputs.ifd[row]:.4f}, the limit is {settings.max_ifd:g}"
    assert inputs.pmi is not None
    assert inputs.pmi_limit is not None
    return f"mismatched pair: pmi {inputs.pmi[row]:.4f}, of its length shuffled pairs reach {inputs.pmi_limit[row]:.4f}"


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
    return ~_is_eligible(inputs, np.arange(len(inputs.ids)), settings) & ~inputs.refused


def require_selected_rows(result: SelectionResult, settings: Selection) -> None:
    """Raises DataError where no row is selected; the message counts why."""
    if len(result.rows.ids):
        return
    clusters = result.diagnostics
    rows, refused, dropped, eligible = (
        sum(getattr(cluster, name) for cluster in clusters) for name in ("rows", "refused", "dropped", "eligible")
    )
    if not STRATEGIES[settings.strategy].needs_scores:
        raise DataError(
            f"No row is selected: of {rows:,} rows the ratio {settings.ratio:g} takes none. Expected: at least one. "
            "Raise select.ratio"
        )
    where = f" in {len(clusters)} clusters" if len(clusters) > 1 else ""
    raise DataError(
        f"No row is selected of {rows:,}: {refused:,} have no score, {dropped:,} are mismatched pairs (IFD of "
        f"{settings.max_ifd:g} or more, or the pmi of shuffled pairs), and of the other {eligible:,}{where} the ratio "
        f"{settings.ratio:g} takes none. Expected: at least one. Raise select.ratio or select.max_ifd, lower "
        "select.clusters, or see the reasons in scores.jsonl"
    )


def _hardest_of_each_cluster(inputs: SelectionInputs, settings: Selection, seed: int) -> RowIndices:
    taken, negative_ifd = [np.empty(0, dtype=np.int64)], _negative_ifd(inputs)
    assert negative_ifd is not None
    for _, rows in _by_cluster(inputs):
        eligible = rows[_is_eligible(inputs, rows, settings)]
        hardest_first = eligible[np.argsort(negative_ifd[eligible], kind="stable")]
        quota = _quota(len(eligible) if settings.ratio_of == "eligible" else len(rows), settings.ratio)
        taken.append(hardest_first[:quota])
    return np.concatenate(taken)


def _random_rows(inputs: SelectionInputs, settings: Selection, seed: int) -> RowIndices:
    """The rows with the smallest digests of seed and id. A larger ratio contains the smaller one, and added rows do not
    change the digests of the others."""
    digests = (hashlib.sha256(f"{seed}:{unpack_id(number)}".encode()).digest()[:8] for number in map(int, inputs.ids))
    draws = np.fromiter((int.from_bytes(digest) for digest in digests), dtype=np.uint64)
    return np.argsort(draws, kind="stable")[: _quota(len(draws), settings.ratio)]


def _all_rows(inputs: SelectionInputs, settings: Selection, seed: int) -> RowIndices:
    return np.arange(len(inputs.ids))


_IFD_CLUSTER = SelectionStrategy(
    "ifd_cluster",
    "in each cluster the rows with the highest IFD below select.max_ifd",
    _hardest_of_each_cluster,
    needs_scores=True,
    needs_embeddings=True,
)
_RANDOM = SelectionStrategy(
    "random", "a random draw of the data set; reads neither scores nor embeddings", _random_rows
)
_ALL = SelectionStrategy("all", "every row of the data set; reads neither scores nor embeddings", _all_rows)
STRATEGIES: Mapping[str, SelectionStrategy] = {each.name: each for each in (_IFD_CLUSTER, _RANDOM, _ALL)}


def _quota(rows: int, ratio: float) -> int:
    """floor(rows * ratio) in double precision, as in the published scripts.

    >>> _quota(100, 0.29)  # 100 * 0.29 is 28.999999999999996
    28
    """
    return int(rows * ratio)


def _negative_ifd(inputs: SelectionInputs) -> NDArray[np.float64] | None:
    """A sort key, ascending from the hardest row; rows without a score (NaN) come last."""
    return None if inputs.ifd is None else -inputs.ifd


def _is_eligible(inputs: SelectionInputs, rows: RowIndices, settings: Selection) -> NDArray[np.bool_]:
    """Whether each row may be taken. Only a strategy that needs scores drops rows by their IFD."""
    if inputs.ifd is None or not STRATEGIES[settings.strategy].needs_scores:
        return ~inputs.refused[rows]
    if settings.mismatch == "none":
        return ~inputs.refused[rows]
    is_below: NDArray[np.bool_] = inputs.ifd[rows] < settings.max_ifd  # False for NaN
    if inputs.pmi is not None and inputs.pmi_limit is not None:
        is_below &= ~(inputs.pmi[rows] < inputs.pmi_limit[rows])
    return is_below


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
    scores = np.empty(0) if inputs.ifd is None else inputs.ifd[rows]
    scores = scores[~np.isnan(scores)]
    refused = int(inputs.refused[rows].sum())
    eligible = int(_is_eligible(inputs, rows, settings).sum())
    return ClusterDiagnostics(
        cluster=cluster,
        rows=len(rows),
        refused=refused,
        dropped=len(rows) - refused - eligible,
        eligible=eligible,
        taken=int(is_taken[rows].sum()),
        ifd_quantiles=tuple(np.quantile(scores, QUANTILES).tolist()) if len(scores) else None,
    )
