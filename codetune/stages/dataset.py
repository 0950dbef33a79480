"""The data set as the stages read it: the rows of `examples.jsonl`, written by the stage that needs rows first, and
written again where a file of the data set changed; and what manifests, notes and warnings say of the reading. A data
set is known by its content: another spelling of a path, a copy or a newer time changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from codetune import console
from codetune.console import quantity
from codetune.data.mixture import MixedRows, SourceCounts
from codetune.data.row_formats import TURN_FORMATS
from codetune.data.source import DataSource, dataset_fingerprint, files_of_other_splits, is_here, with_columns
from codetune.errors import DataError
from codetune.project.keys import required, value_at
from codetune.project.sections import Dataset, NamedDataset, Project
from codetune.records import Refusal
from codetune.stages.runner import other_value
from codetune.stages.stage import Input, Resolved, RunContext, SealedArtefact, StageRequest, StageResult
from codetune.store.digests import combined
from codetune.store.examples import count_sources, read_rows, write_examples
from codetune.store.locks import waiting
from codetune.store.manifest import Manifest, read_manifest, write_manifest
from codetune.store.takeover import take_over

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONTENT = "content"  # fact of examples.jsonl: its digest without the places of the rows
LEFT_OUT = "left_out"  # fact of every stage that reads rows: column with context that is not read -> rows that have it
FOUND = "columns_found"  # fact of examples.jsonl: whether the project named its columns
ROW_FORMATS = "row_formats"  # fact of every stage that reads rows: name of a row format -> usable rows
COLUMNS = "columns"  # fact of every stage that reads rows: the columns that were found, by their keys
SOURCES = "sources"  # fact of every stage that reads rows: name of one of several data sets -> its rows
READING_FACTS = (LEFT_OUT, ROW_FORMATS, COLUMNS, SOURCES)
TAKEN_BY_SOURCE = "taken_by_source"  # fact of select and train: name of one of several data sets -> rows that it has
MIXTURE = "dataset"  # setting of examples.jsonl: the names of several data sets
READING_KEYS = ("split", "instruction", "response")
SHOWN_FILES = 3


def dataset_input() -> Input:
    """The rows of the data set. `examples.jsonl` is written, or written again where a file of the data set changed."""
    return Input("dataset", _resolve_dataset, _changed_dataset, "dataset.path")


def ensure_examples(context: RunContext) -> Manifest:
    """The manifest of `examples.jsonl`, after the data set was read where it was not yet, or has changed since.

    Raises DataError where no row can be used."""
    run, named = context.run, dataset_paths(context.project)
    with waiting(run, "examples"):
        inputs, names = {"dataset": fingerprint(context)}, {"dataset.path": named}  # rows are named by it
        sources = _sources_with_columns(context, inputs["dataset"])
        settings = _reading_settings(sources)
        manifest = read_manifest(run.examples)

        def is_wanted(found: Manifest) -> bool:
            return (found.inputs, found.settings, found.names) == (inputs, settings, names)

        if manifest is None or not is_wanted(manifest) or context.digests.file(run.examples) != manifest.digest:
            _say_found(context.project, sources)
            manifest = take_over(run, context.digests, run.examples, is_wanted)
            if manifest is not None:
                write_manifest(run.examples, manifest)
        if manifest is None:
            rows = MixedRows(sources)
            found = write_examples(run, console.track(iter(rows), "reading the data set", None, "row"))
            digest = context.digests.file(run.examples)
            facts: dict[str, object] = {CONTENT: found.digest, LEFT_OUT: dict(sorted(found.left_out.items()))}
            facts[ROW_FORMATS] = dict(sorted(found.row_formats.items()))
            facts[FOUND] = [source.dataset for source in sources] != [*context.project.datasets]
            facts |= {SOURCES: rows.counts} if isinstance(context.project.dataset, list) else {}
            _warn_of_unread(context, sources, found.left_out)
            _warn_of_turns(context.project, found.row_formats)
            refused = dict(found.refused)
            manifest = Manifest("examples", digest, found.rows, refused, inputs, settings, {}, 0.0, facts, names)
            write_manifest(run.examples, manifest)
    if not manifest.rows:
        first = next((row.at for row in read_rows(run) if isinstance(row, Refusal)), None)
        reasons = f"{console.counts(manifest.refused)}; the first: {first}" if first else "it is empty"
        has_pairs = any(source.dataset.instruction is not None for source in sources)  # turns need no columns
        raise DataError(
            f"{named} holds no usable row ({reasons}); expected instructions with answers. "
            f"Fix the data{', or dataset.instruction and dataset.response' if has_pairs else ''}"
        )
    return manifest


def examples_manifest(context: RunContext) -> Manifest:
    """The manifest of `examples.jsonl`, which a stage with the data set among its inputs has made sure of."""
    manifest = read_manifest(context.run.examples)
    assert manifest is not None
    return manifest


def reading_facts(context: RunContext) -> dict[str, object]:
    """For the manifest of a stage that reads rows: their formats, the columns that were found, and those with context
    that are not read."""
    reading = examples_manifest(context)
    known = {name: reading.facts[name] for name in (LEFT_OUT, ROW_FORMATS, SOURCES) if reading.facts.get(name)}
    if not reading.facts.get(FOUND):
        return known
    keys = ("instruction", "response")
    names = reading.settings.get(MIXTURE)
    if not isinstance(names, list):
        return {**known, COLUMNS: {key: reading.settings[f"dataset.{key}"] for key in keys}}
    return {
        **known,
        COLUMNS: {name: {key: reading.settings[f"dataset.{name}.{key}"] for key in keys} for name in names},
    }


def rows_by_source(context: RunContext, ids: Callable[[], NDArray[np.uint64]]) -> dict[str, object]:
    """For the manifest of a stage that takes rows: how many each of several data sets has among `ids`."""
    reading = read_manifest(context.run.examples)
    is_mixed = reading is not None and SOURCES in reading.facts
    return {TAKEN_BY_SOURCE: count_sources(context.run, ids())} if is_mixed else {}


def left_out_notes(of: StageResult | Manifest) -> list[str]:
    """What a finished stage says of several data sets, and of columns with context that are not read."""
    facts = of.facts
    taken = facts.get(TAKEN_BY_SOURCE)
    sources = {name: "" if taken is None else f"; {taken.get(name, 0):,} taken" for name in facts.get(SOURCES, {})}
    lines = [f"{line}{sources[name]}" for name, line in source_lines(facts.get(SOURCES, {})).items()]
    return lines + ([f"not read: {_listed(facts[LEFT_OUT])}"] if LEFT_OUT in facts else [])


def source_lines(sources: Mapping[str, SourceCounts]) -> dict[str, str]:
    """A line for each of several data sets, by its name."""
    return {name: f"{name}: {_source_line(found)}" for name, found in sources.items()}


def _source_line(found: SourceCounts) -> str:
    """What one of several data sets gives to the mixture."""
    left = [f"{found['left_by_weight']:,} left by its weight"] if "left_by_weight" in found else []
    again = [f"{quantity(count, 'duplicate')} of {other}" for other, count in found.get("duplicates_of", {}).items()]
    return ", ".join([quantity(found["rows"], "row"), f"{found['refused']:,} refused", *left, *again])


def fingerprint(context: RunContext) -> str:
    """The fingerprint of the data set's files, or of its commit on the Hub."""
    parts = [
        dataset_fingerprint(source.dataset, source.location, context.digests.file)
        for source in _named_sources(context.project)
    ]
    return parts[0] if not isinstance(context.project.dataset, list) else combined(parts)


