"""Drawn tasks run, are described in words, and keep the compositions of the benchmarks apart."""

from __future__ import annotations

import ast
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codetune.demo.operations import KINDS, OPERATIONS
from codetune.demo.tasks import EMPTY_ARGUMENT, Task, draw_argument, draw_phrases, draw_task, is_reserved, outputs

LENGTHS = st.integers(1, 4)
SEEDS = st.integers(0, 10**6)


def task_of(*names: str, number: int, letter: str = "a") -> Task:
    operations = tuple(next(each for each in OPERATIONS if each.name == name) for name in names)
    return Task("solve_items", operations, tuple({"n": str(number), "c": letter} for _ in operations))


def test_a_task_reads_as_its_operations_in_words_and_in_code() -> None:
    task = task_of("above", "square", "sum", number=3)
    assert task.composition == "numbers.above.square.sum"
    assert task.code == (
        "def solve_items(numbers):\n"
        "    numbers = [x for x in numbers if x > 3]\n"
        "    numbers = [x * x for x in numbers]\n"
        "    return sum(numbers)\n"
    )
    assert draw_phrases(task, Random(0))[0] in ("keep the numbers above 3", "select numbers greater than 3")
    # of 1, 4, -7, 5 above 3: 4 and 5; 16 + 25 = 41
    assert outputs(task, [[1, 4, -7, 5], []]) == [41, 0]


@pytest.mark.parametrize(
    ("names", "argument", "expected"),
    [
        (("start", "upper", "sentence"), ["ant", "bee", "axe"], "ANT AXE"),
        (("split", "tally"), "to be to", {"to": 2, "be": 1}),
        (("high", "upper_keys", "scores"), {"ann": 9, "bob": 1}, {"ANN": 9}),
        (("star", "occurrences"), "banana", 0),  # no "a" is left when they are counted
        (("divisors", "descending", "numbers"), 6, [6, 3, 2, 1]),
    ],
)
def test_each_kind_of_argument_has_its_worked_example(
    names: tuple[str, ...], argument: object, expected: object
) -> None:
    assert outputs(task_of(*names, number=2), [argument]) == [expected]


@settings(max_examples=150, deadline=None)
@given(SEEDS, LENGTHS)
def test_every_task_runs_on_every_argument_of_its_kind_and_on_an_empty_one(seed: int, length: int) -> None:
    random = Random(seed)
    task = draw_task(random, length, reserved=False)
    assert len(task.operations) == length
    ast.parse(task.code)
    outputs(
        task,
        [EMPTY_ARGUMENT[task.argument], draw_argument(task.argument, random), draw_argument(task.argument, random)],
    )


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(2, 4), st.booleans())
def test_a_task_is_reserved_where_a_reserved_one_was_asked_for(seed: int, length: int, reserved: bool) -> None:
    assert is_reserved(draw_task(Random(seed), length, reserved).composition) is reserved


def test_a_quarter_of_all_compositions_is_reserved_but_no_single_operation() -> None:
    random = Random(1)
    drawn = {draw_task(random, 3, reserved).composition for _ in range(4000) for reserved in (False, True)}
    known = {name for name in drawn if is_reserved(name)}
    assert 0.15 < len(known) / len(drawn) < 0.6
    assert not any(is_reserved(f"{operation.takes}.{operation.name}") for operation in OPERATIONS)


def test_all_kinds_of_arguments_are_drawn_about_equally_often() -> None:
    random = Random(2)
    arguments = [draw_task(random, 2, reserved=False).argument for _ in range(1000)]
    assert all(130 < arguments.count(kind) < 280 for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_operations_on_one_kind_share_a_wording_or_a_name(kind: str) -> None:
    def repeated(values: list[str]) -> set[str]:
        return {value for value in values if values.count(value) > 1}

    operations = [operation for operation in OPERATIONS if operation.takes == kind]
    assert not repeated([wording for operation in operations for wording in operation.wordings])
    assert not repeated([operation.name for operation in operations])
