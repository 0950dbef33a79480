"""The world is a real set's likeness with known faults, and its benchmark asks for what no row shows."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from codetune.benchmark.benchmarks import read_problems
from codetune.data.source import read_examples
from codetune.demo.grammar import is_reserved
from codetune.demo.steps import STEPS
from codetune.demo.world import SHIPPED_BASE, TASKS, World, make_world
from codetune.errors import InputError
from codetune.project.file import read_project
from codetune.records import Example, Refusal


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), seed=7)


def rows_of(world: World) -> list[Example | Refusal]:
    project = read_project(world.project_file, [], {})
    return list(read_examples(project.dataset, str(world.data)))


def tasks_of(world: World) -> list[dict[str, Any]]:
    return [json.loads(line) for line in world.benchmark.read_text(encoding="utf-8").splitlines()]


def test_every_row_is_read_and_every_duplicate_is_refused_as_such(world: World) -> None:
    rows = rows_of(world)
    assert Counter(row.kind for row in rows if isinstance(row, Refusal)) == {"duplicate": world.duplicated_rows}
    ids = {row.id for row in rows if isinstance(row, Example)}
    assert ids == world.trivial | world.composed | world.mismatched
    assert len(ids) == len(world.trivial) + len(world.composed) + len(world.mismatched) >= 3000


def test_mismatched_rows_answer_another_question(world: World) -> None:
    examples = {row.id: row for row in rows_of(world) if isinstance(row, Example)}
    for known, expected in ((world.composed | world.trivial, 0), (world.mismatched, 1)):
        wrong = sum(_function(examples[row]) not in examples[row].instruction for row in known)
        assert wrong / len(known) == pytest.approx(expected, abs=0.03)  # two functions may have drawn the same name


def test_no_composition_of_the_benchmark_occurs_in_the_data(world: World) -> None:
    """By the lines of the programs themselves, numbers and letters aside."""
    answers = [row.answer for row in rows_of(world) if isinstance(row, Example)]
    codes = {_skeleton(answer.split("\n", 2)[2].removesuffix("\n```")) for answer in answers}
    held_out = {_skeleton(task["canonical_solution"].strip("\n")) for task in tasks_of(world)}
    assert len(held_out) == TASKS
    assert not codes & held_out


def test_the_benchmark_reads_as_evalplus_tasks_whose_solutions_run(world: World) -> None:
    problems = read_problems(world.benchmark)
    assert len({problem.task_id for problem in problems}) == TASKS
    for problem in problems:
        names: dict[str, Any] = {}
        exec(problem.prompt + problem.contract + problem.canonical_solution, names)
        for call in problem.base_input + problem.plus_input:
            names[problem.entry_point](*call)


def test_a_program_that_leaves_out_a_step_gives_other_results(world: World) -> None:
    for task in tasks_of(world):
        calls = task["base_input"] + task["plus_input"]
        *steps, end = task["canonical_solution"].strip("\n").splitlines()
        for place in range(len(steps)):
            if steps[place].split()[0] not in task["prompt"].partition("(")[2].partition(")")[0]:
                continue  # turns one kind into another: nothing runs without it
            shorter = "\n".join([task["prompt"].splitlines()[0], *steps[:place], *steps[place + 1 :], end])
            whole = task["prompt"] + task["canonical_solution"]
            assert _results(shorter, task, calls) != _results(whole, task, calls)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(world: World, tmp_path: Path) -> None:
    same, other = make_world(tmp_path / "same", seed=7), make_world(tmp_path / "other", seed=8)
    for name in ("data", "benchmark", "project_file"):
        bytes_of = [getattr(each, name).read_bytes() for each in (world, same, other)]
        assert bytes_of[0] == bytes_of[1] != bytes_of[2]
    assert same.mismatched == world.mismatched
    assert not other.mismatched & world.mismatched


def test_making_it_twice_in_one_place_replaces_it(tmp_path: Path) -> None:
    make_world(tmp_path, seed=1)
    again = make_world(tmp_path, seed=2)
    assert again.data.read_bytes() == make_world(tmp_path / "elsewhere", seed=2).data.read_bytes()


def test_the_project_file_is_whole_and_finds_everything_beside_it(world: World) -> None:
    project = read_project(world.project_file, [], {})
    assert project.seed == 7
    assert project.root == world.directory.resolve()
    assert Path(project.locate(project.dataset.path)) == project.root / world.data.name
    assert Path(project.locate(project.model.path)) == project.root / world.base.name
    assert project.evaluate.benchmarks == ["demo"]


def test_the_base_model_is_copied_whole(world: World) -> None:
    names = sorted(path.name for path in SHIPPED_BASE.iterdir())
    assert "model.safetensors" in names
    assert [(world.base / name).read_bytes() for name in names] == [
        (SHIPPED_BASE / name).read_bytes() for name in names
    ]


def test_a_file_in_the_place_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(InputError, match="taken is a file"):
        make_world(tmp_path / "taken", seed=1)


def test_reserved_compositions_are_what_the_benchmark_is_made_of(world: World) -> None:
    """Read back from the code: each line tells its step."""
    for task in tasks_of(world):
        argument = task["prompt"].partition("(")[2].partition(")")[0]
        assert is_reserved(".".join([argument, *_steps(argument, task["canonical_solution"].strip("\n"))]))


def _function(row: Example) -> str:
    return row.answer.partition("def ")[2].partition("(")[0]


def _skeleton(code: str) -> str:
    """The code with its fillers put back as places: numbers from 3 on, and single letters."""
    return re.sub(r"\b([3-9]|[12]\d|30)\b", "{n}", re.sub(r'"[a-z]"', '"{c}"', code))


def _results(source: str, task: dict[str, Any], calls: list[list[Any]]) -> list[Any]:
    names: dict[str, Any] = {}
    exec(source, names)
    return [names[task["entry_point"]](*call) for call in calls]


def _steps(argument: str, body: str) -> list[str]:
    kind, names = argument, []
    for line in body.splitlines():
        matching = (s for s in STEPS if s.takes == kind and _skeleton(s.code) == _skeleton(line.strip()))
        step = next(matching)
        names.append(step.name)
        kind = step.gives
    return names
