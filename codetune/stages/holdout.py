"""The held-out rows of a project: select sets them apart before everything else, in `holdout.jsonl`; train and evaluate
measure the loss on them. They are drawn from all usable rows of the data set, whatever the strategy and its filters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from codetune import console
from codetune.data.ids import IdIndex
from codetune.records import Refusal
from codetune.selection.duplicates import group_repeats
from codetune.selection.holdout import draw_holdout, holdout_size
from codetune.stages.dataset import examples_manifest
from codetune.stages.stage import RunContext, StageRequest
from codetune.store.examples import open_lines, read_example, read_examples
from codetune.store.row_artefacts import read_scores

HELD_OUT = "held out"  # the reason in selection.excluded.jsonl


def find_holdout(context: RunContext) -> NDArray[np.uint64]:
    """The ids of the held-out rows, ascending. Raises DataError where `train.holdout` leaves no row to train on, or
    holds out none."""
    if not context.project.train.holdout:
        return np.empty(0, dtype=np.uint64)
    size = holdout_size(context.project.train.holdout, examples_manifest(context).rows)
    rows = console.track(read_examples(context.run), "select: held-out rows", None, "row")
    with open_lines(context.run) as line_of, TemporaryFile(dir=context.run.directory) as file:
        ids, group = group_repeats(rows, lambda row: read_example(line_of(row)), file)
    return draw_holdout(ids, group, size, context.project.seed)


def check_holdout(context: RunContext, request: StageRequest, paths: Mapping[str, Path]) -> None:
    """Raises DataError where `train.holdout` leaves no row to train on."""
    if "dataset" in paths:
        holdout_size(context.project.train.holdout, examples_manifest(context).rows)


def count_refused_holdout(context: RunContext, held: IdIndex) -> Counter[str]:
    """The held-out rows that have no score, by the reason."""
    rows = read_scores(context.run) if len(held) else iter(())
    refused = [row for row in rows if isinstance(row, Refusal)]
    return Counter(row.kind for row in refused if row.id is not None and held.find(row.id) is not None)
