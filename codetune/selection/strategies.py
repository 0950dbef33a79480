"""The selection strategies: which of the eligible rows to take.

A strategy is a record in the table STRATEGIES. What is eligible is decided before, in `select.py`. Rows are columns in
ascending order of their ids, so that the order of the data set changes nothing and ties are broken by id. Formulas and
sources: docs/method.md, section 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codetune.data.ids import draw_numbers
from codetune.project.sections import Selection, Strategy
from codetune.selection.facility import facility_rows
from codetune.selection.kcenter import kcenter_rows
from codetune.selection.mig import mig_rows
from codetune.selection.parametric import parametric_rows
from codetune.selection.quotas import part_quotas, quota_of
from codetune.selection.row_vectors import Floats, RowIndices, RowVectors, lowest_of_equal_rows


@dataclass(frozen=True, slots=True)
class SelectionInputs:
    """The rows to choose from, as columns. A column that the strategy does not need is None. Of what scoring measures,
    a row that it refused has NaN."""

    ids: NDArray[np.uint64]  # [rows], ascending
    ifd: Floats | None  # [rows]
    cluster: NDArray[np.int32] | None  # [rows]
    pmi: Floats | None = None  # [rows]
    pmi_limit: Floats | None = None  # [rows]; a row with a lower pmi is a mismatched pair
    nll_conditional: Floats | None = None  # [rows]
    answer_tokens: Floats | None = None  # [rows]
    vectors: RowVectors | None = None  # [rows, dimensions]
    sifd: Floats | None = None  # [rows], NaN also for a row of which no token counts
    filtered: NDArray[np.bool_] | None = None  # [rows]; repeats, leaks and failed checks, which nothing takes

    @property
    def refused(self) -> NDArray[np.bool_]:
        return np.zeros(len(self.ids), dtype=np.bool_) if self.ifd is None else np.isnan(self.ifd)

    @property
    def is_filtered(self) -> NDArray[np.bool_]:
        return np.zeros(len(self.ids), dtype=np.bool_) if self.filtered is None else self.filtered


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a strategy chooses from: the columns, the rows of them that may be taken, and the settings."""

    inputs: SelectionInputs
    eligible: RowIndices  # ascending
    settings: Selection
    seed: int

    @property
    def quota(self) -> int:
        return quota_of(len(self.inputs.ids), len(self.eligible), self.settings)

    @property
    def vectors(self) -> RowVectors:
        assert self.inputs.vectors is not None
        return self.inputs.vectors.subset(self.eligible)

    @property
    def quality(self) -> Floats:
        """The difficulty of each eligible row as its rank by IFD: the share of eligible rows whose IFD is no higher."""
        assert self.inputs.ifd is not None
        ifd = self.inputs.ifd[self.eligible]
        ranks: Floats = np.searchsorted(np.sort(ifd), ifd, side="right") / max(1, len(ifd))
        return ranks

    def at(self, positions: RowIndices, quality: Floats | None = None) -> RowIndices:
        """The rows at positions of `vectors`, which a rule chose by vectors (and quality) alone; of equal rows those
        with the lowest ids."""
        return self.eligible[lowest_of_equal_rows(self.vectors, positions, quality)]


@dataclass(frozen=True, slots=True)
class Measure:
    """A column of the inputs by which rows are ranked, and how it is shown."""

    column: str
    title: str
    digits: int = 4

    def format(self, value: float) -> str:
        return "unknown" if math.isnan(value) else f"{value:,.{self.digits}f}"


IFD = Measure("ifd", "IFD")


@dataclass(frozen=True, slots=True)
class SelectionStrategy:
    """A rule that chooses rows, and the stages whose artefacts it reads."""

    name: Strategy
    description: str
    choose: Callable[[Candidates], RowIndices]  # eligible rows, `quota` of them unless the rule has quotas of its own
    needs_scores: bool = False
    needs_embeddings: bool = False
    needs_tokens: bool = False  # scores with the differences of each token
    measure: Measure | None = None  # of the figures that the rule looks at; none: `why` in selection.jsonl has no rank


