"""select: the rows worth training on -> `selection.jsonl`, chat format, in the strategy's order.

What scores.jsonl, embeddings.npy and the data set know of each row is joined by id into columns: some 20 bytes a row,
beside the one copy of the vectors that K-means makes for a moment."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codetune.data.ids import IdIndex, unpack_id
from codetune.errors import StaleError
from codetune.project.sections import Project
from codetune.selection.cluster import cluster_rows
from codetune.selection.select import (
    STRATEGIES,
    SelectionInputs,
    SelectionResult,
    SelectionStrategy,
    require_selected_rows,
)
from codetune.selection.select import select as select_rows
from codetune.stages.embed import EMBED
from codetune.stages.inputs import LEFT_OUT, artefact_input, dataset_input, left_out_facts, left_out_notes, reading_of
from codetune.stages.score import SCORE
from codetune.stages.stage import (
    Details,
    Input,
    Recipe,
    RunContext,
    Stage,
    StageOutput,
    StageRequest,
    StageResult,
)
from codetune.store import row_artefacts
from codetune.store.examples import example_ids
from codetune.store.manifest import read_manifest

CHUNK_ROWS = 4096


def _inputs(project: Project, request: StageRequest) -> Sequence[Input]:
    strategy = STRATEGIES[project.select.strategy]
    upstream = [SCORE] * strategy.needs_scores + [EMBED] * strategy.needs_embeddings
    return dataset_input(), *map(artefact_input, upstream)


def _write(context: RunContext, recipe: Recipe, request: StageRequest) -> StageOutput:
    settings = context.project.select
    selected = select_rows(join_rows(context, STRATEGIES[settings.strategy]), settings, context.project.seed)
    require_selected_rows(selected, settings)
    row_artefacts.write_selection(context.run, selected.rows)
    facts = {"clusters": [asdict(cluster) for cluster in selected.diagnostics], **left_out_facts(context)}
    return StageOutput(len(selected.rows.ids), _refused(context, selected), facts)


def _refused(context: RunContext, selected: SelectionResult) -> Counter[str]:
    """The rows that cannot be selected, by reason: those that reading refused, and those that scoring did or that are
    dropped by their IFD, where the strategy looks at scores."""
    settings = context.project.select
    if not STRATEGIES[settings.strategy].needs_scores:
        return Counter(reading_of(context).refused)
    scores = read_manifest(context.run.scores)
    assert scores is not None  # an input, of the same rows
    dropped = {f"IFD of {settings.max_ifd:g} or more": sum(cluster.dropped for cluster in selected.diagnostics)}
    return +Counter({**scores.refused, **dropped})


def join_rows(context: RunContext, strategy: SelectionStrategy) -> SelectionInputs:
    """The rows with the columns that the strategy needs. Raises StaleError where scores and embeddings are not of the
    same rows."""
    if not strategy.needs_scores:
        return SelectionInputs(np.sort(example_ids(context.run)), None, None)
    ids, difficulties = row_artefacts.read_difficulties(context.run)
    index = IdIndex(ids)
    if not strategy.needs_embeddings:
        order = np.argsort(ids)
        return SelectionInputs(ids[order], difficulties[order], None)
    embedded, clusters = _clusters(context, index)
    _require_embedded(context, ids[~np.isnan(difficulties)], embedded)
    return SelectionInputs(embedded, difficulties[index.positions(embedded)], clusters)


def _clusters(context: RunContext, scored: IdIndex) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """The embedded rows by their ids, and the cluster of each."""
    embeddings = row_artefacts.read_embeddings(context.run)
    unknown = embeddings.ids[~scored.holds(embeddings.ids)]
    if len(unknown):
        raise StaleError(
            f"{context.run.embeddings} holds {len(unknown)} rows that {context.run.scores} does not know, the first "
            f"is {unpack_id(int(unknown[0]))}; both must be of the same data set. "
            "Run: codetune score, then codetune embed"
        )
    order = np.argsort(embeddings.ids)
    with _reordered(embeddings.vectors, order, context.run.directory) as vectors:
        clusters = cluster_rows(vectors, context.project.select.clusters, context.project.seed)
    return embeddings.ids[order], clusters


@contextlib.contextmanager
def _reordered(
    vectors: NDArray[np.float32], order: NDArray[np.int64], directory: Path
) -> Iterator[NDArray[np.float32]]:
    """The vectors [rows, dim] in another order, in a file without a name: memory is for the copy of scikit-learn."""
    if not vectors.size:
        yield np.empty(vectors.shape, dtype=np.float32)
        return
    with tempfile.TemporaryFile(dir=directory) as file:
        os.posix_fallocate(file.fileno(), 0, vectors.nbytes)  # a full disk is an error here, not a SIGBUS later
        ordered = np.memmap(file, dtype=np.float32, mode="r+", shape=vectors.shape)
        for first in range(0, len(order), CHUNK_ROWS):
            chunk = order[first : first + CHUNK_ROWS]
            ordered[first : first + len(chunk)] = vectors[chunk]
        yield ordered


def _require_embedded(context: RunContext, scored: NDArray[np.uint64], embedded: NDArray[np.uint64]) -> None:
    """Every row with a score has a vector; a row without an instruction to embed has no score either."""
    lacking = scored[~IdIndex(embedded).holds(scored)]
    if len(lacking):
        raise StaleError(
            f"Row {unpack_id(int(lacking[0]))} has a score and no vector in {context.run.embeddings}, and so have "
            f"{len(lacking) - 1} more. Expected: every row in it. Run: codetune embed"
        )


def _details(result: StageResult) -> Details:
    clusters = result.facts.get("clusters", ())
    notes = left_out_notes(result.facts)
    if len(clusters) < 2:
        return Details(notes)
    keys = ("cluster", "rows", "refused", "dropped", "eligible", "taken")
    columns = ("cluster", "rows", "refused", "dropped by IFD", "eligible", "taken")
    return Details(notes, columns, [[str(cluster[key]) for key in keys] for cluster in clusters])


SELECT = Stage("select", _inputs, lambda run, request: run.selection, _write, details=_details, documented=(LEFT_OUT,))
