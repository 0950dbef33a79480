"""What scores.jsonl, embeddings.npy and the data set know of each row, joined by id into columns: some 76 bytes a row,
beside the one copy of the vectors that K-means makes for a moment."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codetune.console import quantity
from codetune.data.ids import IdIndex, unpack_id
from codetune.errors import DataError, StaleError
from codetune.records import Embeddings, ScoreColumns
from codetune.selection.mismatch import MismatchTest
from codetune.selection.row_vectors import Floats, RowVectors
from codetune.selection.selective_ifd import selective_ifd
from codetune.selection.strategies import SelectionInputs, SelectionStrategy
from codetune.stages.stage import RunContext
from codetune.store.examples import example_ids
from codetune.store.row_artefacts import read_embeddings, read_token_differences

CHUNK_ROWS = 4096


def join_rows(
    context: RunContext,
    strategy: SelectionStrategy,
    scores: ScoreColumns | None,
    test: MismatchTest | None,
    is_held: IdIndex,
) -> SelectionInputs:
    """The rows that are not held out, with the columns that the strategy needs. Raises StaleError where scores and
    embeddings are not of the same rows, or scores lack what the strategy needs."""
    known = example_ids(context.run) if scores is None else scores.ids
    known = known[~is_held.holds(known)]
    ids, clusters, vectors = np.sort(known), None, None
    if strategy.needs_embeddings:
        ids, clusters, vectors = _embedded_rows(context, IdIndex(known), is_held)
        _require_embedded(context, known if scores is None else known[~np.isnan(scores.ifd)], ids)
    if scores is None:
        return SelectionInputs(ids, None, clusters, vectors=vectors)
    order = IdIndex(scores.ids).positions(ids)
    return SelectionInputs(
        ids,
        scores.ifd[order],
        clusters,
        pmi=None if np.isnan(scores.pmi).all() else scores.pmi[order],
        pmi_limit=test.limits[order] if test and test.has_power else None,
        nll_conditional=scores.nll_conditional[order],
        answer_tokens=scores.answer_tokens[order],
        vectors=vectors,
        sifd=read_selective_ifd(context, scores)[order] if strategy.needs_tokens else None,
    )


def read_selective_ifd(context: RunContext, scores: ScoreColumns) -> Floats:
    """S-IFD of the rows of `scores`, in their order. Raises StaleError for scores without the differences of tokens."""
    wanted = IdIndex(scores.ids)

    def read() -> Iterator[NDArray[np.float32]]:
        for row_id, differences in read_token_differences(context.run):
            if wanted.find(row_id) is not None:
                yield differences

    without = np.count_nonzero(~np.isnan(scores.ifd)) - sum(len(differences) > 0 for differences in read())
    if without:
        raise StaleError(
            f"{context.run.scores} has no token_differences for {quantity(int(without), 'row')}, which select.strategy "
            "sifd needs. Run: codetune score --set score.token_differences=true (it makes two passes of these rows "
            "again, and changes no other value)"
        )
    return selective_ifd(read, len(scores.ids), context.project.select.token_share)


def _embedded_rows(
    context: RunContext, known: IdIndex, is_held: IdIndex
) -> tuple[NDArray[np.uint64], NDArray[np.int32], RowVectors]:
    """The embedded rows that are not held out by their ids, the cluster of each, and their vectors."""
    from codetune.selection.cluster import cluster_rows  # loads scikit-learn

    embeddings = read_embeddings(context.run)
    unknown = embeddings.ids[~known.holds(embeddings.ids) & ~is_held.holds(embeddings.ids)]
    if len(unknown):
        raise StaleError(
            f"{context.run.embeddings} holds {len(unknown)} rows that the data set or its scores lack, the first is "
            f"{unpack_id(int(unknown[0]))}. Expected: artefacts of the same rows. Run: codetune score, then codetune "
            "embed"
        )
    _require_finite(context, embeddings)
    order = np.argsort(embeddings.ids)
    order = order[~is_held.holds(embeddings.ids[order])]
    with _reordered(embeddings.vectors, order, context.run.directory) as vectors:
        clusters = cluster_rows(vectors, context.project.select.clusters, context.project.seed)
    return embeddings.ids[order], clusters, RowVectors(embeddings.vectors, order)


def _require_finite(context: RunContext, embeddings: Embeddings) -> None:
    for first in range(0, len(embeddings.ids), CHUNK_ROWS):
        is_finite = np.isfinite(embeddings.vectors[first : first + CHUNK_ROWS]).all(axis=1)
        if not is_finite.all():
            row = unpack_id(int(embeddings.ids[first + int(np.argmin(is_finite))]))
            raise DataError(
                f"The vector of row {row} in {context.run.embeddings} holds NaN or infinity. Expected: finite numbers. "
                f"The model that embeds fails on this instruction: set embed.model to another one and run codetune "
                "embed, or remove the row from the data set"
            )


@contextlib.contextmanager
def _reordered(
    vectors: NDArray[np.float32], order: NDArray[np.int64], directory: Path
) -> Iterator[NDArray[np.float32]]:
    """The vectors [rows, dim] at the positions `order`, in a file without a name: memory is for the copy of K-means."""
    shape = (len(order), vectors.shape[1])
    if 0 in shape:
        yield np.empty(shape, dtype=np.float32)
        return
    with tempfile.TemporaryFile(dir=directory) as file:
        # A full disk is an error here, not a SIGBUS later.
        os.posix_fallocate(file.fileno(), 0, shape[0] * shape[1] * vectors.itemsize)
        ordered = np.memmap(file, dtype=np.float32, mode="r+", shape=shape)
        for first in range(0, len(order), CHUNK_ROWS):
            chunk = order[first : first + CHUNK_ROWS]
            ordered[first : first + len(chunk)] = vectors[chunk]
        yield ordered


def _require_embedded(context: RunContext, wanted: NDArray[np.uint64], embedded: NDArray[np.uint64]) -> None:
    """Every row that can be selected has a vector; a row without an instruction to embed has no score either."""
    lacking = wanted[~IdIndex(embedded).holds(wanted)]
    if len(lacking):
        raise StaleError(
            f"Row {unpack_id(int(lacking[0]))} can be selected and has no vector in {context.run.embeddings}, and "
            f"so have {len(lacking) - 1} more. Expected: every row in it. Run: codetune embed"
        )
