from __future__ import annotations

from dataclasses import replace

import pytest

from codetune.records import Example, Message, Problem, content_id
from codetune.selection.leaks import find_leaks

PROMPT = '''\
from typing import List

def below(numbers: List[int], limit: int) -> bool:
    """ Check whether every number of a given list lies strictly below the limit that the caller has passed to it.
    >>> below([1, 2, 3], 5)
    True
    """
'''
SOLUTION = """
    checked = 0
    for number in numbers:
        if number >= limit:
            return False
        checked += 1
    assert checked == len(numbers)
    print("all below", limit)
    return True
"""
WITHOUT_EXAMPLES = (
    "Check whether every number of a given list lies strictly below the limit that the caller has passed to it."
)


def problem(task_id: str, prompt: str, solution: str = "    return x * y\n") -> Problem:
    return Problem(task_id, prompt, "f", solution, [[1]], [[2]], 0.0)


def leaks_of(instruction: str, answer: str, *problems: Problem) -> list[str]:
    messages = (Message("user", instruction), Message("assistant", answer))
    row = Example(content_id(messages), messages, "")
    found = list(find_leaks([row], problems or [problem("T/0", PROMPT, SOLUTION)]))
    assert all(row_id == row.id for row_id, _ in found)
    return [why for _, why in found]


@pytest.mark.parametrize(
    ("instruction", "answer"),
    [
        (f"Complete this:\n```python\n{PROMPT}```", "..."),
        ("Write code.", f"```python\n{PROMPT.upper()}```"),  # in the answer, in other case
        ("Solve it: " + PROMPT.replace("\n", " # ").replace(">>> below([1, 2, 3], 5)", ""), "..."),  # without examples
        ("Write code.", SOLUTION.replace("    ", "\t")),
        ("Write code.", f"def f(numbers, limit):{SOLUTION}\nprint(f([1], 2))"),
        (WITHOUT_EXAMPLES, "..."),  # the words of the docstring alone
        ("Write code.", SOLUTION.replace(":\n", ":  # and now\n").replace(" = 0", " = 0  # none yet")),
    ],
)
def test_a_row_that_holds_prompt_or_solution_leaks_the_task(instruction: str, answer: str) -> None:
    assert leaks_of(instruction, answer) == ["leak of T/0"]


@pytest.mark.parametrize(
    ("instruction", "answer"),
    [
        ("Check whether every number of a given list lies strictly above the average of all the others in it.", "..."),
        ("Write code.", SOLUTION.replace("number", "item")),
        ("Write code.", "return x * y"),
        ("", ""),
    ],
)
def test_a_row_about_something_like_it_does_not(instruction: str, answer: str) -> None:
    assert leaks_of(instruction, answer) == []


def test_prompts_and_solutions_that_are_too_short_to_be_told_from_chance_are_not_looked_for() -> None:
    short = problem("T/1", '"""\nWrite a function to sort a list of elements.\n"""\n')
    assert leaks_of("Write a function to sort a list of elements.", "def f(x, y):\n    return x * y\n", short) == []


# The sentence has 20 words, 13 n-grams; of 18 words it is 11 of 13 (85 %), of 17 it is 10 (77 %).
@pytest.mark.parametrize(("words", "leaks"), [(18, True), (17, False)])
def test_four_fifths_of_a_prompt_are_a_leak(words: int, leaks: bool) -> None:
    said = " ".join(WITHOUT_EXAMPLES.split()[:words])
    assert bool(leaks_of(said, "...", problem("T/2", WITHOUT_EXAMPLES))) == leaks


def test_of_several_tasks_the_one_that_the_row_holds_most_of_is_named() -> None:
    whole, half = problem("T/9", WITHOUT_EXAMPLES), problem("T/1", f"{WITHOUT_EXAMPLES} And then return it.")
    assert leaks_of(WITHOUT_EXAMPLES, "...", half, whole) == ["leak of T/9"]
    assert leaks_of(WITHOUT_EXAMPLES, "...", problem("T/8", WITHOUT_EXAMPLES), whole) == ["leak of T/8"]


def test_a_row_leaks_a_task_by_its_statements_where_the_prompt_says_more() -> None:
    other = "Return the largest of the numbers that divide both arguments without a remainder, or one where none does."
    asked = f"Solve both of these problems, please, the second one with the help of the first: {other} {PROMPT}"
    stated = replace(problem("T/0", asked, SOLUTION), statements=[PROMPT, other])
    assert leaks_of(other, "...", problem("T/0", asked, SOLUTION)) == []
    assert leaks_of(other, "...", stated) == ["leak of T/0"]
    assert leaks_of(WITHOUT_EXAMPLES, "...", stated) == leaks_of(WITHOUT_EXAMPLES, "...")
