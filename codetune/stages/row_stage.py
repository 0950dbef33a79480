"""What one process does of score and embed: it plans the blocks of the data set, and does those that are its own.

The blocks are the same in every process, whatever their number; each is committed to the process's own log, from which
the command merges. A shard's blocks are dealt to its processes in turn. Imports models inside functions: to see that
nothing is missing must not take their libraries' many seconds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codetune.data.source import read_examples
from codetune.launch.environment import Shard, thread_count
from codetune.model import model_files
from codetune.project.sections import Project
from codetune.records import Example, Rank, Refusal
from codetune.selection.blocks import Block
from codetune.stages.blocks import Work, do_missing
from codetune.stages.status import Recipe, RunContext, content_digest, settings_of
from codetune.store import row_artefacts
from codetune.store.block_log import FinishedRows, read_logs
from codetune.store.digests import Digests, combined
from codetune.store.files import remove, replacing, write_text
from codetune.store.locks import SHARED, locked, waiting
from codetune.store.manifest import manifest_path, read_manifest
from codetune.store.run_directory import Run

if TYPE_CHECKING:
    from codetune.data.tokens import ScoringTokens
    from codetune.selection.embed import Encoder

# Estimated tokens of a block without a GPU, where the project says `auto`: a second or so of a small model.
AUTO_TOKENS_PER_BATCH = 8192
Tell = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """The blocks of a stage, and what makes their rows."""

    blocks: Iterable[Block]
    load: Callable[[], Work[Any]]


def do_part(project: Project, details: Mapping[str, Any], here: Rank, tell: Callable[[Mapping[str, Any]], None]) -> int:
    """Does this process's blocks and tells of each, `{"rows": done}`; gives how many rows that were."""
    run = Run(project.run_dir)
    context, stage, asked = RunContext(project, run, Digests(run)), details["stage"], details["shard"]
    recipe = Recipe.of(context, stage, context.artefact(stage), details["inputs"])
    shard = dealt((0, 1) if asked is None else (asked[0], asked[1]), here)
    if asked is not None and here.world_size == 1:
        from codetune.launch.devices import take_gpu

        take_gpu(shard[0])
    if asked is not None and here.world_size > 1:
        # The command holds the shard that it was asked for; this part of it could be somebody else's shard.
        with locked(run, stage, shard):
            return _do(context, recipe, Path(details["model"]), shard, tell)
    return _do(context, recipe, Path(details["model"]), shard, tell)


def dealt(shard: Shard, here: Rank) -> Shard:
    """What one of several processes does of a shard.

    >>> dealt((1, 3), Rank(rank=1, world_size=2, local_rank=1, local_world_size=2))
    (4, 6)
    """
    return shard[0] + shard[1] * here.rank, shard[1] * here.world_size


def _do(context: RunContext, recipe: Recipe, model: Path, shard: Shard, tell: Tell) -> int:
    plan = (_scoring if recipe.stage == "score" else _embedding)(context, recipe, model)
    directory, done = context.run.parts(recipe.artefact), 0
    with waiting(context.run, f"{recipe.stage}-parts", SHARED):
        finished = finished_rows(context, recipe)
    for count in do_missing(plan.blocks, directory, finished, shard, plan.load):
        tell({"rows": count})
        done += count
    return done


def _scoring(context: RunContext, recipe: Recipe, directory: Path) -> Plan:
    from codetune.launch.devices import choose_device, use_threads
    from codetune.model.likelihood import CausalScorer, measured_tokens_per_pass, set_scoring_attention
    from codetune.model.load import load_model, load_tokenizer
    from codetune.selection.blocks import plan_scoring_blocks
    from codetune.selection.score import score_tokens, tokenise

    model, settings = context.project.model, context.project.score

    @cache
    def network() -> Any:
        loaded = load_model(directory, model, choose_device())
        set_scoring_attention(loaded, model.attention)
        return loaded

    def measure() -> int:
        return measured_tokens_per_pass(network(), settings.max_length)

    budget = tokens_per_pass(context, recipe, choose_device(), measure)

    def load() -> Work[list[ScoringTokens | Refusal]]:
        use_threads(threads_of(context, recipe))
        tokenizer, scorer = load_tokenizer(directory), CausalScorer(network(), budget)
        return Work(
            lambda examples: tokenise(examples, tokenizer, scorer.window, settings),
            lambda examples, tokens: [row_artefacts.score_line(row) for row in score_tokens(examples, tokens, scorer)],
        )

    return Plan(plan_scoring_blocks(usable_rows(context), budget, settings.max_length), load)


