"""The verbs from the data set to the tuned model, one function each: open the artefacts, call the stage, manifest the
artefact. The verbs of a benchmark are in `evaluate.py`, the whole pipeline and its stage_status in `workflow.py`.

    data set --> score --+
        +------> embed --+--> select --> train --> (generate --> sanitize --> evaluate)

Each verb imports its stage when its inputs are known to be right: `--help`, `select` and every mistake in the project
file or the data come without torch.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from codetune import console
from codetune.data.ids import IdIndex, pack_ids
from codetune.errors import DataError
from codetune.launch.dispatch import Job, perform, process_count
from codetune.launch.environment import Shard, current_node
from codetune.model.model_files import find_model
from codetune.project.sections import Project
from codetune.stages.blocks import Survey, count_missing, survey
from codetune.stages.jobs import run_job
from codetune.stages.resume import TRAINED, claim_training, publish_training
from codetune.stages.row_stage import find_encoder, finished_rows, keep_before, rows_of, sealed_alike, usable_rows
from codetune.stages.status import (
    Recipe,
    RowStage,
    RunContext,
    content_digest,
    dataset_digest,
    differing_settings,
    require,
)
from codetune.store import old_row_artefacts, row_artefacts
from codetune.store.block_log import FinishedRows, open_parts
from codetune.store.digests import Digests
from codetune.store.files import remove, replacing, write_text
from codetune.store.locks import SHARED, locked, waiting
from codetune.store.manifest import Manifest, read_manifest, write_manifest
from codetune.store.run_directory import inspect_run, open_run


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage did. Of a row stage, `rows` (with a result) and `refused` together are all that came in."""

    stage: str
    state: str  # "done", or "partial" where the rows of other shards are still missing
    rows: int
    reused: int
    refused: Mapping[str, int]
    artefact: Path
    seconds: float
    overrides: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StageOutput:
    """What writing an artefact came to, for its manifest."""

    rows: int
    refused: Mapping[str, int]
    facts: Mapping[str, Any]


def open_context(project: Project) -> RunContext:
    run = open_run(project)
    return RunContext(project, run, Digests(run))


def read_context(project: Project) -> RunContext:
    """For those who only look: makes no run directory."""
    run = inspect_run(project)
    return RunContext(project, run, Digests(run))


def score(context: RunContext, shard: Shard | None) -> StageResult:
    """IFD of every row -> scores.jsonl."""
    project = context.project
    shard = shard or _of_this_machine(project)
    with locked(context.run, "score", shard):
        began, rows = time.monotonic(), _survey(context)

        directory = find_model(project.locate(project.score.model or project.model.path))
        inputs = {"dataset": dataset_digest(context), "model": context.digests.tree(directory)}
        recipe = Recipe.of(context, "score", context.run.scores, inputs)
        work = _RowWork(recipe, str(directory), shard)
        return _make_rows(context, work, rows, began, lambda finished: _write_scores(context, rows, finished))


def embed(context: RunContext, shard: Shard | None) -> StageResult:
    """Unit vectors of the instructions -> embeddings.npy and embeddings.ids."""
    shard = shard or _of_this_machine(context.project)
    with locked(context.run, "embed", shard):
        began, rows = time.monotonic(), _survey(context)
        encoder, digest = find_encoder(context)
        inputs = {"dataset": dataset_digest(context), "model": digest}
        recipe = Recipe.of(context, "embed", context.run.embeddings, inputs)
        work = _RowWork(recipe, str(encoder), shard)
        return _make_rows(
            context, work, rows, began, lambda finished: _write_embeddings(context, recipe, rows, finished)
        )


