"""The seven stages in their order. Adding one is a file with a `Stage`, its name in `StageName`, and a line here."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from codetune.errors import UsageError
from codetune.launch.dispatch import Job, WorkerContext
from codetune.launch.workers import JSON
from codetune.stages.embed import EMBED
from codetune.stages.evaluate import EVALUATE
from codetune.stages.generate import GENERATE
from codetune.stages.sanitize import SANITIZE
from codetune.stages.score import SCORE
from codetune.stages.select import SELECT
from codetune.stages.stage import Stage
from codetune.stages.train import TRAIN

STAGES: tuple[Stage, ...] = (SCORE, EMBED, SELECT, TRAIN, GENERATE, SANITIZE, EVALUATE)


def stages_between(first: str, last: str) -> Sequence[Stage]:
    """The stages from `first` to `last`, both included. Raises UsageError for unknown names and for the wrong order."""
    begin, end = STAGES.index(stage_named(first)), STAGES.index(stage_named(last))
    if begin > end:
        order = " ".join(stage.name for stage in STAGES)
        raise UsageError(
            f"--from {first} --to {last}: {last} comes before {first}. The order is: {order}. Exchange the two"
        )
    return STAGES[begin : end + 1]


def run_job(job: Job, worker: WorkerContext) -> JSON:
    """A worker process's share of the work of the job's stage."""
    stage = stage_named(job.stage)
    assert stage.in_process is not None
    return stage.in_process(job, worker)


def stage_named(name: str) -> Stage:
    """Raises UsageError for an unknown name, with the nearest one."""
    names = [stage.name for stage in STAGES]
    if name in names:
        return STAGES[names.index(name)]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise UsageError(f"{name} is not a stage{hint} Expected one of: {', '.join(names)}")
