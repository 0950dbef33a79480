"""The demo's tasks: short Python functions of one to four operations, drawn at random, and arguments for them.

A quarter of all compositions of operations, chosen by a digest of their names, is reserved for the benchmark: no data
set and no base model contains one, whatever the seed. Runs only the code of tasks drawn here, never a model's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

from codetune.demo.operations import KINDS, OPERATIONS, Kind, Operation

LETTERS = "abdefghilmnoprstuy"
# From 3, so that a multiple is never written like an even number. Many, because a model learns to copy only what it
# cannot guess: with seven numbers the base model did not learn to copy them.
NUMBERS = (3, 30)
VERBS = ("solve", "compute", "handle", "collect", "prepare", "derive", "work_out", "build", "reduce", "make")
NOUNS = ("result", "answer", "values", "items", "report", "outcome", "series", "output", "summary", "batch")
TRIVIAL_OPERATIONS = 1
_WORD_LIST = (
    "ant bean Boat cloud dot elm Eden island level lemon Mint moon noon onion rain robin Sand season stream tandem "
    "tin trees banana mountain a"
)
WORDS = _WORD_LIST.split()
PALINDROMES = ("level", "noon", "a", "dad")
LONGEST_LIST = 12
LARGEST_NUMBER = 60  # squared and counted up to, it is still a short list
EMPTY_ARGUMENT: dict[Kind, object] = {"numbers": [], "words": [], "text": "", "scores": {}, "number": 0}
_TAKING: dict[Kind, list[Operation]] = {kind: [each for each in OPERATIONS if each.takes == kind] for kind in KINDS}
# Operations that return their argument ("return the numbers"): not a task by themselves.
_IDENTITIES = frozenset(KINDS)


@dataclass(frozen=True, slots=True)
class Task:
    """A function of one argument. `values` are the numbers and letters of its operations, one mapping for each."""

    name: str
    operations: tuple[Operation, ...]
    values: tuple[dict[str, str], ...]

    @property
    def argument(self) -> Kind:
        return self.operations[0].takes

    @property
    def composition(self) -> str:
        """The names of the argument and the operations; the numbers, letters and the function's name do not matter."""
        return ".".join((self.argument, *(operation.name for operation in self.operations)))

    def pairs(self) -> Iterable[tuple[Operation, dict[str, str]]]:
        return zip(self.operations, self.values, strict=True)

    @property
    def signature(self) -> str:
        return f"def {self.name}({self.argument}):\n"

    @property
    def body(self) -> str:
        return "".join(f"    {_fill(operation.code, values)}\n" for operation, values in self.pairs())

    @property
    def code(self) -> str:
        return self.signature + self.body


def draw_task(random: Random, length: int, reserved: bool) -> Task:
    """A task of `length` operations, whose composition is reserved for benchmarks or is not. Every kind of argument is
    equally likely."""
    while True:
        task = _draw(random, random.choice(KINDS), length)
        if task is not None and is_reserved(task.composition) == reserved:
            return task


def is_reserved(composition: str) -> bool:
    """Whether a composition is reserved for benchmarks. One of a single operation never is.

    >>> is_reserved("numbers.sum")
    False
    """
    return composition.count(".") > TRIVIAL_OPERATIONS and hashlib.sha256(composition.encode()).digest()[0] % 4 == 0


def draw_phrases(task: Task, random: Random) -> list[str]:
    """The task in words: for each operation one of its wordings."""
    return [_fill(random.choice(operation.wordings), values) for operation, values in task.pairs()]


def draw_argument(kind: Kind, random: Random) -> object:
    """An argument for a task that takes a value of this kind."""
    return _DRAW_ARGUMENT[kind](random)


def outputs(task: Task, arguments: list[object]) -> list[object]:
    """The value that the task's own code returns for each argument."""
    namespace: dict[str, Any] = {}
    exec(task.code, namespace)
    return [namespace[task.name](argument) for argument in arguments]


def _draw(random: Random, kind: Kind, length: int) -> Task | None:
    """A task whose argument is of this kind; None where the operations drawn so far cannot be continued."""
    chosen: list[Operation] = []
    while len(chosen) < length:
        is_last = len(chosen) == length - 1
        possible = [
            operation
            for operation in _TAKING[kind]
            if (operation.gives == "result") == is_last and operation not in chosen
            if length != TRIVIAL_OPERATIONS or operation.name not in _IDENTITIES
        ]
        if not possible:
            return None
        chosen.append(random.choice(possible))
        kind = chosen[-1].gives
    name = f"{random.choice(VERBS)}_{random.choice(NOUNS)}"
    values = ({"n": str(random.randint(*NUMBERS)), "c": random.choice(LETTERS)} for _ in chosen)
    return Task(name, tuple(chosen), tuple(values))


def _fill(text: str, values: dict[str, str]) -> str:
    for placeholder, value in values.items():
        text = text.replace(f"{{{placeholder}}}", value)
    return text


def _numbers(random: Random) -> list[int]:
    return [random.randint(-20, 60) for _ in range(random.randint(1, LONGEST_LIST))]


def _words(random: Random) -> list[str]:
    return [random.choice(WORDS) for _ in range(random.randint(1, LONGEST_LIST))]


def _text(random: Random) -> str:
    words = _words(random)
    words.insert(random.randint(0, len(words)), str(random.randint(0, 99)))
    # Sometimes one that reads the same backwards, so that `palindrome` is not always False.
    return random.choice(PALINDROMES) if random.random() < 0.2 else " ".join(words)


def _scores(random: Random) -> dict[str, int]:
    return {word: random.randint(-10, 50) for word in _words(random)}


_DRAW_ARGUMENT: dict[Kind, Callable[[Random], object]] = {
    "numbers": _numbers,
    "words": _words,
    "text": _text,
    "scores": _scores,
    "number": lambda random: random.randint(1, LARGEST_NUMBER),
}
