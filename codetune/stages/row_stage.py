"""The common part of score and embed: rows are made block by block, each block is committed to a log, and the artefact
is written from the logs when no row is missing.

The blocks follow from the data set and the settings alone, so they are the same in every process. Shard I of N does the
blocks I, I+N, ...; the processes of one shard share its blocks in the same way. A process looks up every row before it
makes it: resuming, shards and added rows are this one rule. Models are imported inside functions: to find that nothing
is missing must not take the seconds that their libraries take to load."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from codetune import console
from codetune.errors import StaleError
from codetune.launch.dispatch import Job, WorkerContext, perform, process_count
from codetune.launch.environment import Shard, current_node, thread_count
from codetune.launch.workers import SendProgress
from codetune.records import Example, Rank
from codetune.selection.blocks import Block
from codetune.stages.dataset import examples_manifest
from codetune.stages.runner import lock_name, stage_settings, warn_of_new_parts
from codetune.stages.shards import WAITING, ShardState, mark_done, next_shard, shard_states, summary
from codetune.stages.stage import Recipe, RunContext, Stage, StageOutput, StageRequest
from codetune.store.block_log import SETTINGS, BlockLog, FinishedRows, log_path, open_parts, read_logs, read_settings
from codetune.store.digests import Digests
from codetune.store.examples import example_ids
from codetune.store.files import remove, write_text
from codetune.store.locks import SHARED, locked, waiting
from codetune.store.manifest import Manifest, manifest_path, read_manifest
from codetune.store.run_directory import Run, files_of

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
BLOCKS_AHEAD = 3  # prepared while the device computes
END = object()


@dataclass(frozen=True, slots=True)
class BlockWork(Generic[Prepared]):
    """The two steps that make the rows of a block: `prepare` needs no device and runs in another thread, ahead of
    `finish`, which gives each row as bytes, in the order of the examples."""

    prepare: Callable[[Sequence[Example]], Prepared]
    finish: Callable[[Sequence[Example], Prepared], Sequence[bytes]]


@dataclass(frozen=True, slots=True)
class Plan:
    """The blocks of a stage, and what makes their rows; `load` is called when the first missing row is met."""

    blocks: Iterable[Block]
    load: Callable[[], BlockWork[Any]]


@dataclass(frozen=True, slots=True)
class RowJob:
    """The message to a worker process: the recipe, and the shard that the command was asked for."""

    recipe: Mapping[str, object]
    shard: Sequence[int] | None


@dataclass(frozen=True, slots=True)
class RowStage:
    """The parts in which score and embed differ."""

    plan: Callable[[RunContext, Recipe], Plan]
    # Id, offset and length in the last artefact, in that run directory, of the rows that lack nothing.
    sealed_rows: Callable[[RunContext, Recipe, Run], Iterator[tuple[str, int, int]]]
    write: Callable[[RunContext, Recipe, FinishedRows], StageOutput]
    additions: Sequence[str] = ()  # as of the Stage

    def complete(self, stage: Stage) -> Stage:
        """The stage with the parts in which score and embed are alike."""
        return replace(
            stage,
            prepare=self.prepare,
            work=self.work,
            progress=lambda context, request: self.progress(context, stage),
            continue_command=lambda context: self.continue_command(context, stage),
            has_saved=lambda context, request: self.has_saved(context, stage),
            missing_shards=lambda context, count: self.missing_shards(context, stage, count),
            additions=self.additions,
            in_process=self.in_process,
        )

    def prepare(self, context: RunContext, recipe: Recipe, request: StageRequest) -> None:
        """Raises StaleError where another shard is at work with other settings."""
        parts, in_shards = context.run.parts(recipe.artefact), shard_of(context, request) is not None
        if open_parts(parts, recipe.identity(without=["dataset"]), refuse_others=in_shards):
            warn_of_new_parts(recipe.stage)

    def work(self, context: RunContext, recipe: Recipe, request: StageRequest) -> int:
        """Makes the missing rows of this shard, in as many processes as the project says."""
        ids = example_ids(context.run)
        with _parts(context, recipe, SHARED):
            missing = _count_missing(ids, self.finished_rows(context, recipe))
        if missing:
            self._perform(context, recipe, request, len(ids), len(ids) - missing)
        return len(ids) - missing

    def write_artefact(self, context: RunContext, recipe: Recipe, request: StageRequest) -> StageOutput:
        """The artefact, where every row is done; else how many are."""
        finished = self.finished_rows(context, recipe)
        if missing := _count_missing(example_ids(context.run), finished):
            examples = examples_manifest(context)
            return StageOutput(examples.rows - missing, examples.refused, complete=False)
        self._keep_before(context, recipe)
        return self.write(context, recipe, finished)

    def in_process(self, job: Job, worker: WorkerContext) -> int:
        """One process's blocks; sends `{"rows": done}` after each, and returns their sum."""
        run, details = Run(job.project.run_dir), RowJob(**cast("dict[str, Any]", job.details))
        context, recipe = RunContext(job.project, run, Digests(run)), Recipe.read(details.recipe)
        asked, rank = details.shard, worker.rank
        shard = shard_of_process((0, 1) if asked is None else (asked[0], asked[1]), rank)
        if asked is not None and rank.world_size == 1:
            from codetune.launch.devices import take_gpu

            take_gpu(shard[0])
        if asked is not None and rank.world_size > 1:
            # The command holds the lock of the shard that it was asked for; this part may be another command's shard.
            with locked(run, recipe.stage, shard):
                return self._do(context, recipe, shard, worker.send_progress)
        return self._do(context, recipe, shard, worker.send_progress)

    def progress(self, context: RunContext, stage: Stage) -> str | None:
        """The number of rows done of an artefact that does not exist yet, as text; None if none was begun."""
        parts = context.run.parts(stage.artefact(context.run, StageRequest()))
        if not parts.exists():
            return None
        alike = self._has_these_settings(context, stage)
        other = "" if alike else ", made with other settings: they will be made again"
        examples = read_manifest(context.run.examples)
        total = f" of {examples.rows:,}" if examples else ""
        shards = summary(self._shards(context, stage))
        return f"{len(read_logs(parts)):,}{total} rows{other}" + (f"; {shards}" if shards else "")

    def continue_command(self, context: RunContext, stage: Stage) -> str:
        """The command of a shard that nobody works on, of an artefact that is made in shards; else ""."""
        shard = next_shard(self._shards(context, stage))
        return f"{stage.command(StageRequest())} --shard {shard[0]}/{shard[1]}" if shard else ""

    def missing_shards(self, context: RunContext, stage: Stage, count: int) -> list[int]:
        """Which of `count` shards nobody works on and have rows left to make. Raises StaleError where there are parts
        made with other settings, which shards refuse."""
        parts = context.run.parts(stage.artefact(context.run, StageRequest()))
        if (parts / SETTINGS).exists() and not self._has_these_settings(context, stage):
            raise StaleError(
                f"{parts} holds shards made with other settings, which a shard does not remove. Use the same settings, "
                "or another name for this run (--set name=NEW). To start again, move them away: "
                f"mv {shlex.quote(str(parts))} {shlex.quote(f'{parts}.old')}"
            )
        found = {one.shard[0]: one.state for one in self._shards(context, stage) if one.shard[1] == count}
        return [index for index in range(count) if found.get(index, "not begun") in WAITING]

    def _has_these_settings(self, context: RunContext, stage: Stage) -> bool:
        """Whether the rows that are done were made with what the project asks for now."""
        request = StageRequest()
        settings: dict[str, object] = json.loads(json.dumps(dict(stage_settings(context, stage, request))))
        made = read_settings(context.run.parts(stage.artefact(context.run, request))) or {}
        return {key: value for key, value in made.items() if not key.endswith("(digest)")} == settings

    def _shards(self, context: RunContext, stage: Stage) -> list[ShardState]:
        """The states of the shards; none for rows made with other settings, because those cannot be continued."""
        request, examples = StageRequest(), read_manifest(context.run.examples)
        parts = context.run.parts(stage.artefact(context.run, request))
        if not self._has_these_settings(context, stage):
            return []
        return shard_states(context.run, lock_name(stage, request), parts, examples.rows if examples else None)

    def has_saved(self, context: RunContext, stage: Stage) -> bool:
        """Whether an interrupted command has left rows."""
        return len(read_logs(context.run.parts(stage.artefact(context.run, StageRequest())))) > 0

    def finished_rows(self, context: RunContext, recipe: Recipe) -> FinishedRows:
        """Every row that is done: in the logs of all processes, and in the last artefact where its recipe was the same.
        The caller holds the lock of the parts: other processes merge and remove them."""
        rows = read_logs(context.run.parts(recipe.artefact))
        if run := self.sealed_alike(context, recipe):
            rows.add_file(run.directory / recipe.artefact.name, self.sealed_rows(context, recipe, run))
        return rows

    def sealed_alike(self, context: RunContext, recipe: Recipe) -> Run | None:
        """The run directory with the last artefact of these settings, additions aside, and this model, as it was
        sealed."""
        for run in (context.run, context.run.before(recipe.stage)):
            artefact = run.directory / recipe.artefact.name
            manifest = read_manifest(artefact)
            if manifest is None or self._without_additions(manifest) != self._without_additions(recipe):
                continue
            same_model = manifest.inputs.get("model") == recipe.inputs["model"]
            if same_model and context.digests.artefact(artefact) == manifest.digest:
                return run
        return None

    def _without_additions(self, made: Manifest | Recipe) -> dict[str, object]:
        return {key: value for key, value in made.settings.items() if key not in self.additions}

    def _perform(self, context: RunContext, recipe: Recipe, request: StageRequest, rows: int, reused: int) -> None:
        shard, launch = shard_of(context, request), context.project.launch
        in_array = request.shard is not None and launch.nodes == 1  # a shard of a job array is one process
        processes = 1 if in_array and launch.processes == "auto" else process_count(context.project)
        # Machines need not hear of each other: each does a shard.
        here = context.project.model_copy(update={"launch": launch.model_copy(update={"nodes": 1})})
        job = Job(recipe.stage, here, asdict(RowJob(recipe.document(), shard)))
        with console.progress(recipe.stage, rows, "row", reused) as bar:
            perform(job, processes, lambda rank, message: bar.advance(int(message["rows"] or 0)), self.in_process)

    def _do(self, context: RunContext, recipe: Recipe, shard: Shard, send: SendProgress) -> int:
        plan = self.plan(context, recipe)
        directory, done = context.run.parts(recipe.artefact), 0
        with _parts(context, recipe, SHARED):
            finished = self.finished_rows(context, recipe)
        for count in do_missing(plan.blocks, directory, finished, shard, plan.load):
            send({"rows": count})
            done += count
        with _parts(context, recipe, SHARED):
            if directory.exists():  # not if another process has written the artefact meanwhile
                mark_done(directory, shard, examples_manifest(context).rows)
        return done

    def _keep_before(self, context: RunContext, recipe: Recipe) -> None:
        """Hard links to the artefact and its manifest. After a kill between the new artefact and its manifest the rows
        of the old one are still found."""
        if self.sealed_alike(context, recipe) != context.run:
            return
        kept = context.run.before(recipe.stage).directory
        remove(kept)
        kept.mkdir(parents=True)
        for path in (*files_of(recipe.artefact), manifest_path(recipe.artefact)):
            with contextlib.suppress(OSError):  # a file system without links: the rows are made once more
                (kept / path.name).hardlink_to(path)


