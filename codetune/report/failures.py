"""Everything that the stages of a project would fail in later, found before the first of them begins. Unlike
`stages/checks.py`, which stops at the first error for the command that is about to run, this collects all of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from codetune.errors import CodetuneError
from codetune.project.sections import Training
from codetune.report.requirements import unmet_requirements
from codetune.stages.benchmarks import distinct_benchmarks, open_benchmark
from codetune.stages.checks import require_samples
from codetune.stages.pipeline import STAGES
from codetune.stages.stage import RunContext, StageRequest
from codetune.stages.train import TRAIN
from codetune.text import gigabytes
from codetune.training.memory import ModelShape, optimizer_bytes, trained_weights

T = TypeVar("T")
BYTES_PER_SCORE = 400  # a line of scores.jsonl, and the same in its log
EMBEDDING_WIDTH = 768  # of the usual encoder, in float32


@dataclass(slots=True)
class FailuresAhead:
    """The errors that were found, each once, in the order of the stages."""

    found: list[str] = field(default_factory=list)

    def attempt(self, work: Callable[[], T]) -> T | None:
        """What `work` returns; None where it raises an error of the user's, which is kept."""
        try:
            return work()
        except CodetuneError as error:
            self.add(str(error))
            return None

    def add(self, message: str) -> None:
        if message not in self.found:
            self.found.append(message)


def check_surroundings(ahead: FailuresAhead) -> None:
    """Packages in other versions than this one works with."""
    for message in unmet_requirements():
        ahead.add(message)


def check_stages(context: RunContext, ahead: FailuresAhead, paths: Mapping[str, Path]) -> dict[str, int]:
    """What each stage checks by itself ahead of the others, but for train, whose model and device the plan checks.
    `context` may write; `paths` are the data set and the models that were found, by the keys that name them; a stage
    that lacks one is not checked. Returns the number of tasks of each benchmark that can be read."""
    ahead.attempt(partial(require_samples, context))
    names = ahead.attempt(partial(distinct_benchmarks, context)) or ()
    opened = {name: ahead.attempt(partial(open_benchmark, context, name)) for name in names}
    for stage in STAGES:
        if stage is not TRAIN and stage.is_needed(context.project):
            request = StageRequest()
            ahead.attempt(partial(stage.check, context, request))
            named = [part for part in stage.inputs(context.project, request) if part.setting]
            if all(part.setting in paths for part in named):
                found = {part.name: paths[part.setting] for part in named}
                ahead.attempt(partial(stage.check_ahead, context, request, found))
    return {name: len(benchmark.problems) for name, benchmark in opened.items() if benchmark is not None}


def check_disk(context: RunContext, ahead: FailuresAhead, needed: int) -> int:
    """The free bytes where the run lies."""
    place = next(path for path in (context.run.directory, *context.run.directory.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        ahead.add(f"{place}: no permission to write. Expected: a directory for the run. Set output_dir to another one")
    if needed > free:
        ahead.add(
            f"{place} has {gigabytes(free)} free. Expected: {gigabytes(needed)} for checkpoints, model and artefacts. "
            "Free some space, set output_dir to another disk, or lower train.keep_checkpoints"
        )
    return free


def disk_bytes(shape: ModelShape, training: Training, rows: int, *, with_scores: bool, with_embeddings: bool) -> int:
    """The checkpoints (one more than are kept, while the last is written: weights in float32 and the state of the
    optimizer), the model, scores and embeddings with their logs."""
    trained = trained_weights(shape, training)
    checkpoint = 4 * trained + optimizer_bytes(shape, training)
    model = 2 * (shape.weights if training.method == "full" or training.merge else trained)
    artefacts = 2 * rows * (BYTES_PER_SCORE * with_scores + 4 * EMBEDDING_WIDTH * with_embeddings)
    return (training.keep_checkpoints + 1) * checkpoint + model + artefacts