def _hardest_of_each_cluster(candidates: Candidates, difficulty: Floats | None) -> RowIndices:
    cluster, eligible = candidates.inputs.cluster, candidates.eligible
    assert cluster is not None
    labels, part = np.unique(cluster, return_inverse=True)
    sizes, eligible_sizes = (np.bincount(rows, minlength=len(labels)) for rows in (part, part[eligible]))
    quotas = part_quotas(sizes, eligible_sizes, candidates.settings)
    hardest_first = _ranked(difficulty, eligible)
    by_part = hardest_first[np.argsort(part[hardest_first], kind="stable")]
    rank_in_part = np.arange(len(by_part)) - np.repeat(np.cumsum(eligible_sizes) - eligible_sizes, eligible_sizes)
    return by_part[rank_in_part < quotas[part[by_part]]]


def _highest(candidates: Candidates, column: Floats | None) -> RowIndices:
    return _ranked(column, candidates.eligible)[: candidates.quota]


def _ranked(column: Floats | None, rows: RowIndices) -> RowIndices:
    """The rows by their values, the highest first and NaN last; equal ones by id."""
    assert column is not None
    return rows[np.argsort(-column[rows], kind="stable")]


def _random_rows(candidates: Candidates) -> RowIndices:
    """The rows with the smallest digests of seed and id. A larger ratio contains the smaller one, and added rows do not
    change the digests of the others."""
    draws = draw_numbers(candidates.inputs.ids[candidates.eligible], str(candidates.seed))
    return candidates.eligible[np.argsort(draws, kind="stable")[: candidates.quota]]


def _most_informative(candidates: Candidates) -> RowIndices:
    assert candidates.inputs.cluster is not None
    cluster = candidates.inputs.cluster[candidates.eligible]
    quality = candidates.quality
    return candidates.at(mig_rows(candidates.vectors, cluster, quality, candidates.quota), quality)


_TABLE = (
    SelectionStrategy(
        "ifd_cluster",
        "in each cluster the rows with the highest IFD, as published",
        lambda rows: _hardest_of_each_cluster(rows, rows.inputs.ifd),
        needs_scores=True,
        needs_embeddings=True,
        measure=IFD,
    ),
    SelectionStrategy(
        "parametric",
        "the nearest rows to learned points that are distributed as all rows are",
        lambda rows: rows.at(parametric_rows(rows.vectors, rows.quota, rows.seed)),
        needs_embeddings=True,
    ),
    SelectionStrategy(
        "facility",
        "rows that are similar to all rows and have a high IFD (QDIT)",
        lambda rows: rows.at(facility_rows(rows.vectors, rows.quality, rows.quota), rows.quality),
        needs_scores=True,
        needs_embeddings=True,
        measure=IFD,
    ),
    SelectionStrategy(
        "mig",
        "rows that add most information to the clusters, weighted by IFD",
        _most_informative,
        needs_scores=True,
        needs_embeddings=True,
        measure=IFD,
    ),
    SelectionStrategy(
        "sifd",
        "in each cluster the rows with the highest IFD over the tokens that the instruction changes most (T-SHIRT)",
        lambda rows: _hardest_of_each_cluster(rows, rows.inputs.sifd),
        needs_scores=True,
        needs_embeddings=True,
        needs_tokens=True,
        measure=Measure("sifd", "S-IFD"),
    ),
    SelectionStrategy(
        "ifd",
        "the rows with the highest IFD",
        lambda rows: _highest(rows, rows.inputs.ifd),
        needs_scores=True,
        measure=IFD,
    ),
    SelectionStrategy(
        "perplexity",
        "the rows with the highest perplexity of the answer given the instruction",
        lambda rows: _highest(rows, rows.inputs.nll_conditional),
        needs_scores=True,
        measure=Measure("nll_conditional", "NLL given the instruction"),
    ),
    SelectionStrategy(
        "kcenter",
        "rows that leave no row far away from all of them",
        lambda rows: rows.at(kcenter_rows(rows.vectors, rows.quota)),
        needs_embeddings=True,
    ),
    SelectionStrategy(
        "length",
        "the rows with the longest answers, in tokens",
        lambda rows: _highest(rows, rows.inputs.answer_tokens),
        needs_scores=True,
        measure=Measure("answer_tokens", "answer tokens", digits=0),
    ),
    SelectionStrategy("random", "a random draw; reads neither scores nor embeddings", _random_rows),
    SelectionStrategy("all", "every row that is left; reads neither scores nor embeddings", lambda rows: rows.eligible),
)
STRATEGIES: Mapping[str, SelectionStrategy] = {strategy.name: strategy for strategy in _TABLE}


def needs_scores(settings: Selection) -> bool:
    """Whether the selection reads scores: for its strategy, or for the likeliest of several answers."""
    return STRATEGIES[settings.strategy].needs_scores or settings.best_answer