def select(context: RunContext) -> StageResult:
    """The rows worth training on -> selection.jsonl, in the strategy's order, as chat messages."""
    from codetune.selection.select import STRATEGIES, require_selected_rows, select
    from codetune.stages.select import joined_by_id, unscored

    project, settings = context.project, context.project.select
    with locked(context.run, "select", None):
        began = time.monotonic()
        strategy = STRATEGIES[settings.strategy]
        inputs = {"dataset": dataset_digest(context)}
        if strategy.needs_scores:
            inputs["score"] = require(context, "score").digest
        if strategy.needs_embeddings:
            inputs["embed"] = require(context, "embed").digest
        recipe = Recipe.of(context, "select", context.run.selection, inputs)
        if done := already(context, recipe, began):
            return done
        rows = joined_by_id(context, strategy) if strategy.needs_scores else unscored(usable_rows(context))
        selected = select(rows, settings, project.seed)
        require_selected_rows(selected, settings)
        old_row_artefacts.write_selection(context.run, usable_rows(context), selected.rows)
        refused = Counter({"no score": int(rows.refused.sum())})
        refused[f"IFD of {settings.max_ifd:g} or more"] = sum(cluster.dropped for cluster in selected.diagnostics)
        facts = {"clusters": [asdict(cluster) for cluster in selected.diagnostics]}
        return seal_artefact(context, recipe, StageOutput(len(selected.rows.ids), +refused, facts), 0, began)


def train(context: RunContext, restart: bool = False) -> StageResult:
    """The base model fine-tuned on the selection -> model/, with train/metrics.jsonl beside it."""
    project, run = context.project, context.run
    with locked(run, "train", None):
        began = time.monotonic()
        selection = require(context, "select")

        base = find_model(project.locate(project.model.path))
        inputs = {"select": selection.digest, "base": context.digests.tree(base)}
        recipe = Recipe.of(context, "train", run.model, inputs)
        if not restart and (done := already(context, recipe, began)):
            return done
        directory = claim_training(run, recipe, restart)
        with replacing(run.model) as saved, console.progress("training", None, "step") as bar:
            details = {"model": str(base), "directory": str(directory), "saved": str(saved)}
            results: Any = perform(
                Job("train", project, details),
                process_count(project),
                lambda rank, at: bar.move_to(int(at["step"] or 0), int(at["steps"] or 0)) if rank == 0 else None,
                run_job,
            )
            told = results[0]
            write_text(saved / TRAINED, json.dumps(recipe.identity(), indent=2) + "\n")
        publish_training(run, directory)
        return seal_artefact(context, recipe, StageOutput(told["rows"], told["refused"], told["facts"]), 0, began)


def found_done(context: RunContext, stage: RowStage, manifest: Manifest) -> StageResult:
    """The result of a stage whose artefact stands as it is."""
    recipe = Recipe(
        stage, context.artefact(stage), manifest.settings, manifest.overrides, manifest.inputs, manifest.overrides
    )
    return _result(
        recipe, "done", StageOutput(manifest.rows, manifest.refused, manifest.facts), manifest.rows, time.monotonic()
    )


@dataclass(frozen=True, slots=True)
class _RowWork:
    """What distinguishes score from embed, and a shard from the whole, on their common way."""

    recipe: Recipe
    model: str  # where it lies
    shard: Shard | None


def _make_rows(
    context: RunContext, work: _RowWork, rows: Survey, began: float, write: Callable[[FinishedRows], StageOutput]
) -> StageResult:
    """Does the missing rows of this shard; whoever finds every row done writes the artefact and seals it."""
    recipe = work.recipe
    directory = context.run.parts(recipe.artefact)
    with waiting(context.run, f"{recipe.stage}-parts"):
        if done := already(context, recipe, began):
            remove(directory)
            return done
        if open_parts(directory, recipe.identity(without=["dataset"]), refuse_others=work.shard is not None):
            console.note(f"{recipe.stage}: the settings have changed since it was interrupted; it starts anew")
    with waiting(context.run, f"{recipe.stage}-parts", SHARED):
        reused = rows.usable - count_missing(rows, finished_rows(context, recipe))
    if reused < rows.usable:
        _share_out(context, work, rows.usable, reused)
    with waiting(context.run, f"{recipe.stage}-parts"):
        if done := already(context, recipe, began):
            return done
        finished = finished_rows(context, recipe)
        if missing := count_missing(rows, finished):
            there = rows.usable - missing
            return _result(recipe, "partial", StageOutput(there, rows.refused(), {}), reused, began)
        keep_before(context, recipe)
        result = seal_artefact(context, recipe, write(finished), reused, began)
        remove(context.run.before(recipe.stage).directory)
        remove(directory)
        return result


