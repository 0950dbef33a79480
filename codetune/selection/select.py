"""Scored and clustered rows -> the rows to train on (arXiv 2504.12687, sec. 3; the rule of the published scripts).

`ifd_cluster`: in each cluster drop the rows whose instruction does not help (IFD of `max_ifd` and above), and of the
rest take the hardest `floor(n * ratio)`, so that the selection is harder and still covers what the whole set covers.
`random` and `all` are the controls. A strategy is a function in a table. Rows are columns in the order of their ids, 20
bytes a row; ties go by id, and the order of the data set changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from codetune.data.ids import unpack_id
from codetune.errors import DataError
from codetune.project.sections import Selection
from codetune.records import Picks

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
Rows = NDArray[np.int64]  # places in the columns of the candidates


@dataclass(frozen=True, slots=True)
class Candidates:
    """What is known of the rows. A column that the strategy does not need is None."""

    ids: NDArray[np.uint64]  # ascending
    ifd: NDArray[np.float64] | None  # NaN where scoring gave a reason instead of a number
    cluster: NDArray[np.int32] | None

    @property
    def refused(self) -> NDArray[np.bool_]:
        return np.zeros(len(self.ids), dtype=np.bool_) if self.ifd is None else np.isnan(self.ifd)


@dataclass(frozen=True, slots=True)
class ClusterDiagnostics:
    """rows = refused + dropped + eligible, and taken of the eligible; of the whole set where `cluster` is None."""

    cluster: int | None
    rows: int
    refused: int
    dropped: int
    eligible: int
    taken: int
    ifd_quantiles: tuple[float, ...] | None  # minimum, quartiles, maximum of all scored rows; None without any


@dataclass(frozen=True, slots=True)
class Selected:
    picks: Picks
    diagnostics: tuple[ClusterDiagnostics, ...]


class Needs(NamedTuple):
    scores: bool
    embeddings: bool


NEEDS: Mapping[str, Needs] = {
    "ifd_cluster": Needs(scores=True, embeddings=True),
    "random": Needs(scores=False, embeddings=False),
    "all": Needs(scores=False, embeddings=False),
}


def select(candidates: Candidates, settings: Selection, seed: int) -> Selected:
    """The picks by cluster, then by IFD from the hardest down, then by id."""
    needs = NEEDS[settings.strategy]
    assert not (needs.scores and candidates.ifd is None)
    assert not (needs.embeddings and candidates.cluster is None)
    is_taken = np.zeros(len(candidates.ids), dtype=np.bool_)
    is_taken[STRATEGIES[settings.strategy](candidates, settings, seed)] = True
    taken = np.flatnonzero(is_taken)
    keys = [column[taken] for column in (_hardness(candidates), candidates.cluster) if column is not None]
    ordered = taken[np.lexsort(keys)] if keys else taken  # stable: what ties stays in the order of ids
    picks = Picks(
        candidates.ids[ordered],
        None if candidates.ifd is None else candidates.ifd[ordered],
        None if candidates.cluster is None else candidates.cluster[ordered],
    )
    parts = _by_cluster(candidates)
    return Selected(picks, tuple(_diagnose(candidates, *part, settings, is_taken) for part in parts))


def require_picks(selected: Selected, settings: Selection) -> None:
    """Raises DataError where nothing is taken, and says where the rows went."""
    if len(selected.picks.ids):
        return
    clusters = selected.diagnostics
    rows, refused, dropped, eligible = (
        sum(getattr(cluster, name) for cluster in clusters) for name in ("rows", "refused", "dropped", "eligible")
    )
    where = f" in {len(clusters)} clusters" if len(clusters) > 1 else ""
    raise DataError(
        f"No row is selected of {rows:,}: {refused:,} have no score, {dropped:,} an IFD of {settings.max_ifd:g} or "
        f"more, and of the other {eligible:,}{where} the ratio {settings.ratio:g} takes none. Expected: at least one. "
        "Raise select.ratio or select.max_ifd, lower select.clusters, or see the reasons in scores.jsonl"
    )


def _take_hardest_of_each_cluster(candidates: Candidates, settings: Selection, seed: int) -> Rows:
    taken, hardness = [np.empty(0, dtype=np.int64)], _hardness(candidates)
    assert hardness is not None
    for _, rows in _by_cluster(candidates):
        eligible = rows[_is_eligible(candidates, rows, settings)]
        hardest_first = eligible[np.argsort(hardness[eligible], kind="stable")]
        quota = _share(len(eligible) if settings.ratio_of == "eligible" else len(rows), settings.ratio)
        taken.append(hardest_first[:quota])
    return np.concatenate(taken)


def _take_at_random(candidates: Candidates, settings: Selection, seed: int) -> Rows:
    # By a digest and not by position: a larger ratio holds the smaller, and added rows move none of the others.
    digests = (
        hashlib.sha256(f"{seed}:{unpack_id(number)}".encode()).digest()[:8] for number in map(int, candidates.ids)
    )
    draws = np.fromiter((int.from_bytes(digest) for digest in digests), dtype=np.uint64)
    return np.argsort(draws, kind="stable")[: _share(len(draws), settings.ratio)]


def _take_all(candidates: Candidates, settings: Selection, seed: int) -> Rows:
    return np.arange(len(candidates.ids))


STRATEGIES: Mapping[str, Callable[[Candidates, Selection, int], Rows]] = {
    "ifd_cluster": _take_hardest_of_each_cluster,
    "random": _take_at_random,
    "all": _take_all,
}


def _share(rows: int, ratio: float) -> int:
    # In double precision, as published: int(100 * 0.29) is 28.
    return int(rows * ratio)


def _hardness(candidates: Candidates) -> NDArray[np.float64] | None:
    """Ascending from the hardest row; rows without an IFD come last."""
    return None if candidates.ifd is None else -candidates.ifd


def _is_eligible(candidates: Candidates, rows: Rows, settings: Selection) -> NDArray[np.bool_]:
    """Only a strategy that reads scores drops by them."""
    if candidates.ifd is None or not NEEDS[settings.strategy].scores:
        return ~candidates.refused[rows]
    below: NDArray[np.bool_] = candidates.ifd[rows] < settings.max_ifd  # False for NaN
    return below


def _by_cluster(candidates: Candidates) -> Iterator[tuple[int | None, Rows]]:
    """Each cluster with its rows, in the order of their ids; the whole set where there are no clusters."""
    if candidates.cluster is None:
        if len(candidates.ids):
            yield None, np.arange(len(candidates.ids))
        return
    for cluster in np.unique(candidates.cluster).tolist():
        yield cluster, np.flatnonzero(candidates.cluster == cluster)


def _diagnose(
    candidates: Candidates, cluster: int | None, rows: Rows, settings: Selection, is_taken: NDArray[np.bool_]
) -> ClusterDiagnostics:
    scores = np.empty(0) if candidates.ifd is None else candidates.ifd[rows]
    scores = scores[~np.isnan(scores)]
    refused = int(candidates.refused[rows].sum())
    eligible = int(_is_eligible(candidates, rows, settings).sum())
    return ClusterDiagnostics(
        cluster=cluster,
        rows=len(rows),
        refused=refused,
        dropped=len(rows) - refused - eligible,
        eligible=eligible,
        taken=int(is_taken[rows].sum()),
        ifd_quantiles=tuple(np.quantile(scores, QUANTILES).tolist()) if len(scores) else None,
    )