def dataset_is_here(context: RunContext) -> bool:
    if any(dataset.path is None for dataset in context.project.datasets):
        return False
    return all(is_here(source.dataset, source.location) for source in _named_sources(context.project))


def _resolve_dataset(context: RunContext, request: StageRequest) -> Resolved:
    return Resolved(ensure_examples(context).facts[CONTENT], context.run.examples)


def _changed_dataset(context: RunContext, request: StageRequest, sealed: SealedArtefact) -> str:
    if not dataset_is_here(context):
        return ""
    examples, content = read_manifest(context.run.examples), fingerprint(context)
    if examples is not None and examples.inputs["dataset"] == content:
        settings = _reading_settings(_sources_with_columns(context, content))
        for key, value in settings.items():
            if examples.settings.get(key) != value:
                values = (examples.settings.get(key), value)
                return other_value(context.project, context.run.examples, examples, key, values)
        if examples.facts[CONTENT] == sealed.manifest.inputs["dataset"]:
            return ""
    if examples is None:
        return f"{context.run.examples} is missing or has no seal, so the data set is to be read again"
    return f"the data set {dataset_paths(context.project)} has changed since {sealed.path} was made"


def _warn_of_unread(context: RunContext, sources: Sequence[DataSource], left_out: Mapping[str, int]) -> None:
    """Names the columns, and the files of other splits, that the user may expect to be read."""
    if left_out:
        console.warn(
            f"{dataset_paths(context.project)}: columns with context that codetune does not read, so the model will "
            f"not see it: {_listed(left_out)}. Rows that differ in them alone count once"
        )
    for source in sources:
        if others := files_of_other_splits(source.dataset, source.location):
            more = f" and {len(others) - SHOWN_FILES} more" if len(others) > SHOWN_FILES else ""
            console.warn(
                f"dataset.split is {source.dataset.split}: of {source.dataset.path} the files with it in their names "
                f"are read, not {', '.join(others[:SHOWN_FILES])}{more}"
            )