def _of_this_machine(project: Project) -> Shard | None:
    """Where the command is started once on each of several machines, each does a shard; they need not hear of each
    other, and the last one merges."""
    if project.launch.nodes == 1:
        return None
    here = current_node(project.launch.nodes)
    return here.rank, here.count


def _share_out(context: RunContext, work: _RowWork, rows: int, reused: int) -> None:
    """Has the missing blocks done, by as many processes as the project says; a shard of a job array is one, unless it
    names a number. Each does the blocks that are its own, and commits them to a log of its own."""
    launch = context.project.launch
    in_array = work.shard is not None and launch.nodes == 1
    processes = 1 if in_array and launch.processes == "auto" else process_count(context.project)
    details = {"stage": work.recipe.stage, "inputs": work.recipe.inputs, "model": work.model, "shard": work.shard}
    here = context.project.model_copy(update={"launch": launch.model_copy(update={"nodes": 1})})
    with console.progress(work.recipe.stage, rows, "row", reused) as bar:
        perform(
            Job(work.recipe.stage, here, details),
            processes,
            lambda rank, told: bar.advance(int(told["rows"] or 0)),
            run_job,
        )


def already(context: RunContext, recipe: Recipe, began: float) -> StageResult | None:
    """The result where the artefact is there, made of the same, and unharmed."""
    manifest = read_manifest(recipe.artefact)
    if manifest is None or not recipe.made(manifest) or content_digest(context, recipe.artefact) != manifest.digest:
        return None
    return _result(recipe, "done", StageOutput(manifest.rows, manifest.refused, manifest.facts), manifest.rows, began)


def seal_artefact(context: RunContext, recipe: Recipe, written: StageOutput, reused: int, began: float) -> StageResult:
    seconds = time.monotonic() - began
    before = read_manifest(recipe.artefact)
    replaced = differing_settings(recipe.artefact, replace(before, overrides={}), recipe.settings) if before else ""
    digest = content_digest(context, recipe.artefact)
    write_manifest(recipe.artefact, recipe.sealed(digest, written.rows, written.refused, seconds, written.facts))
    facts = {**written.facts, "replaced": replaced} if replaced else written.facts
    return _result(recipe, "done", replace(written, facts=facts), reused, began)


def _result(recipe: Recipe, state: str, written: StageOutput, reused: int, began: float) -> StageResult:
    return StageResult(
        recipe.stage,
        state,
        written.rows,
        reused,
        written.refused,
        recipe.artefact,
        round(time.monotonic() - began, 3),
        recipe.said,
        written.facts,
    )


def _survey(context: RunContext) -> Survey:
    """Reads the data set through before anything else: its mistakes are told before a model is looked for."""
    rows = survey(console.track(rows_of(context), "reading the data set", None, "row"))
    if not rows.usable:
        reasons = console.counts(rows.refused()) or "it is empty"
        raise DataError(
            f"{context.project.dataset.path} holds no usable row ({reasons}); expected instructions with answers. "
            "Correct the data, or dataset.instruction and dataset.response"
        )
    return rows


def _write_scores(context: RunContext, rows: Survey, finished: FinishedRows) -> StageOutput:
    scored, refused, truncated = old_row_artefacts.write_scores(context.run, rows, finished)
    return StageOutput(scored, refused, {"truncated": truncated})


def _write_embeddings(context: RunContext, recipe: Recipe, rows: Survey, finished: FinishedRows) -> StageOutput:
    count, refused, cut = old_row_artefacts.write_embeddings(context.run, rows, finished, _known_cut(context, recipe))
    return StageOutput(count, refused, {"cut": int(cut.sum()), "cut_rows": row_artefacts.pack_marks(cut)})


def _known_cut(context: RunContext, recipe: Recipe) -> IdIndex:
    """The instructions that were cut for the last embeddings."""
    run = sealed_alike(context, recipe)
    manifest = read_manifest(run.embeddings) if run else None
    if run is None or manifest is None:
        return IdIndex(pack_ids(()))
    ids = row_artefacts.read_embeddings(run).ids
    return IdIndex(ids[row_artefacts.unpack_marks(manifest.facts["cut_rows"], len(ids))])
