"""The rows that a selection chooses from, as columns joined by id: what scores.jsonl, embeddings.npy and the data set
know of each. Some 20 bytes a row, beside the one copy of the vectors that K-means makes for a moment."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codetune.data.ids import IdIndex, pack_ids, unpack_id
from codetune.errors import StaleError
from codetune.records import Example
from codetune.selection.cluster import cluster_rows
from codetune.selection.select import SelectionInputs, SelectionStrategy
from codetune.stages.status import RunContext
from codetune.store import row_artefacts

CHUNK_ROWS = 4096


def unscored(examples: Iterable[Example]) -> SelectionInputs:
    return SelectionInputs(np.sort(pack_ids(example.id for example in examples)), None, None)


def joined_by_id(context: RunContext, strategy: SelectionStrategy) -> SelectionInputs:
    """The scored rows, with their clusters where these are needed. Raises StaleError where scores and embeddings are
    not of the same rows."""
    ids, difficulties = row_artefacts.read_difficulties(context.run)
    index = IdIndex(ids)
    if not strategy.needs_embeddings:
        order = np.argsort(ids)
        return SelectionInputs(ids[order], difficulties[order], None)
    embedded, clusters = _clusters(context, index)
    _require_embedded(context, ids[~np.isnan(difficulties)], embedded)
    return SelectionInputs(embedded, difficulties[index.positions(embedded)], clusters)


def _clusters(context: RunContext, scored: IdIndex) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """The embedded rows by their ids, and the cluster of each. Raises StaleError where the embeddings are of other rows
    than the scores."""
    embeddings = row_artefacts.read_embeddings(context.run)
    strangers = embeddings.ids[~scored.holds(embeddings.ids)]
    if len(strangers):
        raise StaleError(
            f"{context.run.embeddings} holds {len(strangers)} rows that {context.run.scores} does not know, the first is "
            f"{unpack_id(int(strangers[0]))}; both must be of the same data set. "
            "Run: codetune score, then codetune embed"
        )
    order = np.argsort(embeddings.ids)
    with _in_order(embeddings.vectors, order, context.run.directory) as vectors:
        clusters = cluster_rows(vectors, context.project.select.clusters, context.project.seed)
    return embeddings.ids[order], clusters


@contextlib.contextmanager
def _in_order(vectors: NDArray[np.float32], order: NDArray[np.int64], directory: Path) -> Iterator[NDArray[np.float32]]:
    """The vectors in another order, in a file that has no name: memory is for the copy that scikit-learn makes."""
    if not vectors.size:
        yield np.empty(vectors.shape, dtype=np.float32)
        return
    with tempfile.TemporaryFile(dir=directory) as file:
        os.posix_fallocate(file.fileno(), 0, vectors.nbytes)  # a disk that is full says so here, not by SIGBUS
        ordered = np.memmap(file, dtype=np.float32, mode="r+", shape=vectors.shape)
        for first in range(0, len(order), CHUNK_ROWS):
            chunk = order[first : first + CHUNK_ROWS]
            ordered[first : first + len(chunk)] = vectors[chunk]
        yield ordered


def _require_embedded(context: RunContext, scored: NDArray[np.uint64], embedded: NDArray[np.uint64]) -> None:
    """A row without an instruction to embed has no score either; every row with a score has a vector."""
    lacking = scored[~IdIndex(embedded).holds(scored)]
    if len(lacking):
        raise StaleError(
            f"Row {unpack_id(int(lacking[0]))} has a score and no vector in {context.run.embeddings}, and so have "
            f"{len(lacking) - 1} more. Expected: every row in it. Run: codetune embed"
        )
