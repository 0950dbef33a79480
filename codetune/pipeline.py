"""The verbs from the data set to the tuned model, one function each: open the artefacts, call the stage, seal the
artefact. The verbs of a benchmark are in `benchmarking.py`, the whole pipeline and its standing in `journey.py`.

    data set --> score --+
        +------> embed --+--> select --> train --> (generate --> sanitize --> evaluate)

Each verb imports its stage when its inputs are known to be right: `--help`, `select` and every mistake in the project
file or the data come without torch.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codetune import artefacts, console
from codetune.data.source import read_examples
from codetune.errors import DataError, StaleError
from codetune.jobs import Job, perform, process_count
from codetune.launch import Shard
from codetune.parts import Rows, open_parts, read_logs
from codetune.project import Project
from codetune.records import Example, Refusal
from codetune.rowwise import Block, BlockWork, Survey, count_missing, do_missing, survey
from codetune.stages import (
    Desk,
    Recipe,
    RowStage,
    content_digest,
    dataset_digest,
    differing_settings,
    require,
    settings_of,
)
from codetune.store import (
    Digests,
    Seal,
    combined,
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
from codetune.unfinished import TRAINED, claim_training, publish_training

if TYPE_CHECKING:
    from codetune.selection.embed import Encoder
    from codetune.selection.select import Candidate, ClusterDiagnostics

WHOLE: Shard = (0, 1)
# Estimated tokens of a block where the project says `auto`; what does not fit into a GPU's memory is halved there.
AUTO_TOKENS_PER_BATCH = 8192


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
    project, settings = desk.project, desk.project.score
    with locked(desk.run, "score", shard):
        began, rows = time.monotonic(), _survey(desk)
        from codetune.model.likelihood import CausalScorer
        from codetune.model.load import choose_device, find_model, load_model, load_tokenizer
        from codetune.selection.score import plan_blocks, score_block

        directory = find_model(project.locate(settings.model or project.model.path))
        inputs = {"dataset": dataset_digest(desk), "model": desk.digests.tree(directory)}

        def load() -> BlockWork:
            tokenizer = load_tokenizer(directory)
            scorer = CausalScorer(load_model(directory, project.model, choose_device()))
            return lambda examples: [
                artefacts.score_line(row) for row in score_block(examples, tokenizer, scorer, settings)
            ]

        budget = AUTO_TOKENS_PER_BATCH if settings.tokens_per_batch == "auto" else settings.tokens_per_batch
        work = _RowWork("score", desk.run.scores, inputs, load, plan_blocks(_usable(desk), budget))
        return _make_rows(desk, work, rows, shard, began, lambda finished: _write_scores(desk, rows, finished))


def embed(desk: Desk, shard: Shard | None) -> StageResult:
    """Unit vectors of the instructions -> embeddings.npy and embeddings.ids."""
    settings = desk.project.embed
    with locked(desk.run, "embed", shard):
        began, rows = time.monotonic(), _survey(desk)
        from codetune.selection.embed import embed_block, plan_embedding_blocks

        model, load_encoder = _encoder(desk)
        inputs = {"dataset": dataset_digest(desk), "model": model}

        def load() -> BlockWork:
            encoder = load_encoder()

            def embed_rows(examples: Sequence[Example]) -> list[bytes]:
                _, vectors = embed_block(examples, encoder)
                cut = [encoder.count_cut([example.instruction]) > 0 for example in examples]
                return [artefacts.embedding_bytes(vector, flag) for vector, flag in zip(vectors, cut, strict=True)]

            return embed_rows

        blocks = plan_embedding_blocks(_usable(desk), settings.batch_size)
        work = _RowWork("embed", desk.run.embeddings, inputs, load, blocks)
        return _make_rows(desk, work, rows, shard, began, lambda finished: _write_embeddings(desk, rows, finished))


def select(desk: Desk) -> StageResult:
    """The rows worth training on -> selection.jsonl, in the strategy's order, as chat messages."""
    from codetune.selection.select import NEEDS, select

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
        candidates = _candidates(desk, needs.scores, needs.embeddings)
        selected = select(candidates, settings, project.seed)
        if not selected.picks:
            raise DataError(_nothing_selected(desk, selected.diagnostics))
        artefacts.write_selection(desk.run, _usable(desk), {pick.id: pick for pick in selected.picks})
        refused = Counter({"no score": sum(candidate.refused for candidate in candidates)})
        refused[f"IFD of {settings.max_ifd:g} or more"] = sum(cluster.dropped for cluster in selected.diagnostics)
        facts = {"clusters": [asdict(cluster) for cluster in selected.diagnostics]}
        return seal_artefact(desk, recipe, Written(len(selected.picks), +refused, facts), 0, began)


