"""Writes the demo's project: an instruction set with the faults of real ones (duplicates, mismatched pairs), a held-out
benchmark in EvalPlus format, the shipped base model, and a project file. Everything follows from the seed. No
composition of operations in the benchmark occurs in the data, or in what the base model was trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from codetune.demo.instructions import answer, describe, instruct, prompt
from codetune.demo.operations import OPERATIONS
from codetune.demo.tasks import (
    EMPTY_ARGUMENT,
    TRIVIAL_OPERATIONS,
    Task,
    draw_argument,
    draw_task,
    is_reserved,
    outputs,
)
from codetune.project.file import commented_yaml
from codetune.project.sections import PROJECT_FILE
from codetune.records import Message, content_id
from codetune.store.files import write_lines, write_text

DATA_FILE, BENCHMARK_FILE, BASE_DIRECTORY = "data.jsonl", "benchmark.jsonl", "base"
SHIPPED_BASE = Path(__file__).parent / "base"

TRIVIAL_ROWS, COMPOSED_ROWS, MISMATCHED_ROWS, DUPLICATED_ROWS = 1200, 1400, 400, 60
TASKS, BASE_CALLS, PLUS_CALLS = 100, 5, 20
LENGTHS, LENGTH_WEIGHTS = (2, 3, 4), (3, 5, 3)  # operations of a composition, and their weights
FEWEST_OUTPUTS = 3  # different ones; a task whose outputs are nearly all equal tests nothing
CONTRACTS = {
    "numbers": "isinstance(numbers, list) and all(isinstance(number, int) for number in numbers)",
    "words": "isinstance(words, list) and all(isinstance(word, str) for word in words)",
    "text": "isinstance(text, str)",
    "scores": "isinstance(scores, dict) and all(isinstance(score, int) for score in scores.values())",
    "number": "isinstance(number, int) and number >= 0",
}
SETTINGS: Mapping[str, object] = {
    "name": "demo",
    "dataset.path": DATA_FILE,
    "dataset.instruction": "problem",
    "dataset.response": "solution",
    "model.path": BASE_DIRECTORY,
    "model.chat_format": "deepseek",
    "model.dtype": "float32",
    "score.max_length": 512,
    "embed.model": "hashing",
    "select.clusters": 10,
    "select.ratio": 0.4,
    "train.max_length": 512,
    "train.epochs": 3,
    "train.per_device_batch_size": 32,
    "train.gradient_accumulation_steps": 1,
    "train.learning_rate": 5.0e-4,
    "train.warmup_steps": 10,
    "train.gradient_checkpointing": False,
    "generate.max_new_tokens": 160,
    "evaluate.benchmarks": ["demo"],
}


@dataclass(frozen=True, slots=True)
class DemoProject:
    """The files of a demo, and the ids of its rows by their kind (as in `scores.jsonl`), which a real set lacks."""

    directory: Path
    project_file: Path
    data: Path
    benchmark: Path
    base: Path
    tasks: int
    trivial: frozenset[str]
    composed: frozenset[str]
    mismatched: frozenset[str]


@dataclass(frozen=True, slots=True)
class DemoRow:
    kind: str  # trivial, composed, mismatched
    problem: str
    solution: str

    @property
    def id(self) -> str:
        return content_id((Message("user", self.problem), Message("assistant", self.solution)))


def write_demo_project(directory: Path, seed: int, tasks: int = TASKS) -> DemoProject:
    """Writes the demo's project, with a benchmark of so many tasks, into `directory`; replaces an older one and leaves
    other files alone. The same seed gives the same bytes, and more tasks begin with the same ones. Raises OSError where
    `directory` is a file or cannot be written to."""
    rows = draw_rows(Random(f"rows {seed}"))
    again = Random(f"duplicates {seed}").sample(rows, DUPLICATED_ROWS)
    lines = ({"problem": row.problem, "solution": row.solution} for row in _with_duplicates(rows, again, seed))
    write_lines(directory / DATA_FILE, map(json.dumps, lines))
    write_benchmark(directory / BENCHMARK_FILE, seed, tasks)
    shutil.copytree(SHIPPED_BASE, directory / BASE_DIRECTORY, dirs_exist_ok=True)
    write_text(directory / PROJECT_FILE, commented_yaml({**SETTINGS, "seed": seed}))
    ids = {
        kind: frozenset(row.id for row in rows if row.kind == kind) for kind in ("trivial", "composed", "mismatched")
    }
    return DemoProject(
        directory=directory,
        project_file=directory / PROJECT_FILE,
        data=directory / DATA_FILE,
        benchmark=directory / BENCHMARK_FILE,
        base=directory / BASE_DIRECTORY,
        tasks=tasks,
        **ids,
    )


def write_benchmark(path: Path, seed: int, tasks: int = TASKS) -> None:
    """Writes the held-out tasks as a JSONL file in EvalPlus format."""
    write_lines(path, map(json.dumps, draw_benchmark(Random(f"benchmark {seed}"), tasks)))


def draw_rows(random: Random) -> list[DemoRow]:
    """All rows in their order in the data set, each once."""
    rows: dict[str, DemoRow] = {}
    for kind, count, draw in (
        ("trivial", TRIVIAL_ROWS, _trivial),
        ("composed", COMPOSED_ROWS, _composed),
        ("mismatched", MISMATCHED_ROWS, _mismatched),
    ):
        wanted = len(rows) + count
        while len(rows) < wanted:
            row = DemoRow(kind, *draw(random))
            rows.setdefault(row.id, row)
    return random.sample(list(rows.values()), len(rows))


def draw_benchmark(random: Random, tasks: int = TASKS) -> Iterator[dict[str, object]]:
    seen: set[str] = set()
    while len(seen) < tasks:
        task = draw_task(random, random.choices(LENGTHS, LENGTH_WEIGHTS)[0], reserved=True)
        calls = [EMPTY_ARGUMENT[task.argument]]
        calls += [draw_argument(task.argument, random) for _ in range(BASE_CALLS + PLUS_CALLS - len(calls))]
        if task.composition in seen or not _detects_omissions(task, calls):
            continue
        seen.add(task.composition)
        yield {
            "task_id": f"Demo/{len(seen) - 1}",
            # Without its line break: the base model has only seen line breaks that are one token with the indentation.
            "prompt": prompt(task, describe(task, random)).rstrip(),
            "entry_point": task.name,
            "canonical_solution": f"\n{task.body}",
            "contract": f"\n    assert {CONTRACTS[task.argument]}\n",
            "base_input": [[call] for call in calls[:BASE_CALLS]],
            "plus_input": [[call] for call in calls[BASE_CALLS:]],
            "atol": 0,
        }


def _trivial(random: Random) -> tuple[str, str]:
    task = draw_task(random, TRIVIAL_OPERATIONS, reserved=False)
    return instruct(task, random), answer(task)


def _composed(random: Random) -> tuple[str, str]:
    task = _composition(random)
    return instruct(task, random), answer(task)


def _mismatched(random: Random) -> tuple[str, str]:
    """The instruction of one task with the answer of another: with equal chance one that shares no operation with it,
    or one that differs in a single operation."""
    asked = _composition(random)
    answered = random.choice((_unlike, _near))(asked, random)
    return instruct(asked, random), answer(answered)


def _unlike(task: Task, random: Random) -> Task:
    other = _composition(random)
    while {operation.name for operation in task.operations} & {operation.name for operation in other.operations}:
        other = _composition(random)
    return other


def _near(task: Task, random: Random) -> Task:
    """The task with another operation in the place of one, under another name."""
    while True:
        index = random.randrange(len(task.operations))
        replaced = task.operations[index]
        operation = random.choice([other for other in OPERATIONS if other.takes == replaced.takes])
        operations = (*task.operations[:index], operation, *task.operations[index + 1 :])
        other = replace(task, name=_composition(random).name, operations=operations)
        is_new = operation.gives == replaced.gives and operation not in task.operations
        if is_new and not is_reserved(other.composition):
            return other


def _composition(random: Random) -> Task:
    return draw_task(random, random.choices(LENGTHS, LENGTH_WEIGHTS)[0], reserved=False)


def _detects_omissions(task: Task, calls: list[object]) -> bool:
    """Whether the outputs of the calls differ from each other, and change when any one operation is left out."""
    expected = outputs(task, calls)
    if len({repr(output) for output in expected}) < (2 if isinstance(expected[0], bool) else FEWEST_OUTPUTS):
        return False
    removable = (index for index, operation in enumerate(task.operations) if operation.takes == operation.gives)
    return all(outputs(_without(task, index), calls) != expected for index in removable)


def _without(task: Task, index: int) -> Task:
    operations, values = list(task.operations), list(task.values)
    del operations[index], values[index]
    return replace(task, operations=tuple(operations), values=tuple(values))


def _with_duplicates(rows: list[DemoRow], again: list[DemoRow], seed: int) -> list[DemoRow]:
    """The rows with each duplicate at a random position after its original."""
    random, combined = Random(f"places {seed}"), list(rows)
    for row in again:
        combined.insert(random.randint(combined.index(row) + 1, len(combined)), row)
    return combined
