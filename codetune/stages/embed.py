"""embed: a unit vector of every instruction -> `embeddings.npy` and `embeddings.ids`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from codetune.console import quantity
from codetune.data.ids import IdIndex, pack_ids
from codetune.model.model_files import find_encoder
from codetune.project.sections import Project
from codetune.records import Example
from codetune.selection.strategies import STRATEGIES
from codetune.stages.dataset import (
    CONTENT,
    READING_FACTS,
    dataset_input,
    examples_manifest,
    left_out_notes,
    reading_facts,
)
from codetune.stages.inputs import model_input
from codetune.stages.row_stage import BlockWork, Plan, RowStage, threads_of
from codetune.stages.runner import other_value
from codetune.stages.stage import (
    Details,
    Input,
    Recipe,
    Resolved,
    RunContext,
    SealedArtefact,
    Stage,
    StageOutput,
    StageRequest,
    StageResult,
)
from codetune.store import row_artefacts
from codetune.store.block_log import FinishedRows, read_settings
from codetune.store.digests import combined
from codetune.store.examples import example_ids, read_examples
from codetune.store.files import replacing
from codetune.store.locks import waiting
from codetune.store.manifest import read_manifest

if TYPE_CHECKING:
    from codetune.selection.embed import Encoder


def _inputs(project: Project, request: StageRequest) -> Sequence[Input]:
    if project.embed.model != "hashing":
        return dataset_input(), model_input("model", "embed.model", find_encoder)
    return dataset_input(), Input("model", _resolve_projection, _changed_encoder, "embed.model")


def _resolve_projection(context: RunContext, request: StageRequest) -> Resolved:
    """The offline encoder, fitted once to the data set and kept with the run, so that rows added later get comparable
    vectors and every process has the same."""
    from codetune.selection.embed import HashingEncoder

    content = examples_manifest(context).facts[CONTENT]  # the data set is resolved before the model
    key = combined([str(content), str(context.project.seed)])
    kept = _kept_projection(context) or context.run.projection(key)
    with waiting(context.run, "projection"):
        if not kept.exists():
            rows = (example.instruction for example in read_examples(context.run))
            with replacing(kept) as temporary:
                HashingEncoder.fit(rows, context.project.seed).save(temporary)
    return Resolved(context.digests.file(kept), kept)


def _changed_encoder(context: RunContext, request: StageRequest, sealed: SealedArtefact) -> str:
    made = sealed.manifest.names.get("embed.model")
    if made == "hashing" or (sealed.allow_overrides and "embed.model" in sealed.manifest.overrides):
        return ""
    return other_value(context.project, sealed.path, sealed.manifest, "embed.model", (made, "hashing"))


def _kept_projection(context: RunContext) -> Path | None:
    """The encoder that made the last embeddings, or those of an interrupted run, if their seed is this one's and most
    of their rows are still in the data set: rows that are added get comparable vectors, wherever the data set lies."""
    run, seed = context.run, context.project.seed
    manifest, begun = read_manifest(run.embeddings), read_settings(run.parts(run.embeddings)) or {}
    digest = begun.get("model (digest)") if begun.get("seed") == seed else None
    is_whole = manifest is not None and context.digests.artefact(run.embeddings) == manifest.digest
    if manifest is not None and is_whole and manifest.settings.get("seed") == seed:
        known = IdIndex(example_ids(run)).holds(row_artefacts.read_embeddings(run).ids)
        digest = manifest.inputs["model"] if 2 * int(known.sum()) > len(known) else digest
    kept = run.projection("").parent.glob("projection-*.npy")
    return next((file for file in kept if context.digests.file(file) == digest), None)


def _plan(context: RunContext, recipe: Recipe) -> Plan:
    from codetune.selection.blocks import plan_embedding_blocks

    def load() -> BlockWork[Sequence[bool]]:
        encoder = _load_encoder(context, recipe)

        def finish(examples: Sequence[Example], cut: Sequence[bool]) -> list[bytes]:
            vectors = encoder.encode([example.instruction for example in examples])
            return [row_artefacts.embedding_bytes(vector, flag) for vector, flag in zip(vectors, cut, strict=True)]

        return BlockWork(lambda examples: encoder.truncates([example.instruction for example in examples]), finish)

    return Plan(plan_embedding_blocks(read_examples(context.run), context.project.embed.batch_size), load)


def _load_encoder(context: RunContext, recipe: Recipe) -> Encoder:
    if context.project.embed.model == "hashing":
        from codetune.selection.embed import HashingEncoder

        return HashingEncoder.load(recipe.paths["model"])
    from codetune.launch.devices import choose_device, use_threads
    from codetune.selection.embed import load_encoder

    use_threads(threads_of(context, recipe))
    return load_encoder(recipe.paths["model"], choose_device())


def _write(context: RunContext, recipe: Recipe, finished: FinishedRows) -> StageOutput:
    count, refused, cut = row_artefacts.write_embeddings(context.run, finished, _known_cut(context, recipe))
    facts = {"cut": int(cut.sum()), "cut_rows": row_artefacts.pack_marks(cut), **reading_facts(context)}
    return StageOutput(count, refused, facts)


def _known_cut(context: RunContext, recipe: Recipe) -> IdIndex:
    """The instructions that were cut for the last embeddings, whose rows carry no such mark."""
    run = _ROWS.sealed_alike(context, recipe)
    manifest = read_manifest(run.embeddings) if run else None
    if run is None or manifest is None:
        return IdIndex(pack_ids(()))
    ids = row_artefacts.read_embeddings(run).ids
    return IdIndex(ids[row_artefacts.unpack_marks(manifest.facts["cut_rows"], len(ids))])


def _details(result: StageResult) -> Details:
    cut = result.facts.get("cut", 0)
    notes = [f"cut at the encoder's window: {quantity(cut, 'instruction')}"] if cut else []
    return Details([*left_out_notes(result), *notes])


_ROWS = RowStage(_plan, lambda context, recipe, run: row_artefacts.sealed_embeddings(run), _write)

EMBED = _ROWS.complete(
    Stage(
        "embed",
        _inputs,
        lambda run, request: run.embeddings,
        _ROWS.write_artefact,
        details=_details,
        documented=READING_FACTS,
        is_taken_over=True,
        is_needed=lambda project: STRATEGIES[project.select.strategy].needs_embeddings,
    )
)
