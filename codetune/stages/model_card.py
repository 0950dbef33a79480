"""The card of the trained model (CARD, beside its weights): written when a training has ended, and its results filled
in whenever some come.

A card is for people and for the Hub. It is no part of what a model is known by, so neither results nor the text of a
user make anything stale. Shown are results of this very model, by its digest, on whole benchmarks, or on all
their tasks but those that chose its weights, and those of the base model on the same tasks and rows. Results whose
completions were made anew are taken out. A card that was deleted is written again; one that a user wrote stays, and
gets results only if it has the marks for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from codetune.benchmark.benchmarks import HOLDOUT, benchmark_digest, read_problems
from codetune.benchmark.tasks_apart import tasks_left
from codetune.data.hub_upload import license_fields
from codetune.errors import InputError, StaleError
from codetune.model.file_check import ADAPTER_CONFIG
from codetune.project.file import commented_yaml
from codetune.project.keys import keys, required, value_at
from codetune.project.sections import Project
from codetune.records import BASE, TUNED
from codetune.stages.benchmarks import tasks_apart_at_hand
from codetune.stages.card_text import BenchmarkResults, CardFacts, Source, card, with_results
from codetune.stages.dataset import CONTENT
from codetune.stages.inputs import is_on_hub, model_here, published_name
from codetune.stages.stage import RunContext, Settings
from codetune.stages.tasks_apart import TASKS
from codetune.store.digests import combined
from codetune.store.files import write_text
from codetune.store.locks import waiting
from codetune.store.manifest import Manifest, read_manifest
from codetune.store.run_directory import CARD, MERGED_ADAPTERS

if TYPE_CHECKING:
    from codetune.benchmark.evaluate import Report
    from codetune.benchmark.likelihood import LikelihoodReport

PEFT_FORM = "# Model Card for Model ID"  # the title of the form that peft writes beside adapters, to be filled in
# Keys whose values may be paths of this machine, and those that say nothing to another one.
NAMES = ("model.path", "score.model", "embed.model", "train.tasks", "evaluate.benchmarks", "select.decontaminate")
OF_THIS_MACHINE = ("output_dir", "slurm.")


def update_card(context: RunContext) -> None:
    """Writes the card of the finished model, and of the adapters that were merged into it, where there is none, and the
    results that are there into those that have a place for them."""
    model = context.run.model
    training = _sealed(context, model)
    if training is None:
        return
    with waiting(context.run, "card"):  # so that the last of several commands sees the results of all
        results, losses = list(_benchmarks(context, training)), _losses(context, training)
        for directory in (model, model / MERGED_ADAPTERS):
            if directory.is_dir() and (found := _read(directory / CARD)) is not None:
                is_adapter = (directory / ADAPTER_CONFIG).is_file()
                text = found or card(_facts(context, training), is_adapter)
                text = with_results(text, context.project.name, results, losses)
                if text != found:
                    write_text(directory / CARD, text)


def _read(path: Path) -> str | None:
    """The text of a card; empty where there is none, None for one that is no text and so nothing of ours."""
    try:
        text = path.read_text(encoding="utf-8")
        return "" if PEFT_FORM in text else text
    except FileNotFoundError:
        return ""
    except ValueError:
        return None


def _facts(context: RunContext, training: Manifest) -> CardFacts:
    project, run = context.project, context.run
    selection = _sealed(context, run.selection)
    if selection is not None and selection.digest != training.inputs["select"]:
        selection = None
    reading = _sealed(context, run.examples)
    if selection is None or (reading is not None and reading.facts[CONTENT] != selection.inputs["dataset"]):
        reading = None
    base = required(project.model.path, "model.path")
    return CardFacts(
        project.name,
        Source(published_name(project, base), is_on_hub(project, base)),
        [_source(context, required(dataset.path, "dataset.path")) for dataset in project.datasets],
        _licence(context),
        replace(training, names={key: published_name(project, name) for key, name in training.names.items()}),
        selection and replace(selection, settings=_without_paths(project, selection.settings)),
        reading,
        commented_yaml(_settings(context, [training, *([selection] if selection else [])])),
    )


def _source(context: RunContext, name: str) -> Source:
    return Source(published_name(context.project, name), is_on_hub(context.project, name))


def _licence(context: RunContext) -> dict[str, str]:
    """That of the base model, which holds for what is made of it; empty where its card is not here."""
    directory = model_here(context.project, "model.path")
    return license_fields((directory and _read(directory / CARD)) or "")


def _settings(context: RunContext, made_by: list[Manifest]) -> dict[str, object]:
    """The settings of the project by dotted key, as they were where they made the model, without paths."""
    project, run = context.project, context.run
    inputs = {digest for one in made_by for digest in one.inputs.values()}
    earlier = [one for path in (run.scores, run.embeddings) if (one := _sealed(context, path)) is not None]
    made_by = [*(one for one in earlier if one.digest in inputs), *made_by]
    sealed = {key: value for one in made_by for key, value in {**one.settings, **one.names}.items()}
    values: dict[str, object] = {}
    for key, _ in keys():
        if not key.startswith(("dataset.", *OF_THIS_MACHINE)):
            values[key] = sealed.get(key, value_at(project, key))
    values = _without_paths(project, values)
    datasets = [{**one.model_dump(), "path": _published(project, one.path)} for one in project.datasets]
    if isinstance(project.dataset, list):
        return {**values, "dataset": datasets}
    return {**values, **{f"dataset.{key}": value for key, value in datasets[0].items()}}


def _without_paths(project: Project, settings: Mapping[str, object]) -> dict[str, object]:
    return {key: _published(project, value) if key in NAMES else value for key, value in settings.items()}


def _published(project: Project, value: object) -> object:
    """A name, or each name of a list, without the directory of a path."""
    if isinstance(value, list):
        return [_published(project, one) for one in value]
    return published_name(project, value) if isinstance(value, str) else value


def _benchmarks(context: RunContext, training: Manifest) -> Iterator[BenchmarkResults]:
    """The results of benchmarks, whole but for the tasks that chose the weights, by their names."""
    from codetune.benchmark.evaluate import compare  # loads scipy

    for path in sorted(context.run.evaluations.glob(f"*/{TUNED}.json")):
        benchmark = path.parent.name
        own, base = (_report(context, training, benchmark, label) for label in (TUNED, BASE))
        if benchmark != HOLDOUT and own is not None:
            is_alike = base is not None and base.tasks == own.tasks
            answered = {BASE: base, TUNED: own} if base is not None and is_alike else {TUNED: own}
            reports = [one.report for one in answered.values()]
            how = {label: one.settings for label, one in answered.items()}
            yield BenchmarkResults(reports, how, compare(reports, context.project.seed))


@dataclass(frozen=True, slots=True)
class _Answered:
    """The report of a model on a benchmark, the settings that made it answer, and the digest of the tasks."""

    report: Report
    settings: Settings
    tasks: str


def _report(context: RunContext, training: Manifest, benchmark: str, label: str) -> _Answered | None:
    """The report of one model on one benchmark; None where it is of another model, or of other tasks than all but those
    that chose the weights."""
    run = context.run
    paths = [of_kind(benchmark, label) for of_kind in (run.evaluation, run.solutions, run.completions)]
    evaluated, solved, generated = (_sealed(context, path) for path in paths)
    if evaluated is None or solved is None or generated is None:
        return None
    is_chain = (evaluated.inputs["solutions"], solved.inputs["generate"]) == (solved.digest, generated.digest)
    if not is_chain or generated.inputs["model"] != _digest(context, training, label):
        return None
    report: Report = json.loads(paths[0].read_text(encoding="utf-8"))
    is_expected = report["tasks"] == _expected_tasks(context, training, evaluated, report["tasks_in_benchmark"])
    return _Answered(report, generated.settings, evaluated.inputs["benchmark"]) if is_expected else None


def _expected_tasks(context: RunContext, training: Manifest, evaluated: Manifest, whole: int) -> int | None:
    """How many tasks an evaluation must have counted: of the `whole`, all but those that chose the weights. None where
    it counted others, or where it cannot be known here."""
    if TASKS not in training.inputs:
        return whole
    with suppress(InputError, OSError):  # a file of tasks that is broken by now
        apart, file = tasks_apart_at_hand(context), Path(evaluated.facts["benchmark_file"])
        if apart is not None and benchmark_digest(apart) == training.inputs[TASKS]:
            left = tasks_left(read_problems(file), apart)
            return len(left) if benchmark_digest(left) == evaluated.inputs["benchmark"] else None
    return None


def _losses(context: RunContext, training: Manifest) -> dict[str, LikelihoodReport]:
    """The losses on the held-out rows, by model: that of this model, and that of the base model on the same rows by the
    same settings."""
    found: dict[str, LikelihoodReport] = {}
    measured_on = None
    for label in (TUNED, BASE):
        path = context.run.evaluation(HOLDOUT, label)
        manifest = _sealed(context, path)
        if manifest is None or manifest.inputs["model"] != _digest(context, training, label):
            continue
        rows = manifest.inputs["rows"], manifest.settings
        measured_on = rows if label == TUNED else measured_on
        if rows == measured_on:
            found[label] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _digest(context: RunContext, training: Manifest, label: str) -> str:
    """Of the base model, or of the trained one; of adapters together with the base model."""
    base = training.inputs["base"]
    if label == BASE:
        return base
    is_adapter = (context.run.model / ADAPTER_CONFIG).is_file()
    return combined([training.digest, base]) if is_adapter else training.digest


def _sealed(context: RunContext, artefact: Path) -> Manifest | None:
    """The manifest of an artefact that is finished and unchanged, else None."""
    with suppress(StaleError):  # a damaged manifest; the stage that needs it says so
        manifest = read_manifest(artefact)
        if manifest is not None and context.digests.artefact(artefact) == manifest.digest:
            return manifest
    return None
