"""generate: what a model writes for every task -> `completions/<benchmark>/<label>.jsonl`.

Each process takes every Nth item of the work list through a model of its own, and appends each completion to a log of
its own. A model that no GPU can hold is held by all processes together: each goes through the whole list, in step with
the others, and the first one writes. Results are kept by the digest of the model: one replaced at the same path is
another model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from codetune import console
from codetune.benchmark.benchmarks import read_problems
from codetune.benchmark.evalplus_format import sample_row
from codetune.console import quantity
from codetune.errors import InputError, UsageError
from codetune.launch.dispatch import Job, WorkerContext, perform, process_count
from codetune.launch.environment import current_rank
from codetune.launch.workers import JSON
from codetune.project.sections import Project
from codetune.records import ModelRef
from codetune.stages.benchmarks import tasks_facts, tasks_input
from codetune.stages.model_card import update_card
from codetune.stages.model_ref import end_of_turn, local_directory, model_digest, prompt_kind
from codetune.stages.runner import of_total, warn_of_new_parts, write_total
from codetune.stages.stage import (
    Details,
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
from codetune.store.block_log import LineLog, open_parts, read_objects
from codetune.store.files import write_lines

if TYPE_CHECKING:
    from codetune.benchmark.generate import GeneratedSample
    from codetune.launch.process_group import ProcessGroup
    from codetune.model.decoding import Decoder

COUNTS = ("sample", "tokens", "truncated")  # of a logged row, beside what EvalPlus' format has


class LoggedCompletion(TypedDict):
    """A line of a log: that of EvalPlus' format, with its completion or solution, and what codetune counts."""

    task_id: str
    sample: int
    tokens: int
    truncated: bool
    refused: NotRequired[str]


@dataclass(frozen=True, slots=True)
class WorkList:
    """The samples to be generated, the model that generates them, and the directory of the logs."""

    model: ModelRef
    file: Path  # of the tasks
    missing: Sequence[tuple[str, int]]  # task id, number of the sample
    parts: Path
    together: bool = False  # one model for all processes, not one for each

    def document(self) -> dict[str, JSON]:
        """As JSON, for worker processes."""
        document: dict[str, JSON] = json.loads(json.dumps(asdict(self), default=str))
        return document

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> WorkList:
        model = {**document["model"], **{name: Path(document["model"][name]) for name in ("directory", "tokenizer")}}
        missing = [(task_id, number) for task_id, number in document["missing"]]
        paths = {name: Path(document[name]) for name in ("file", "parts")}
        return cls(**{**document, **paths, "model": ModelRef(**model), "missing": missing})


def _inputs(project: Project, request: StageRequest) -> Sequence[Input]:
    return tasks_input(), model_of_request()


def model_of_request() -> Input:
    """The model of the request, by the digest of all that decides what it writes."""
    return Input("model", _resolve_model, _changed_model)


def _resolve_model(context: RunContext, request: StageRequest) -> Resolved:
    assert request.model is not None
    return Resolved(request.model.digest, request.model.directory)


def _changed_model(context: RunContext, request: StageRequest, sealed: SealedArtefact) -> str:
    made_by = sealed.manifest.inputs["model"]
    if request.model is not None:
        is_same = request.model.digest == made_by
        return "" if is_same else f"{sealed.path} was made by a different model"
    directory = local_directory(context, request.label)
    if directory is not None and directory.is_dir() and model_digest(context, directory) != made_by:
        return f"the {request.label} model has changed since"
    return ""


def _check(context: RunContext, request: StageRequest) -> None:
    if request.model is not None and request.model.kind is None:
        raise UsageError(
            f"{request.model.name} can be prompted as a chat or with raw text, and it is not known which (base models "
            "can have a chat template too). Add --instruct or --base, or set generate.prompt"
        )


def _check_ahead(context: RunContext, request: StageRequest, paths: Mapping[str, Path]) -> None:
    """Raises ProjectError without vLLM where the project names it, ModelError for a chat without a chat template."""
    if context.project.generate.backend == "vllm":
        from codetune.model.vllm_engine import require_installed

        require_installed()
    if request.model is not None and request.model.kind == "chat":
        from codetune.benchmark.generate import chat_text
        from codetune.model.load import load_trained_tokenizer

        assert request.tasks is not None
        model = request.model
        tokenizer = load_trained_tokenizer(model.directory, model.tokenizer, model.chat_format)
        chat_text(request.tasks.problems[0], tokenizer)


