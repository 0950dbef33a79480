"""What the stages of one command will need, checked before the first of them begins: requests, inputs, packages and
devices.

Each error is the one that the stage itself would raise, hours later. A stage that is done needs nothing. Checks nothing
that only the work of an earlier stage can show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from codetune.errors import UsageError
from codetune.stages.runner import require_replaceable
from codetune.stages.stage import RunContext, Stage, StageRequest
from codetune.stages.status import stage_status

Work = Sequence[tuple[Stage, StageRequest]]


def check_ahead(context: RunContext, work: Work) -> None:
    """Raises the first error that the work, done in its order, is certain to end in. The model of a benchmark stage is
    absent from its request where the work makes it."""
    pending = [(stage, request) for stage, request in work if is_pending(context, stage, request, work)]
    for stage, request in pending:
        stage.check(context, request)
    paths = [_paths_of_inputs(context, stage, request, work) for stage, request in pending]
    for (stage, request), found in zip(pending, paths, strict=True):
        stage.check_ahead(context, request, found)


def require_samples(context: RunContext) -> None:
    """Told before hours of generation, not after. Raises UsageError."""
    most, samples = max(context.project.evaluate.k), context.project.generate.samples_per_task
    if most > samples:
        raise UsageError(
            f"evaluate.k asks for pass@{most}, and generate.samples_per_task makes {samples} of a task. Expected: as "
            f"many samples as the largest k. Set generate.samples_per_task to {most} or more (and generate.temperature "
            "above 0), or evaluate.k lower"
        )


def is_pending(context: RunContext, stage: Stage, request: StageRequest, work: Work) -> bool:
    """Whether the stage has something to do. Raises StaleError where it would replace what the request may not."""
    if _lacks_model(stage, request):
        return True
    makes_inputs = any(part.upstream is made for part in stage.inputs(context.project, request) for made, _ in work)
    # Artefacts that this command does not make again are taken as they are, with the flags that made them.
    found = stage_status(context, stage, request, allow_overrides=not makes_inputs)
    if found.state == "stale" and found.manifest is not None:
        require_replaceable(context, stage, request, found.manifest, found.why)
    return found.state != "done"


def _paths_of_inputs(context: RunContext, stage: Stage, request: StageRequest, work: Work) -> dict[str, Path]:
    """The paths of the inputs that are there, because this work does not make them. Raises InputError for one that is
    missing."""
    if _lacks_model(stage, request):
        return {}
    made = [stage for stage, _ in work]
    inputs = [part for part in stage.inputs(context.project, request) if part.upstream not in made]
    found = {part.name: part.resolve(context, request).path for part in inputs}
    return {name: path for name, path in found.items() if path is not None}


def _lacks_model(stage: Stage, request: StageRequest) -> bool:
    return stage.of_benchmark and request.model is None
