"""The rows that a selection chooses from, as columns joined by id: what scores.jsonl, embeddings.npy and the data set
know of each. Some 20 bytes a row, beside the one copy of the vectors that K-means holds."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from codetune import artefacts
from codetune.errors import StaleError
from codetune.ids import IdIndex, pack_ids, unpack_id
from codetune.records import Example
from codetune.selection.cluster import cluster_rows
from codetune.selection.select import Candidates, Needs
from codetune.stages import Desk


def unscored(examples: Iterable[Example]) -> Candidates:
    return Candidates(np.sort(pack_ids(example.id for example in examples)), None, None)


def joined_by_id(desk: Desk, needs: Needs) -> Candidates:
    """The scored rows, with their clusters where these are needed. Raises StaleError where scores and embeddings are
    not of the same rows."""
    ids, difficulties = artefacts.read_difficulties(desk.run)
    index = IdIndex(ids)
    if not needs.embeddings:
        order = np.argsort(ids)
        return Candidates(ids[order], difficulties[order], None)
    embedded, clusters = _clusters(desk, index)
    _require_embedded(desk, ids[~np.isnan(difficulties)], embedded)
    return Candidates(embedded, difficulties[index.places(embedded)], clusters)


def _clusters(desk: Desk, scored: IdIndex) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """The embedded rows by their ids, and the cluster of each. Raises StaleError where the embeddings are of other rows
    than the scores."""
    embeddings = artefacts.read_embeddings(desk.run)
    strangers = embeddings.ids[~scored.holds(embeddings.ids)]
    if len(strangers):
        raise StaleError(
            f"{desk.run.embeddings} holds {len(strangers)} rows that {desk.run.scores} does not know, the first is "
            f"{unpack_id(int(strangers[0]))}; both must be of the same data set. "
            "Run: codetune score, then codetune embed"
        )
    order = np.argsort(embeddings.ids)
    settings = desk.project.select
    # The one copy of the vectors that there is.
    return embeddings.ids[order], cluster_rows(embeddings.vectors[order], settings.clusters, desk.project.seed)


def _require_embedded(desk: Desk, scored: NDArray[np.uint64], embedded: NDArray[np.uint64]) -> None:
    """A row without an instruction to embed has no score either; every row with a score has a vector."""
    lacking = scored[~IdIndex(embedded).holds(scored)]
    if len(lacking):
        raise StaleError(
            f"Row {unpack_id(int(lacking[0]))} has a score and no vector in {desk.run.embeddings}, and so have "
            f"{len(lacking) - 1} more. Expected: every row in it. Run: codetune embed"
        )
