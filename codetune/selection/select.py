"""Scored and clustered rows -> the rows to train on (arXiv 2504.12687, sec. 3; the rule of the published scripts).

`ifd_cluster`: in each cluster drop the rows whose instruction does not help (IFD of `max_ifd` and above), and of the
rest take the hardest `floor(n * ratio)`, so that the selection is harder and still covers what the whole set covers.
`random` and `all` are the controls. A strategy is a function in a table. Ties go by id, and the order of rows changes
nothing."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from codetune.errors import DataError, StaleError
from codetune.project import Selection
from codetune.records import Pick

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is known of a row; `refused` when scoring gave a reason instead of a number."""

    id: str
    ifd: float | None
    refused: bool
    cluster: int | None


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
    picks: tuple[Pick, ...]
    diagnostics: tuple[ClusterDiagnostics, ...]


class Needs(NamedTuple):
    scores: bool
    embeddings: bool


NEEDS: Mapping[str, Needs] = {
    "ifd_cluster": Needs(scores=True, embeddings=True),
    "random": Needs(scores=False, embeddings=False),
    "all": Needs(scores=False, embeddings=False),
}


def select(candidates: Sequence[Candidate], settings: Selection, seed: int) -> Selected:
    """The picks by cluster, then by IFD from the hardest down, then by id."""
    _require_known(candidates, NEEDS[settings.strategy])
    taken = set(STRATEGIES[settings.strategy](candidates, settings, seed))
    picks = sorted(
        (Pick(row.id, row.ifd, row.cluster) for row in candidates if row.id in taken),
        key=lambda pick: (-1 if pick.cluster is None else pick.cluster, -(pick.ifd or 0.0), pick.id),
    )
    clusters = _by_cluster(candidates)
    diagnostics = [_diagnose(clusters[cluster], settings, taken) for cluster in sorted(clusters, key=_none_first)]
    return Selected(tuple(picks), tuple(diagnostics))


def require_picks(selected: Selected, settings: Selection) -> None:
    """Raises DataError where nothing is taken, and says where the rows went."""
    if selected.picks:
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


def _take_hardest_of_each_cluster(candidates: Sequence[Candidate], settings: Selection, seed: int) -> Iterable[str]:
    for rows in _by_cluster(candidates).values():
        eligible = sorted((row for row in rows if _is_eligible(row, settings)), key=_hardest_first)
        quota = _share(len(eligible) if settings.ratio_of == "eligible" else len(rows), settings.ratio)
        yield from (row.id for row in eligible[:quota])


def _take_at_random(candidates: Sequence[Candidate], settings: Selection, seed: int) -> Iterable[str]:
    # By a digest and not by position: a larger ratio holds the smaller, and added rows move none of the others.
    drawn = sorted(row.id for row in candidates)
    drawn.sort(key=lambda row_id: hashlib.sha256(f"{seed}:{row_id}".encode()).digest())
    return drawn[: _share(len(drawn), settings.ratio)]


def _take_all(candidates: Sequence[Candidate], settings: Selection, seed: int) -> Iterable[str]:
    return (row.id for row in candidates)


STRATEGIES: Mapping[str, Callable[[Sequence[Candidate], Selection, int], Iterable[str]]] = {
    "ifd_cluster": _take_hardest_of_each_cluster,
    "random": _take_at_random,
    "all": _take_all,
}


def _share(rows: int, ratio: float) -> int:
    # In double precision, as published: int(100 * 0.29) is 28.
    return int(rows * ratio)


def _is_eligible(row: Candidate, settings: Selection) -> bool:
    return not row.refused and (row.ifd is None or row.ifd < settings.max_ifd)


def _hardest_first(row: Candidate) -> tuple[float, str]:
    return -(row.ifd or 0.0), row.id


def _none_first(cluster: int | None) -> int:
    return -1 if cluster is None else cluster


def _by_cluster(candidates: Iterable[Candidate]) -> dict[int | None, list[Candidate]]:
    clusters: dict[int | None, list[Candidate]] = defaultdict(list)
    for row in candidates:
        clusters[row.cluster].append(row)
    return clusters


def _require_known(candidates: Iterable[Candidate], needs: Needs) -> None:
    for row in candidates:
        lacks_score = needs.scores and row.ifd is None and not row.refused
        lacks_cluster = needs.embeddings and row.cluster is None
        if lacks_score or lacks_cluster:
            command = "score" if lacks_score else "embed"
            raise StaleError(
                f"Row {row.id} of the data set has no result of `{command}`. Expected: every row in it. "
                f"Run: codetune {command}"
            )


def _diagnose(rows: Sequence[Candidate], settings: Selection, taken: set[str]) -> ClusterDiagnostics:
    scores = sorted(row.ifd for row in rows if row.ifd is not None)
    refused = sum(row.refused for row in rows)
    # Only a strategy that reads scores drops by them.
    drops = NEEDS[settings.strategy].scores
    eligible = sum(_is_eligible(row, settings) for row in rows) if drops else len(rows) - refused
    return ClusterDiagnostics(
        cluster=rows[0].cluster,
        rows=len(rows),
        refused=refused,
        dropped=len(rows) - refused - eligible,
        eligible=eligible,
        taken=sum(row.id in taken for row in rows),
        ifd_quantiles=tuple(_quantile(scores, share) for share in QUANTILES) if scores else None,
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Linear between the two nearest, as numpy's default.

    >>> _quantile([1.0, 2.0, 4.0], 0.75)
    3.0
    """
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