def _settings(context: RunContext, request: StageRequest, settings: Settings) -> Settings:
    """The settings with the kind of prompt in the place of `auto`; greedy decoding draws nothing, so it depends on no
    seed."""
    model = request.model
    kind = model.kind if model else prompt_kind(context, request.label, context.run.model)
    unused = ("generate.top_p", "seed") if context.project.generate.temperature == 0 else ()
    kept = {key: value for key, value in settings.items() if key not in (*unused, "generate.prompt")}
    return {**kept, "generate.prompt": kind} if kind else kept


def _prepare(context: RunContext, recipe: Recipe, request: StageRequest) -> None:
    if open_parts(context.run.parts(recipe.artefact), recipe.identity(), refuse_others=False):
        warn_of_new_parts(recipe.stage)
    write_total(context.run.parts(recipe.artefact), len(_samples(context, request)))


def _work(context: RunContext, recipe: Recipe, request: StageRequest) -> int:
    assert request.tasks is not None
    assert request.model is not None
    parts, work = context.run.parts(recipe.artefact), _samples(context, request)
    rows = completed_rows(parts)
    with console.progress(f"generate {request.benchmark} {request.label}", len(work), "sample", len(rows)) as bar:
        missing = [item for item in work if item not in rows]
        _perform(context, WorkList(request.model, request.tasks.file, missing, parts), bar.advance)
    return len(rows)


def _write(context: RunContext, recipe: Recipe, request: StageRequest) -> StageOutput:
    assert request.tasks is not None
    rows = completed_rows(context.run.parts(recipe.artefact))
    written = [rows[item] for item in _samples(context, request)]
    refused = Counter(row["refused"] for row in written if "refused" in row)
    if refused.total() == len(written):
        raise InputError(
            f"No task of {request.benchmark} can be asked ({console.counts(refused)}). Expected: room for prompts and "
            "answers. Use a model with a longer window, or a benchmark with shorter prompts."
        )
    write_lines(recipe.artefact, (json.dumps(_without_counts(row)) for row in written))
    counts = {name: sum(row[name] for row in written) for name in ("tokens", "truncated")}
    return StageOutput(len(written) - refused.total(), refused, counts)


def _samples(context: RunContext, request: StageRequest) -> list[tuple[str, int]]:
    """(task id, number of the sample), in the benchmark's order."""
    assert request.tasks is not None
    numbers = range(context.project.generate.samples_per_task)
    return [(problem.task_id, number) for problem in request.tasks.problems for number in numbers]


def _without_counts(row: LoggedCompletion) -> dict[str, object]:
    """The row as EvalPlus has it: a task's samples are counted in the order in which they stand."""
    return {name: value for name, value in row.items() if name not in COUNTS}


def _perform(context: RunContext, ordered: WorkList, advance: Callable[[int, int], None]) -> None:
    """Makes the samples in one process for each GPU, or as many as the project says; on other machines only where a
    launcher has started them. vLLM spreads over GPUs by itself."""
    if not ordered.missing:
        return
    launch = context.project.launch.model_copy(update={"nodes": 1})
    project = context.project.model_copy(update={"launch": launch})
    uses_vllm = project.generate.backend == "vllm"
    processes = 1 if uses_vllm else process_count(project)
    if not uses_vllm and _is_divided(project, ordered.model.directory, processes):
        ordered = replace(ordered, together=True)
    job = Job(GENERATE.name, project, ordered.document())
    perform(job, processes, lambda rank, message: advance(1, int(message["tokens"] or 0)), complete)


def _is_divided(project: Project, model: Path, processes: int) -> bool:
    """Whether the model is too large for one GPU, so that all processes hold it together."""
    from codetune.model.tensor_parallel import ProcessCounts, needs_tensor_parallel, visible_gpus

    rank = current_rank()
    counts = ProcessCounts(processes, processes)
    if rank.world_size > 1:  # a launcher started them
        counts = ProcessCounts(rank.world_size, rank.local_world_size)
    return needs_tensor_parallel(model, project.model.dtype, counts, visible_gpus())