def _warn_of_turns(project: Project, row_formats: Mapping[str, int]) -> None:
    """Says where most rows have turns, and the project names columns for pairs in every data set."""
    turns = {name: count for name, count in row_formats.items() if name in TURN_FORMATS}
    named = [dataset.instruction for dataset in project.datasets]
    if None not in named and 2 * sum(turns.values()) > sum(row_formats.values()):
        console.warn(
            f"{dataset_paths(project)}: most rows have turns, which are read, and not the column {named[0]} with its "
            f"answer: {_listed(turns)}. If you mean the turns, set dataset.instruction and dataset.response to null"
        )


def _listed(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count:,} {'row' if count == 1 else 'rows'})" for name, count in left_out.items())


def _named_sources(project: Project) -> list[DataSource]:
    """The data sets as the project names them, where they lie."""
    sources = []
    for dataset in project.datasets:
        location = project.locate(required(dataset.path, "dataset.path"))
        name, weight = (dataset.name or "", dataset.weight) if isinstance(dataset, NamedDataset) else ("", 1.0)
        sources.append(DataSource(dataset, location, name, weight))
    return sources


def _sources_with_columns(context: RunContext, content: str) -> list[DataSource]:
    """The data sets with columns that are found where the project names none; `content` is their fingerprint."""
    sources = _named_sources(context.project)
    if isinstance(context.project.dataset, list):
        return [replace(source, dataset=with_columns(source.dataset, source.location)) for source in sources]
    return [replace(sources[0], dataset=_dataset_with_columns(context, sources[0], content))]


def _dataset_with_columns(context: RunContext, source: DataSource, content: str) -> Dataset:
    """The one data set with its columns. What was found in the same content before is known without reading it."""
    dataset, examples = source.dataset, read_manifest(context.run.examples)
    if dataset.instruction is not None and dataset.response is not None:
        return dataset
    if examples is not None and examples.inputs["dataset"] == content and examples.facts.get(FOUND):
        known = {key.removeprefix("dataset."): value for key, value in examples.settings.items()}
        if all(getattr(dataset, key) in (None, value) for key, value in known.items()):
            return dataset.model_copy(update=known)
    return with_columns(dataset, source.location)


def _say_found(project: Project, sources: Sequence[DataSource]) -> None:
    """Names the columns that were found."""
    for asked, source in zip(project.datasets, sources, strict=True):
        found = source.dataset
        if None in (asked.instruction, asked.response):
            pair = f"instruction is {found.instruction}, response is {found.response}"
            console.say(f"{asked.path}: columns found: {pair if found.response else 'the turns of conversations'}")


def dataset_paths(project: Project) -> str:
    """The paths of the data sets, as the project names them."""
    return ", ".join(required(dataset.path, "dataset.path") for dataset in project.datasets)


def _reading_settings(sources: Sequence[DataSource]) -> dict[str, object]:
    """The settings that decide how rows are read from files: the columns and the split, and how data sets are mixed."""
    if not sources[0].name:
        return {f"dataset.{key}": value_at(sources[0].dataset, key) for key in READING_KEYS}
    settings: dict[str, object] = {MIXTURE: [source.name for source in sources]}
    for source in sources:
        own = {"weight": source.weight, **{key: value_at(source.dataset, key) for key in READING_KEYS}}
        settings |= {f"dataset.{source.name}.{key}": value for key, value in own.items()}
    return settings
