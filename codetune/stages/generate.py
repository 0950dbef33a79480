"""What one process does of `generate`: every Nth item of the work list through a model of its own, each completion into
the process's own log as it comes. Processes share nothing but the directory: the command reads all logs when they end.

A model that no GPU holds is held by all of them together: each goes through the whole list, in step with the others,
and the first one writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codetune.project.sections import Project
from codetune.records import Rank
from codetune.stages.model_ref import ModelRef, end_of_turn
from codetune.store.block_log import LineLog

if TYPE_CHECKING:
    from codetune.launch.process_group import ProcessGroup
    from codetune.model.decoding import Decoder

COUNTS = ("sample", "tokens", "truncated")  # of a logged row, beside what EvalPlus' format has


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be completed, by whom and where to; it travels to other processes as JSON."""

    model: Mapping[str, Any]  # a model_ref
    benchmark: str
    file: str  # of its tasks
    missing: Sequence[Sequence[Any]]  # task id, number of the sample
    parts: str
    together: bool = False  # one model for all processes, not one for each


def order(model: ModelRef, tasks: tuple[str, Path], missing: Sequence[tuple[str, int]], parts: Path) -> Order:
    """`tasks` are the benchmark as the user says it and its file."""
    fields = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(model).items()}
    return Order(fields, tasks[0], str(tasks[1]), missing, str(parts))


def completed_rows(parts: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """What all processes have written so far, by task and number."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for path in sorted(parts.glob("completions*.jsonl")):
        with LineLog(path) as log:
            rows |= {(row["task_id"], row["sample"]): row for row in log.found}
    return rows


def complete(project: Project, ordered: Order, here: Rank, advance: Callable[[int], None]) -> int:
    """This process's part of the order; `advance` is called with the tokens of each completion. Gives their number."""
    mine = ordered.missing[here.rank :: here.world_size]
    return _log(ordered, here, _rows(project, ordered, mine, None), advance)


def complete_together(project: Project, ordered: Order, group: ProcessGroup, advance: Callable[[int], None]) -> int:
    """The whole order, in step with the other processes; what this one has written of it."""
    rows = _rows(project, ordered, ordered.missing, group)
    return _log(ordered, group.member, rows, advance) if group.is_first else sum(0 for _ in rows)


def _log(ordered: Order, here: Rank, rows: Iterator[dict[str, Any]], advance: Callable[[int], None]) -> int:
    done = 0
    with LineLog(Path(ordered.parts) / f"completions-{here.rank}.jsonl") as log:
        for row in rows:
            log.append(row)
            advance(row["tokens"])
            done += 1
    return done


def _rows(
    project: Project, ordered: Order, mine: Sequence[Sequence[Any]], group: ProcessGroup | None
) -> Iterator[dict[str, Any]]:
    if not mine:
        return
    from codetune.benchmark.benchmarks import read_problems
    from codetune.benchmark.evalplus_format import sample_row
    from codetune.benchmark.generate import generate
    from codetune.model.batch_generator import BatchGenerator
    from codetune.model.decoder_choice import load_decoder
    from codetune.model.load import load_trained_tokenizer
    from codetune.model.tensor_parallel import load_tensor_parallel

    tasks = {problem.task_id: problem for problem in read_problems(Path(ordered.file))}
    model = _model_ref(ordered.model)
    tokenizer = load_trained_tokenizer(model.directory, model.tokenizer, model.chat_format)
    settings = project.generate.model_copy(update={"prompt": model.kind})
    decoder: Decoder
    if group is None:
        decoder = load_decoder(model.directory, tokenizer, project.model, end_of_turn(model), settings)
    else:
        network = load_tensor_parallel(model.directory, project.model, group, Path(ordered.parts))
        decoder = BatchGenerator(network, tokenizer, end_of_turn(model), settings, group)
    work = [(tasks[task_id], number) for task_id, number in mine]
    for made in generate(work, tokenizer, decoder, settings, project.seed):
        counts = (made.sample.sample, made.tokens, made.truncated)
        yield {**sample_row(made.sample), **dict(zip(COUNTS, counts, strict=True))}


def _model_ref(fields: Mapping[str, Any]) -> ModelRef:
    return ModelRef(**{**fields, "directory": Path(fields["directory"]), "tokenizer": Path(fields["tokenizer"])})