def completed_rows(parts: Path) -> dict[tuple[str, int], LoggedCompletion]:
    """The completions that all processes have written so far, by task id and number of the sample."""
    rows: dict[tuple[str, int], LoggedCompletion] = {}
    for path in sorted(parts.glob("completions*.jsonl")):
        rows |= {(row["task_id"], row["sample"]): row for row in read_objects(path)}
    return rows


def complete(job: Job, worker: WorkerContext) -> int:
    """One process's part of the work list; sends the tokens of each completion, and returns how many it wrote."""
    ordered = WorkList.read(job.details)
    if not ordered.together:
        mine = ordered.missing[worker.rank.rank :: worker.rank.world_size]
        return _log(ordered, worker, _generate(job.project, ordered, mine, None))
    with worker.process_group() as group:
        samples = _generate(job.project, ordered, ordered.missing, group)
        return _log(ordered, worker, samples) if group.is_first else sum(0 for _ in samples)


def _log(ordered: WorkList, worker: WorkerContext, samples: Iterator[GeneratedSample]) -> int:
    done = 0
    with LineLog(ordered.parts / f"completions-{worker.rank.rank}.jsonl") as log:
        for made in samples:
            counts = (made.sample.sample, made.tokens, made.truncated)
            refused = {"refused": made.refused} if made.refused else {}
            log.append({**sample_row(made.sample), **refused, **dict(zip(COUNTS, counts, strict=True))})
            worker.send_progress({"tokens": made.tokens})
            done += 1
    return done


def _generate(
    project: Project, ordered: WorkList, mine: Sequence[tuple[str, int]], group: ProcessGroup | None
) -> Iterator[GeneratedSample]:
    if not mine:
        return
    from codetune.benchmark.generate import generate
    from codetune.model.batch_generator import BatchGenerator
    from codetune.model.decoder_choice import load_decoder
    from codetune.model.load import load_trained_tokenizer
    from codetune.model.tensor_parallel import load_tensor_parallel

    tasks = {problem.task_id: problem for problem in read_problems(ordered.file)}
    model = ordered.model
    tokenizer = load_trained_tokenizer(model.directory, model.tokenizer, model.chat_format)
    settings = project.generate.model_copy(update={"prompt": model.kind})
    decoder: Decoder
    if group is None:
        decoder = load_decoder(model.directory, tokenizer, project.model, end_of_turn(model), settings)
    else:
        network = load_tensor_parallel(model.directory, project.model, group, ordered.parts)
        decoder = BatchGenerator(network, tokenizer, end_of_turn(model), settings, group)
    work = [(tasks[task_id], number) for task_id, number in mine]
    yield from generate(work, tokenizer, decoder, settings, project.seed)


def _progress(context: RunContext, request: StageRequest) -> str | None:
    parts = context.run.parts(context.run.completions(request.benchmark, request.label))
    return f"{len(completed_rows(parts)):,}{of_total(parts)} completions" if parts.exists() else None


def _has_saved(context: RunContext, request: StageRequest) -> bool:
    return bool(completed_rows(context.run.parts(context.run.completions(request.benchmark, request.label))))


def _details(result: StageResult) -> Details:
    facts = result.facts
    cut = f"cut at generate.max_new_tokens: {facts['truncated']:,} of {quantity(result.rows, 'completion')}"
    return Details([f"{facts['tokens']:,} tokens", *([cut] if facts["truncated"] else [])])


GENERATE = Stage(
    "generate",
    _inputs,
    lambda run, request: run.completions(request.benchmark, request.label),
    _write,
    of_benchmark=True,
    check=_check,
    check_ahead=_check_ahead,
    settings=_settings,
    prepare=_prepare,
    work=_work,
    progress=_progress,
    has_saved=_has_saved,
    details=_details,
    afterwards=update_card,
    is_taken_over=True,
    facts=tasks_facts,
    documented=("tokens", "truncated"),
    in_process=complete,
)