def _embedding(context: RunContext, recipe: Recipe, place: Path) -> Plan:
    from codetune.selection.blocks import plan_embedding_blocks

    def load() -> Work[Sequence[bool]]:
        encoder = _load_encoder(context, place, threads_of(context, recipe))

        def finish(examples: Sequence[Example], cut: Sequence[bool]) -> list[bytes]:
            vectors = encoder.encode([example.instruction for example in examples])
            return [row_artefacts.embedding_bytes(vector, flag) for vector, flag in zip(vectors, cut, strict=True)]

        return Work(lambda examples: encoder.truncates([example.instruction for example in examples]), finish)

    return Plan(plan_embedding_blocks(usable_rows(context), context.project.embed.batch_size), load)


def threads_of(context: RunContext, recipe: Recipe) -> int:
    """Of every process that makes these rows, as many as the first one had: sums in another number of parts have other
    bits. Kept beside the parts, and as long."""
    kept = context.run.parts(recipe.artefact) / "threads"
    with waiting(context.run, f"{recipe.stage}-threads"):
        if not kept.exists():
            write_text(kept, f"{thread_count()}\n")
        return int(kept.read_text(encoding="ascii"))


def tokens_per_pass(context: RunContext, recipe: Recipe, device: str, measure: Callable[[], int]) -> int:
    """Of a forward pass, and so of a block. What a GPU has room for is looked at once and kept with the run: blocks are
    to be the same in every process, and after any end."""
    settings = context.project.score
    if settings.tokens_per_batch != "auto":
        return settings.tokens_per_batch
    if device == "cpu":
        return AUTO_TOKENS_PER_BATCH
    kept = context.run.tokens_per_batch(combined(map(repr, recipe.identity(without=["dataset"]).items())))
    with waiting(context.run, "tokens-per-batch"):
        if not kept.exists():
            write_text(kept, f"{measure()}\n")
        return int(kept.read_text(encoding="ascii"))


def finished_rows(context: RunContext, recipe: Recipe) -> FinishedRows:
    """Every row that is done: in the logs of all processes, and in the last artefact where it was made alike. For
    whoever holds the lock of the parts: others merge and remove them."""
    rows = read_logs(context.run.parts(recipe.artefact))
    if run := sealed_alike(context, recipe):
        sealed = row_artefacts.sealed_scores if recipe.stage == "score" else row_artefacts.sealed_embeddings
        rows.add_file(run.directory / recipe.artefact.name, sealed(run))
    return rows


def sealed_alike(context: RunContext, recipe: Recipe) -> Run | None:
    """Where the last artefact lies that was made with these settings and is as it was sealed."""
    for run in (context.run, context.run.before(recipe.stage)):
        artefact = run.directory / recipe.artefact.name
        manifest = read_manifest(artefact)
        if (
            manifest is None
            or manifest.settings != recipe.settings
            or manifest.inputs.get("model") != recipe.inputs["model"]
        ):
            continue
        if content_digest(RunContext(context.project, run, context.digests), artefact) == manifest.digest:
            return run
    return None


def keep_before(context: RunContext, recipe: Recipe) -> None:
    """Links to the artefact and its manifest: killed after it is replaced and before the next one is sealed, no row of it
    is lost."""
    if sealed_alike(context, recipe) != context.run:
        return
    kept = context.run.before(recipe.stage).directory
    remove(kept)
    kept.mkdir(parents=True)
    companions = [context.run.embedding_ids] if recipe.stage == "embed" else []
    for path in (*companions, recipe.artefact, manifest_path(recipe.artefact)):
        with contextlib.suppress(OSError):  # a file system without links: then they are made once more
            (kept / path.name).hardlink_to(path)


def find_encoder(context: RunContext) -> tuple[Path, str]:
    """Where the encoder lies that the project names, and its digest."""
    model = context.project.embed.model
    if model != "hashing":
        directory = model_files.find_encoder(context.project.locate(model))
        return directory, context.digests.tree(directory)
    kept = _projection(context)
    return kept, context.digests.file(kept)


def _load_encoder(context: RunContext, place: Path, threads: int) -> Encoder:
    if context.project.embed.model == "hashing":
        from codetune.selection.embed import HashingEncoder

        return HashingEncoder.load(place)
    from codetune.launch.devices import choose_device, use_threads
    from codetune.selection.embed import load_encoder

    use_threads(threads)
    return load_encoder(place, choose_device())


def _projection(context: RunContext) -> Path:
    """The offline encoder, fitted once for these settings and kept with the run, so that rows added later get
    comparable vectors and every process has the same."""
    from codetune.selection.embed import HashingEncoder

    kept = context.run.projection(combined(map(repr, settings_of(context.project, "embed").items())))
    with waiting(context.run, "projection"):
        if not kept.exists():
            fitted = HashingEncoder.fit((example.instruction for example in usable_rows(context)), context.project.seed)
            with replacing(kept) as temporary:
                fitted.save(temporary)
    return kept


def rows_of(context: RunContext) -> Iterator[Example | Refusal]:
    dataset = context.project.dataset
    return read_examples(dataset, context.project.locate(dataset.path))


def usable_rows(context: RunContext) -> Iterator[Example]:
    return (row for row in rows_of(context) if isinstance(row, Example))
