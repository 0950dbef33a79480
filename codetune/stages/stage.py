"""The verbs from the data set to the tuned model, one function each: open the artefacts, call the stage, seal the
artefact. The verbs of a benchmark are in `evaluate.py`, the whole pipeline and its standing in `workflow.py`.

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
from codetune.launch.environment import Shard, node
from codetune.model.find import find_model
from codetune.project.sections import Project
from codetune.stages.blocks import Survey, count_missing, survey
from codetune.stages.resume import TRAINED, claim_training, publish_training
from codetune.stages.row_stage import find_encoder, finished_rows, keep_before, rows_of, sealed_alike, usable_rows
from codetune.stages.status import (
    Desk,
    Recipe,
    RowStage,
    content_digest,
    dataset_digest,
    differing_settings,
    require,
)
from codetune.store import row_artefacts
from codetune.store.block_log import Rows, open_parts
from codetune.store.run_directory import (
    SHARED,
    Digests,
    Seal,
    locked,
    look_at_run,
    open_run,
    read_seal,
    remove,
    replacing,
    waiting,
    write_seal,
    write_text,
)


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
class Written:
    """What writing an artefact came to, for its seal."""

    rows: int
    refused: Mapping[str, int]
    facts: Mapping[str, Any]


def open_desk(project: Project) -> Desk:
    run = open_run(project)
    return Desk(project, run, Digests(run))


def look_at_desk(project: Project) -> Desk:
    """For those who only look: makes no run directory."""
    run = look_at_run(project)
    return Desk(project, run, Digests(run))


def score(desk: Desk, shard: Shard | None) -> StageResult:
    """IFD of every row -> scores.jsonl."""
    project = desk.project
    shard = shard or _of_this_machine(project)
    with locked(desk.run, "score", shard):
        began, rows = time.monotonic(), _survey(desk)

        directory = find_model(project.locate(project.score.model or project.model.path))
        inputs = {"dataset": dataset_digest(desk), "model": desk.digests.tree(directory)}
        recipe = Recipe.of(desk, "score", desk.run.scores, inputs)
        work = _RowWork(recipe, str(directory), shard)
        return _make_rows(desk, work, rows, began, lambda finished: _write_scores(desk, rows, finished))


def embed(desk: Desk, shard: Shard | None) -> StageResult:
    """Unit vectors of the instructions -> embeddings.npy and embeddings.ids."""
    shard = shard or _of_this_machine(desk.project)
    with locked(desk.run, "embed", shard):
        began, rows = time.monotonic(), _survey(desk)
        encoder, digest = find_encoder(desk)
        inputs = {"dataset": dataset_digest(desk), "model": digest}
        recipe = Recipe.of(desk, "embed", desk.run.embeddings, inputs)
        work = _RowWork(recipe, str(encoder), shard)
        return _make_rows(desk, work, rows, began, lambda finished: _write_embeddings(desk, recipe, rows, finished))


def select(desk: Desk) -> StageResult:
    """The rows worth training on -> selection.jsonl, in the strategy's order, as chat messages."""
    from codetune.selection.select import NEEDS, require_picks, select
    from codetune.stages.select import joined_by_id, unscored

    project, settings = desk.project, desk.project.select
    with locked(desk.run, "select", None):
        began = time.monotonic()
        needs = NEEDS[settings.strategy]
        inputs = {"dataset": dataset_digest(desk)}
        if needs.scores:
            inputs["score"] = require(desk, "score").digest
        if needs.embeddings:
            inputs["embed"] = require(desk, "embed").digest
        recipe = Recipe.of(desk, "select", desk.run.selection, inputs)
        if done := already(desk, recipe, began):
            return done
        rows = joined_by_id(desk, needs) if needs.scores else unscored(usable_rows(desk))
        selected = select(rows, settings, project.seed)
        require_picks(selected, settings)
        row_artefacts.write_selection(desk.run, usable_rows(desk), selected.picks)
        refused = Counter({"no score": int(rows.refused.sum())})
        refused[f"IFD of {settings.max_ifd:g} or more"] = sum(cluster.dropped for cluster in selected.diagnostics)
        facts = {"clusters": [asdict(cluster) for cluster in selected.diagnostics]}
        return seal_artefact(desk, recipe, Written(len(selected.picks.ids), +refused, facts), 0, began)


def train(desk: Desk, restart: bool = False) -> StageResult:
    """The base model fine-tuned on the selection -> model/, with train/metrics.jsonl beside it."""
    project, run = desk.project, desk.run
    with locked(run, "train", None):
        began = time.monotonic()
        selection = require(desk, "select")

        base = find_model(project.locate(project.model.path))
        inputs = {"select": selection.digest, "base": desk.digests.tree(base)}
        recipe = Recipe.of(desk, "train", run.model, inputs)
        if not restart and (done := already(desk, recipe, began)):
            return done
        directory = claim_training(run, recipe, restart)
        with replacing(run.model) as saved, console.progress("training", None, "step") as advance:
            details = {"model": str(base), "directory": str(directory), "saved": str(saved)}
            told, *_ = perform(
                Job("train", project, details),
                process_count(project),
                lambda rank, at: advance.to(int(at["step"]), int(at["steps"])) if rank == 0 else None,
            )
            write_text(saved / TRAINED, json.dumps(recipe.identity(), indent=2) + "\n")
        publish_training(run, directory)
        return seal_artefact(desk, recipe, Written(told["rows"], told["refused"], told["facts"]), 0, began)