def train(desk: Desk, restart: bool = False) -> StageResult:
    """The base model fine-tuned on the selection -> model/, with train/metrics.jsonl beside it."""
    project, run = desk.project, desk.run
    with locked(run, "train", None):
        began = time.monotonic()
        selection = require(desk, "select")
        from codetune.model.load import find_model

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
    """What distinguishes score from embed on their common way."""

    stage: RowStage
    artefact: Path
    inputs: Mapping[str, str]
    load: Callable[[], BlockWork]
    blocks: Iterable[Block]


def _make_rows(
    desk: Desk, work: _RowWork, rows: Survey, shard: Shard | None, began: float, write: Callable[[Rows], Written]
) -> StageResult:
    """Does the missing rows of this shard; whoever finds every row done writes the artefact and seals it."""
    recipe = Recipe.of(desk, work.stage, work.artefact, work.inputs)
    directory = desk.run.parts(work.artefact)
    if done := already(desk, recipe, began):
        remove(directory)
        return done
    with waiting(desk.run, f"{work.stage}-parts"):
        if open_parts(directory, recipe.identity(without=["dataset"]), refuse_others=shard is not None):
            console.note(f"{work.stage}: the settings have changed since it was interrupted; it starts anew")
    finished = _finished(desk, recipe, directory)
    reused = rows.usable - count_missing(rows, finished)
    with console.progress(work.stage, rows.usable, "row", reused) as advance:
        for count in do_missing(work.blocks, directory, finished, shard or WHOLE, work.load):
            advance(count)
    with waiting(desk.run, f"{work.stage}-parts"):
        if done := already(desk, recipe, began):
            return done
        finished = _finished(desk, recipe, directory)
        if missing := count_missing(rows, finished):
            there = rows.usable - missing
            return _result(recipe, "partial", Written(there, rows.refused(), {}), reused, began)
        result = seal_artefact(desk, recipe, write(finished), reused, began)
        remove(directory)
        return result


def _finished(desk: Desk, recipe: Recipe, directory: Path) -> Rows:
    """Every row that is done: in the logs of all processes, and in the last artefact where it was made alike."""
    rows = read_logs(directory)
    seal = read_seal(recipe.artefact)
    if seal is None or seal.settings != recipe.settings or seal.inputs.get("model") != recipe.inputs["model"]:
        return rows
    if content_digest(desk, recipe.artefact) == seal.digest:
        sealed = artefacts.sealed_scores if recipe.stage == "score" else artefacts.sealed_embeddings
        rows.add_file(recipe.artefact, sealed(desk.run))
    return rows


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


def _rows_of(desk: Desk) -> Iterator[Example | Refusal]:
    dataset = desk.project.dataset
    return read_examples(dataset, desk.project.locate(dataset.path))


def _usable(desk: Desk) -> Iterator[Example]:
    return (row for row in _rows_of(desk) if isinstance(row, Example))


def _survey(desk: Desk) -> Survey:
    """Reads the data set through before anything else: its mistakes are told before a model is looked for."""
    rows = survey(console.track(_rows_of(desk), "reading the data set", None, "row"))
    if not rows.usable:
        reasons = console.counts(rows.refused()) or "it is empty"
        raise DataError(
            f"{desk.project.dataset.path} holds no usable row ({reasons}); expected instructions with answers. "
            "Correct the data, or dataset.instruction and dataset.response"
        )
    return rows


def _write_scores(desk: Desk, rows: Survey, finished: Rows) -> Written:
    scored, refused = artefacts.write_scores(desk.run, rows, finished)
    return Written(scored, refused, {})


