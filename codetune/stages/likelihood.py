"""The second form of evaluate, for the held-out rows instead of a benchmark's tasks: rows and a model -> nats a learned
token, in `evaluation/holdout/<label>.json`. Nothing is generated, so there is nothing to sanitize or to run. The
settings that seal it are marked "holdout" in `project/sections.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from codetune import console
from codetune.benchmark.benchmarks import HOLDOUT
from codetune.errors import DataError, StaleError, UsageError
from codetune.project.sections import Project
from codetune.records import BASE, TUNED
from codetune.stages.evaluate import EVALUATE
from codetune.stages.generate import model_of_request
from codetune.stages.inputs import model_here
from codetune.stages.model_card import update_card
from codetune.stages.model_ref import model_ref
from codetune.stages.runner import run_stage
from codetune.stages.select import SELECT
from codetune.stages.stage import (
    Input,
    Recipe,
    Resolved,
    RunContext,
    SealedArtefact,
    Settings,
    Stage,
    StageOutput,
    StageRequest,
    StageResult,
)
from codetune.stages.status import require
from codetune.stages.train import CHAT_FORMAT, with_chat_format
from codetune.store.files import write_text
from codetune.store.row_artefacts import read_selection

if TYPE_CHECKING:
    from codetune.benchmark.likelihood import LikelihoodComparison, LikelihoodReport
    from codetune.model.likelihood import CausalScorer


def measure_likelihoods(context: RunContext, names: Sequence[str]) -> Iterator[StageResult]:
    """Measures the models of these names, a model with two names once, or `tuned`, if there is one, against `base`. All
    names are resolved before the first is measured. Raises UsageError for an unknown one."""
    names = names or ([BASE, TUNED] if context.run.model.exists() else [BASE])
    models = {model.label: model for model in [model_ref(context, name) for name in names]}
    for label, model in models.items():
        yield run_stage(context, EVALUATE_HOLDOUT, StageRequest(benchmark=HOLDOUT, label=label, model=model))


def measure_holdout(
    context: RunContext, names: Sequence[str]
) -> tuple[list[LikelihoodReport], list[LikelihoodComparison]]:
    """The loss of each model on the held-out rows, and the comparison of every two."""
    return likelihoods_in(context, list(measure_likelihoods(context, names)))


def likelihoods_in(
    context: RunContext, results: Sequence[StageResult]
) -> tuple[list[LikelihoodReport], list[LikelihoodComparison]]:
    """The losses among the results, and the comparison of every two."""
    from codetune.benchmark.likelihood import compare_likelihoods

    found = [result.artefact for result in results if result.stage == EVALUATE_HOLDOUT.name]
    reports = [read_likelihood(path) for path in found if path.parent.name == HOLDOUT]
    return reports, compare_likelihoods(reports, context.project.seed)


def require_no_parts(
    limit: int | None, tasks: Sequence[str], samples: Path | None = None, complete: bool = False, after: str = ""
) -> None:
    """Raises UsageError for flags that choose tasks or samples: held-out rows have none."""
    if limit is not None or tasks or samples is not None or complete or after:
        raise UsageError(
            "The held-out rows are no tasks, and the loss on them needs no samples. Expected: holdout without --limit, "
            "--task, --after, --samples and --complete. Leave them out"
        )


def read_likelihood(path: Path) -> LikelihoodReport:
    """The report of one model on the held-out rows."""
    report: LikelihoodReport = json.loads(path.read_text(encoding="utf-8"))
    return report


def _inputs(project: Project, request: StageRequest) -> Sequence[Input]:
    return Input("rows", _resolve_rows, _changed_rows), model_of_request()


def _resolve_rows(context: RunContext, request: StageRequest) -> Resolved:
    """The held-out rows by their content: a selection of other rows, with the same ones held out, changes nothing."""
    require(context, SELECT)
    if not context.run.holdout.exists():
        raise StaleError(
            f"{context.run.selection} was made with train.holdout 0, so no rows are held out. Expected: rows that no "
            "model was trained on. Set train.holdout (a number of rows, or a share), then run: codetune select"
        )
    return Resolved(context.digests.file(context.run.holdout), context.run.holdout)


def _changed_rows(context: RunContext, request: StageRequest, sealed: SealedArtefact) -> str:
    rows = context.run.holdout
    is_same = rows.exists() and context.digests.file(rows) == sealed.manifest.inputs["rows"]
    return "" if is_same else f"{rows} has changed since {sealed.path} was made"


def _settings(context: RunContext, request: StageRequest, settings: Settings) -> Settings:
    """The settings with the chat format of the model, where the project names none."""
    base = model_here(context.project, "model.path")
    if settings[CHAT_FORMAT] is not None or base is None:
        return settings
    return {**settings, CHAT_FORMAT: with_chat_format(context.project, base).model.chat_format}


def _write(context: RunContext, recipe: Recipe, request: StageRequest) -> StageOutput:
    from codetune.benchmark.likelihood import count_refusals, measure, report_likelihood
    from codetune.data.token_cache import TokenizedRows
    from codetune.model.load import load_tokenizer

    assert request.model is not None
    settings = context.project.model.model_copy(update={"chat_format": recipe.settings[CHAT_FORMAT]})
    project = context.project.model_copy(update={"model": settings})
    tokenizer = load_tokenizer(request.model.tokenizer)
    rows = TokenizedRows(read_selection(context.run.holdout), project, tokenizer)
    scorer = _scorer(project, request.model.directory)
    tracked = console.track(measure(rows, scorer), f"evaluate {HOLDOUT} {request.label}", None, "row")
    found = list(tracked)
    losses = {row[0]: row[1:] for row in found if isinstance(row, tuple)}
    refused = count_refusals([*rows.dropped, *(row for row in found if not isinstance(row, tuple))])
    if not losses:
        raise DataError(
            f"None of the held-out rows in {context.run.holdout} has a loss ({console.counts(refused)}). Expected: one "
            "at least. Raise train.max_length or train.holdout"
        )
    report = report_likelihood(request.label, losses, refused, context.project.seed)
    write_text(recipe.artefact, json.dumps(report, indent=2) + "\n")
    return StageOutput(report["rows"], refused)


def _scorer(project: Project, directory: Path) -> CausalScorer:
    from codetune.launch.devices import choose_device
    from codetune.model.likelihood import CausalScorer, load_scoring_model, measured_tokens_per_pass

    network = load_scoring_model(directory, project.model, device := choose_device())
    longest = project.train.max_length
    return CausalScorer(network, longest if device == "cpu" else measured_tokens_per_pass(network, longest))


EVALUATE_HOLDOUT = Stage(
    EVALUATE.name,
    _inputs,
    lambda run, request: run.evaluation(HOLDOUT, request.label),
    _write,
    of_benchmark=True,
    seal="holdout",
    settings=_settings,
    afterwards=update_card,
    is_taken_over=True,
)
