"""The demo's tasks: short Python functions made of one to four steps (filter, map, reorder, fold over lists, strings,
dictionaries and numbers), each said in words and in code. A quarter of all compositions is reserved for benchmarks by a
digest of their names: no data set and no base model ever sees one, whatever the seed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from random import Random

from codetune.demo.steps import KINDS, STEPS, Kind, Step

LETTERS = "abdefghilmnoprstuy"
# From 3, so that a multiple is never written like an even number. Many, because a model learns to copy only what it
# cannot guess: with seven numbers the base model never began to.
NUMBERS = (3, 30)
VERBS = ("solve", "compute", "handle", "collect", "prepare", "derive", "work_out", "build", "reduce", "make")
NOUNS = ("result", "answer", "values", "items", "report", "outcome", "series", "output", "summary", "batch")
TRIVIAL_STEPS = 1
_INDENT = "    "
_STARTS: dict[Kind, tuple[Step, ...]] = {kind: tuple(step for step in STEPS if step.takes == kind) for kind in KINDS}
# An identity alone ("return the numbers") is no task.
_IDENTITIES = frozenset(KINDS)


@dataclass(frozen=True, slots=True)
class Task:
    """A function of one argument; `fillers` are the numbers and letters of its steps, one mapping a step."""

    name: str
    steps: tuple[Step, ...]
    fillers: tuple[dict[str, str], ...]

    @property
    def argument(self) -> Kind:
        return self.steps[0].takes

    @property
    def composition(self) -> str:
        """What makes two tasks the same kind of task: their steps, whatever the numbers, letters and names."""
        return ".".join((self.argument, *(step.name for step in self.steps)))

    @property
    def signature(self) -> str:
        return f"def {self.name}({self.argument}):\n"

    @property
    def body(self) -> str:
        lines = (_fill(step.code, filler) for step, filler in zip(self.steps, self.fillers, strict=True))
        return "".join(f"{_INDENT}{line}\n" for line in lines)

    @property
    def code(self) -> str:
        return self.signature + self.body


def draw_task(random: Random, steps: int, reserved: bool) -> Task:
    """A task of so many steps, from the compositions reserved for benchmarks or from all the others; every kind of
    argument is as likely as any other."""
    while True:
        task = _draw(random, random.choice(KINDS), steps)
        if task is not None and is_reserved(task.composition) == reserved:
            return task


def is_reserved(composition: str) -> bool:
    """Whether the composition is kept for benchmarks; one of a single step never is.

    >>> is_reserved("numbers.sum")
    False
    """
    steps = composition.count(".")
    return steps > TRIVIAL_STEPS and hashlib.sha256(composition.encode()).digest()[0] % 4 == 0


def say(task: Task, random: Random) -> list[str]:
    """The task in words, a phrase a step, each in one of its wordings."""
    return [_fill(random.choice(step.wordings), filler) for step, filler in zip(task.steps, task.fillers, strict=True)]


def draw_name(random: Random) -> str:
    return f"{random.choice(VERBS)}_{random.choice(NOUNS)}"


def _draw(random: Random, kind: Kind, length: int) -> Task | None:
    steps: list[Step] = []
    while len(steps) < length:
        last = len(steps) == length - 1
        open_steps = [step for step in _STARTS[kind] if (step.gives == "result") == last and step not in steps]
        if length == TRIVIAL_STEPS:
            open_steps = [step for step in open_steps if step.name not in _IDENTITIES]
        if not open_steps:
            return None
        steps.append(random.choice(open_steps))
        kind = steps[-1].gives
    return Task(draw_name(random), tuple(steps), tuple(_draw_filler(random) for _ in steps))


def _draw_filler(random: Random) -> dict[str, str]:
    return {"n": str(random.randint(*NUMBERS)), "c": random.choice(LETTERS)}


def _fill(text: str, filler: dict[str, str]) -> str:
    for place, value in filler.items():
        text = text.replace(f"{{{place}}}", value)
    return text
