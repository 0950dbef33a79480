"""Instructions name the function, its argument and every step; answers are one fenced block."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from codetune.benchmark.benchmarks import instruction
from codetune.demo.instructions import AROUND_THE_PROMPT, answer, describe, instruct, prompt
from codetune.demo.tasks import draw_task
from codetune.records import Problem


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_an_instruction_describes_the_whole_task(seed: int, length: int) -> None:
    random = Random(seed)
    task = draw_task(random, length, reserved=False)
    text = instruct(task, random)
    assert task.name in text
    assert task.argument in text
    assert "{" not in text
    for operation, values in task.pairs():
        wordings = [w.replace("{n}", values["n"]).replace("{c}", values["c"]) for w in operation.wordings]
        assert any(wording.lower() in text.lower() for wording in wordings)


def test_the_answer_is_the_whole_function_in_one_fenced_block() -> None:
    task = draw_task(Random(3), 2, reserved=False)
    assert answer(task) == f"```python\n{task.code}```"


def test_the_prompt_and_the_body_make_a_function() -> None:
    random = Random(4)
    task = draw_task(random, 3, reserved=True)
    source = prompt(task, describe(task, random)) + task.body
    compile(source, "demo", "exec")


def test_the_instructions_contain_the_words_of_the_benchmark_prompt() -> None:
    """What the tuned model is asked at the end is in reach of what it was trained on: the same fence around signature
    and docstring, and no word that the instructions lack."""
    random = Random(5)
    task = draw_task(random, 3, reserved=True)
    text = prompt(task, describe(task, random))
    asked = instruction(Problem("Demo/0", text, task.name, task.body, [], [], 0.0))
    assert f"```python\n{text.strip()}\n```" in asked
    around = asked.replace(text.strip(), "").replace(task.name, "{name}")
    known = " ".join(AROUND_THE_PROMPT)
    unknown = [word for word in around.split() if word.strip(".,") not in known]
    assert unknown == []