def _write_embeddings(desk: Desk, rows: Survey, finished: Rows) -> Written:
    seal = read_seal(desk.run.embeddings)
    known_cut = set(seal.facts["cut"]) if seal else set()
    count, refused, cut = artefacts.write_embeddings(desk.run, rows, finished, known_cut)
    return Written(count, refused, {"cut": cut})


def _encoder(desk: Desk) -> tuple[str, Callable[[], Encoder]]:
    """The digest of the encoder that the project names, and what loads it."""
    project = desk.project
    if project.embed.model != "hashing":
        from codetune.model.load import find_encoder

        directory = find_encoder(project.locate(project.embed.model))
        return desk.digests.tree(directory), lambda: _sentence_encoder(directory)
    from codetune.selection.embed import HashingEncoder

    kept = _projection(desk)
    return desk.digests.file(kept), lambda: HashingEncoder.load(kept)


def _sentence_encoder(directory: Path) -> Encoder:
    # Apart from finding it: to see that every row is embedded already must not take the library's many seconds.
    from codetune.model.load import choose_device
    from codetune.selection.sentences import load_encoder

    return load_encoder(directory, choose_device())


def _projection(desk: Desk) -> Path:
    """The offline encoder, fitted once for these settings and kept with the run, so that rows added later get
    comparable vectors and every process has the same."""
    from codetune.selection.embed import HashingEncoder

    kept = desk.run.projection(combined(map(repr, settings_of(desk.project, "embed").items())))
    with waiting(desk.run, "projection"):
        if not kept.exists():
            fitted = HashingEncoder.fit((example.instruction for example in _usable(desk)), desk.project.seed)
            with replacing(kept) as temporary:
                fitted.save(temporary)
    return kept


def _candidates(desk: Desk, needs_scores: bool, needs_embeddings: bool) -> list[Candidate]:
    """One candidate a row, joined by id, in the order of the ids."""
    from codetune.selection.select import Candidate

    if not needs_scores:
        return [Candidate(row, None, False, None) for row in sorted(example.id for example in _usable(desk))]
    scores = {row.id: row for row in artefacts.read_scores(desk.run) if row.id is not None}
    clusters: dict[str, int] = _clusters(desk, scores.keys()) if needs_embeddings else {}
    return [
        Candidate(row_id, None if isinstance(row, Refusal) else row.ifd, isinstance(row, Refusal), clusters.get(row_id))
        for row_id, row in sorted(scores.items())
        if not needs_embeddings or row_id in clusters
    ]


def _nothing_selected(desk: Desk, clusters: Sequence[ClusterDiagnostics]) -> str:
    settings = desk.project.select
    rows, refused, dropped, eligible = (
        sum(getattr(cluster, name) for cluster in clusters) for name in ("rows", "refused", "dropped", "eligible")
    )
    where = f" in {len(clusters)} clusters" if len(clusters) > 1 else ""
    return (
        f"No row is selected of {rows:,}: {refused:,} have no score, {dropped:,} an IFD of {settings.max_ifd:g} or "
        f"more, and of the other {eligible:,}{where} the ratio {settings.ratio:g} takes none. "
        "Expected: at least one. Raise select.ratio or select.max_ifd, lower select.clusters, or see the "
        "reasons in scores.jsonl"
    )


def _clusters(desk: Desk, scored: Set[str]) -> dict[str, int]:
    """The cluster of every embedded row. Raises StaleError where the embeddings are of other rows than the scores."""
    import numpy as np

    from codetune.selection.cluster import cluster_rows

    embeddings = artefacts.read_embeddings(desk.run)
    strangers = [row_id for row_id in embeddings.ids if row_id not in scored]
    if strangers:
        raise StaleError(
            f"{desk.run.embeddings} holds {len(strangers)} rows that {desk.run.scores} does not know, the first is "
            f"{strangers[0]}; both must be of the same data set. Run: codetune score, then codetune embed"
        )
    order = np.argsort(np.asarray(embeddings.ids))
    settings = desk.project.select
    labels = cluster_rows(embeddings.vectors[order], settings.clusters, desk.project.seed)
    return {embeddings.ids[place]: int(label) for place, label in zip(order, labels, strict=True)}
