"""The demo's data set has known faults, and its benchmark asks for compositions that no row contains."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from codetune.benchmark.benchmarks import read_problems
from codetune.data.source import read_examples
from codetune.demo.demo_project import (
    DUPLICATED_ROWS,
    SHIPPED_BASE,
    TASKS,
    DemoProject,
    draw_benchmark,
    write_demo_project,
)
from codetune.demo.operations import OPERATIONS
from codetune.demo.tasks import is_reserved
from codetune.project.file import read_project
from codetune.records import Example, Refusal


@pytest.fixture(scope="module")
def demo_project(tmp_path_factory: pytest.TempPathFactory) -> DemoProject:
    return write_demo_project(tmp_path_factory.mktemp("demo"), seed=7)


def rows_of(demo_project: DemoProject) -> list[Example | Refusal]:
    project = read_project(demo_project.project_file, [], {})
    return list(read_examples(project.dataset, str(demo_project.data)))


def tasks_of(demo_project: DemoProject) -> list[dict[str, Any]]:
    return [json.loads(line) for line in demo_project.benchmark.read_text(encoding="utf-8").splitlines()]


def test_every_row_is_read_and_every_duplicate_is_refused_as_such(demo_project: DemoProject) -> None:
    rows = rows_of(demo_project)
    assert Counter(row.kind for row in rows if isinstance(row, Refusal)) == {"duplicate": DUPLICATED_ROWS}
    ids = {row.id for row in rows if isinstance(row, Example)}
    assert ids == demo_project.trivial | demo_project.composed | demo_project.mismatched
    assert len(ids) == len(demo_project.trivial) + len(demo_project.composed) + len(demo_project.mismatched) >= 3000


def test_mismatched_rows_answer_another_question(demo_project: DemoProject) -> None:
    examples = {row.id: row for row in rows_of(demo_project) if isinstance(row, Example)}
    for known, expected in ((demo_project.composed | demo_project.trivial, 0), (demo_project.mismatched, 1)):
        wrong = sum(_function(examples[row]) not in examples[row].instruction for row in known)
        assert wrong / len(known) == pytest.approx(expected, abs=0.03)  # two functions may have drawn the same name


def test_no_composition_of_the_benchmark_occurs_in_the_data(demo_project: DemoProject) -> None:
    """By the lines of the programs themselves, numbers and letters aside."""
    answers = [row.answer for row in rows_of(demo_project) if isinstance(row, Example)]
    codes = {_skeleton(answer.split("\n", 2)[2].removesuffix("\n```")) for answer in answers}
    held_out = {_skeleton(task["canonical_solution"].strip("\n")) for task in tasks_of(demo_project)}
    assert len(held_out) == TASKS
    assert not codes & held_out


def test_a_benchmark_of_more_tasks_begins_with_the_same_ones() -> None:
    few, more = (list(draw_benchmark(Random("benchmark"), tasks)) for tasks in (3, 5))
    assert (few, len(more)) == (more[:3], 5)


def test_the_benchmark_reads_as_evalplus_tasks_whose_solutions_run(demo_project: DemoProject) -> None:
    problems = read_problems(demo_project.benchmark)
    assert len({problem.task_id for problem in problems}) == TASKS
    for problem in problems:
        names: dict[str, Any] = {}
        exec(problem.prompt + problem.contract + problem.canonical_solution, names)
        for call in problem.base_input + problem.plus_input:
            names[problem.entry_point](*call)


def test_a_program_that_leaves_out_an_operation_gives_other_results(demo_project: DemoProject) -> None:
    for task in tasks_of(demo_project):
        calls = task["base_input"] + task["plus_input"]
        *steps, end = task["canonical_solution"].strip("\n").splitlines()
        for index in range(len(steps)):
            if steps[index].split()[0] not in task["prompt"].partition("(")[2].partition(")")[0]:
                continue  # turns one kind into another: nothing runs without it
            shorter = "\n".join([task["prompt"].splitlines()[0], *steps[:index], *steps[index + 1 :], end])
            whole = task["prompt"] + task["canonical_solution"]
            assert _results(shorter, task, calls) != _results(whole, task, calls)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(demo_project: DemoProject, tmp_path: Path) -> None:
    same, other = write_demo_project(tmp_path / "same", seed=7), write_demo_project(tmp_path / "other", seed=8)
    for name in ("data", "benchmark", "project_file"):
        bytes_of = [getattr(each, name).read_bytes() for each in (demo_project, same, other)]
        assert bytes_of[0] == bytes_of[1] != bytes_of[2]
    assert same.mismatched == demo_project.mismatched
    assert not other.mismatched & demo_project.mismatched


def test_making_it_twice_in_one_directory_replaces_it(tmp_path: Path) -> None:
    write_demo_project(tmp_path, seed=1)
    again = write_demo_project(tmp_path, seed=2)
    assert again.data.read_bytes() == write_demo_project(tmp_path / "elsewhere", seed=2).data.read_bytes()


def test_the_project_file_is_whole_and_finds_everything_beside_it(demo_project: DemoProject) -> None:
    project = read_project(demo_project.project_file, [], {})
    assert project.seed == 7
    assert project.root == demo_project.directory.resolve()
    assert Path(project.locate(project.dataset.path)) == project.root / demo_project.data.name
    assert Path(project.locate(project.model.path)) == project.root / demo_project.base.name
    assert project.evaluate.benchmarks == ["demo"]


def test_the_base_model_is_copied_whole(demo_project: DemoProject) -> None:
    names = sorted(path.name for path in SHIPPED_BASE.iterdir())
    assert "model.safetensors" in names
    assert [(demo_project.base / name).read_bytes() for name in names] == [
        (SHIPPED_BASE / name).read_bytes() for name in names
    ]


def test_reserved_compositions_are_what_the_benchmark_is_made_of(demo_project: DemoProject) -> None:
    """Read back from the code: each line shows its operation."""
    for task in tasks_of(demo_project):
        argument = task["prompt"].partition("(")[2].partition(")")[0]
        assert is_reserved(".".join([argument, *_steps(argument, task["canonical_solution"].strip("\n"))]))


def _function(row: Example) -> str:
    return row.answer.partition("def ")[2].partition("(")[0]


def _skeleton(code: str) -> str:
    """The code with placeholders for its values: numbers from 3 on, and single letters."""
    return re.sub(r"\b([3-9]|[12]\d|30)\b", "{n}", re.sub(r'"[a-z]"', '"{c}"', code))


def _results(source: str, task: dict[str, Any], calls: list[list[Any]]) -> list[Any]:
    names: dict[str, Any] = {}
    exec(source, names)
    return [names[task["entry_point"]](*call) for call in calls]


def _steps(argument: str, body: str) -> list[str]:
    kind, names = argument, []
    for line in body.splitlines():
        matching = (s for s in OPERATIONS if s.takes == kind and _skeleton(s.code) == _skeleton(line.strip()))
        step = next(matching)
        names.append(step.name)
        kind = step.gives
    return names
