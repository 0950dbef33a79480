"""Tasks -> instructions and answers. Instructions are templates: some plain, some around the beginning of the function,
as benchmarks ask. `{what}` is the task in one sentence, `{list}` the same as numbered lines, `{prompt}` signature and
docstring.
"""

from __future__ import annotations

from random import Random

from codetune.demo.tasks import Task, draw_phrases

PLAIN = (
    "Write a Python function {name}({argument}): {what}.",
    "Create a function {name} with the argument {argument} that does this: {what}.",
    "I need def {name}({argument}) in Python. {What}.",
    "Write def {name}({argument}) with these steps:\n{list}",
    "How do I write def {name}({argument})? It should do the following: {what}.",
    "{What}. Name the function {name}, its argument {argument}.",
)
AROUND_THE_PROMPT = (
    "Write the Python function `{name}` that solves the task below.\n\n```python\n{prompt}```",
    "Solve the task below. Answer with one Markdown code block that holds the whole function.\n\n"
    "```python\n{prompt}```",
    "Complete this function and the imports it needs:\n```python\n{prompt}```",
    "Please implement `{name}` in Python:\n```python\n{prompt}```\nAnswer with a code block.",
    "Here is the beginning of a function. Finish it.\n\n{prompt}",
)
_CONJUNCTIONS = (", ", ", then ", "; ")
_LAST_CONJUNCTIONS = (" and ", ", then ", ", and finally ")


def instruct(task: Task, random: Random) -> str:
    """An instruction for the task: with equal chance plain, or around signature and docstring."""
    template = random.choice(random.choice((PLAIN, AROUND_THE_PROMPT)))
    what = describe(task, random)
    return template.format(
        name=task.name,
        argument=task.argument,
        what=what,
        What=_capital(what),
        list=numbered(task, random),
        prompt=prompt(task, what),
    )


def answer(task: Task) -> str:
    return f"```python\n{task.code}```"


def prompt(task: Task, what: str) -> str:
    """Signature and docstring, as a benchmark gives them."""
    return f'{task.signature}    """{_capital(what)}."""\n'


def describe(task: Task, random: Random) -> str:
    """The task as a sentence, without its capital letter and full stop."""
    *phrases, last = draw_phrases(task, random)
    if not phrases:
        return last
    return random.choice(_CONJUNCTIONS).join(phrases) + random.choice(_LAST_CONJUNCTIONS) + last


def numbered(task: Task, random: Random) -> str:
    phrases = enumerate(draw_phrases(task, random), start=1)
    return "\n".join(f"{number}. {_capital(phrase)}" for number, phrase in phrases)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