def shard_of(context: RunContext, request: StageRequest) -> Shard | None:
    """The shard that is asked for; where the command is started once on each of several machines, that of this one."""
    if request.shard is not None or context.project.launch.nodes == 1:
        return request.shard
    node = current_node(context.project.launch.nodes)
    return node.rank, node.count


def shard_of_process(shard: Shard, rank: Rank) -> Shard:
    """The part of a shard that one of several processes does.

    >>> shard_of_process((1, 3), Rank(1, 2, 1, 2))
    (4, 6)
    """
    return shard[0] + shard[1] * rank.rank, shard[1] * rank.world_size


def threads_of(context: RunContext, recipe: Recipe) -> int:
    """Threads of every process that makes these rows, as many as the first one had: a sum over another number of parts
    differs in its last bits. Kept beside the parts, and as long."""
    kept = context.run.parts(recipe.artefact) / "threads"
    with waiting(context.run, f"{recipe.stage}-threads"):
        if not kept.exists():
            write_text(kept, f"{thread_count()}\n")
        return int(kept.read_text(encoding="ascii"))


def do_missing(
    blocks: Iterable[Block],
    directory: Path,
    finished: FinishedRows,
    shard: Shard,
    load: Callable[[], BlockWork[Prepared]],
) -> Iterator[int]:
    """Does this shard's blocks without their finished rows; yields the number of rows done with each block.

    The data set is read, and blocks are prepared, in a thread ahead of the device."""
    todo = _missing_rows(blocks, finished, shard)
    first = next(todo, None)
    if first is None:
        return
    work = load()
    prepared = prefetch(((examples, work.prepare(examples)) for examples in chain([first], todo)), BLOCKS_AHEAD)
    with BlockLog(log_path(directory, shard)) as log, closing(prepared):
        for examples, ready in prepared:
            log.append([example.id for example in examples], work.finish(examples, ready))
            yield len(examples)


def prefetch(items: Iterator[Item], count: int) -> Generator[Item]:
    """The same items, made in a thread up to `count` ahead of their use. An error comes where its item would have."""
    thread = ThreadPoolExecutor(1)
    try:
        waiting_items = deque(thread.submit(next, items, END) for _ in range(count))
        while (item := waiting_items.popleft().result()) is not END:
            waiting_items.append(thread.submit(next, items, END))
            yield item  # type: ignore[misc]
    finally:
        thread.shutdown(cancel_futures=True)


def _count_missing(ids: NDArray[np.uint64], finished: FinishedRows) -> int:
    return int(np.count_nonzero(~finished.holds(ids)))


def _missing_rows(blocks: Iterable[Block], finished: FinishedRows, shard: Shard) -> Iterator[Sequence[Example]]:
    for block in blocks:
        if block.index % shard[1] == shard[0]:
            missing = [example for example in block.examples if example.id not in finished]
            if missing:
                yield missing


def _parts(context: RunContext, recipe: Recipe, kind: int) -> contextlib.AbstractContextManager[None]:
    return waiting(context.run, f"{recipe.stage}-parts", kind)