def found_done(desk: Desk, stage: RowStage, seal: Seal) -> StageResult:
    """The result of a stage whose artefact stands as it is."""
    recipe = Recipe(stage, desk.artefact(stage), seal.settings, seal.overrides, seal.inputs, seal.overrides)
    return _result(recipe, "done", Written(seal.rows, seal.refused, seal.facts), seal.rows, time.monotonic())


@dataclass(frozen=True, slots=True)
class _RowWork:
    """What distinguishes score from embed, and a shard from the whole, on their common way."""

    recipe: Recipe
    model: str  # where it lies
    shard: Shard | None


def _make_rows(desk: Desk, work: _RowWork, rows: Survey, began: float, write: Callable[[Rows], Written]) -> StageResult:
    """Does the missing rows of this shard; whoever finds every row done writes the artefact and seals it."""
    recipe = work.recipe
    directory = desk.run.parts(recipe.artefact)
    with waiting(desk.run, f"{recipe.stage}-parts"):
        if done := already(desk, recipe, began):
            remove(directory)
            return done
        if open_parts(directory, recipe.identity(without=["dataset"]), refuse_others=work.shard is not None):
            console.note(f"{recipe.stage}: the settings have changed since it was interrupted; it starts anew")
    with waiting(desk.run, f"{recipe.stage}-parts", SHARED):
        reused = rows.usable - count_missing(rows, finished_rows(desk, recipe))
    if reused < rows.usable:
        _share_out(desk, work, rows.usable, reused)
    with waiting(desk.run, f"{recipe.stage}-parts"):
        if done := already(desk, recipe, began):
            return done
        finished = finished_rows(desk, recipe)
        if missing := count_missing(rows, finished):
            there = rows.usable - missing
            return _result(recipe, "partial", Written(there, rows.refused(), {}), reused, began)
        keep_before(desk, recipe)
        result = seal_artefact(desk, recipe, write(finished), reused, began)
        remove(desk.run.before(recipe.stage).directory)
        remove(directory)
        return result


def _of_this_machine(project: Project) -> Shard | None:
    """Where the command is started once on each of several machines, each does a shard; they need not hear of each
    other, and the last one merges."""
    if project.launch.nodes == 1:
        return None
    here = node(project.launch.nodes)
    return here.rank, here.count


def _share_out(desk: Desk, work: _RowWork, rows: int, reused: int) -> None:
    """Has the missing blocks done, by as many processes as the project says; a shard of a job array is one, unless it
    names a number. Each does the blocks that are its own, and commits them to a log of its own."""
    launch = desk.project.launch
    in_array = work.shard is not None and launch.nodes == 1
    processes = 1 if in_array and launch.processes == "auto" else process_count(desk.project)
    details = {"stage": work.recipe.stage, "inputs": work.recipe.inputs, "model": work.model, "shard": work.shard}
    here = desk.project.model_copy(update={"launch": launch.model_copy(update={"nodes": 1})})
    with console.progress(work.recipe.stage, rows, "row", reused) as advance:
        perform(Job(work.recipe.stage, here, details), processes, lambda rank, told: advance(told["rows"]))


def already(desk: Desk, recipe: Recipe, began: float) -> StageResult | None:
    """The result where the artefact is there, made of the same, and unharmed."""
    seal = read_seal(recipe.artefact)
    if seal is None or not recipe.made(seal) or content_digest(desk, recipe.artefact) != seal.digest:
        return None
    return _result(recipe, "done", Written(seal.rows, seal.refused, seal.facts), seal.rows, began)


def seal_artefact(desk: Desk, recipe: Recipe, written: Written, reused: int, began: float) -> StageResult:
    seconds = time.monotonic() - began
    before = read_seal(recipe.artefact)
    replaced = differing_settings(recipe.artefact, replace(before, overrides={}), recipe.settings) if before else ""
    digest = content_digest(desk, recipe.artefact)
    write_seal(recipe.artefact, recipe.sealed(digest, written.rows, written.refused, seconds, written.facts))
    facts = {**written.facts, "replaced": replaced} if replaced else written.facts
    return _result(recipe, "done", replace(written, facts=facts), reused, began)


def _result(recipe: Recipe, state: str, written: Written, reused: int, began: float) -> StageResult:
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


def _survey(desk: Desk) -> Survey:
    """Reads the data set through before anything else: its mistakes are told before a model is looked for."""
    rows = survey(console.track(rows_of(desk), "reading the data set", None, "row"))
    if not rows.usable:
        reasons = console.counts(rows.refused()) or "it is empty"
        raise DataError(
            f"{desk.project.dataset.path} holds no usable row ({reasons}); expected instructions with answers. "
            "Correct the data, or dataset.instruction and dataset.response"
        )
    return rows


def _write_scores(desk: Desk, rows: Survey, finished: Rows) -> Written:
    scored, refused, truncated = row_artefacts.write_scores(desk.run, rows, finished)
    return Written(scored, refused, {"truncated": truncated})


def _write_embeddings(desk: Desk, recipe: Recipe, rows: Survey, finished: Rows) -> Written:
    count, refused, cut = row_artefacts.write_embeddings(desk.run, rows, finished, _known_cut(desk, recipe))
    return Written(count, refused, {"cut": int(cut.sum()), "cut_rows": row_artefacts.pack_marks(cut)})


def _known_cut(desk: Desk, recipe: Recipe) -> IdIndex:
    """The instructions that were cut for the last embeddings."""
    run = sealed_alike(desk, recipe)
    seal = read_seal(run.embeddings) if run else None
    if run is None or seal is None:
        return IdIndex(pack_ids(()))
    ids = row_artefacts.read_embeddings(run).ids
    return IdIndex(ids[row_artefacts.unpack_marks(seal.facts["cut_rows"], len(ids))])
