"""Arguments to call the demo's functions with, and what a function makes of them. Runs code of the demo's own grammar
only, never a model's."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from codetune.demo.grammar import Task
from codetune.demo.steps import Kind

WORDS = (
    *("ant", "bean", "Boat", "cloud", "dot", "elm", "Eden", "island", "level", "lemon", "Mint", "moon", "noon"),
    *("onion", "rain", "robin", "Sand", "season", "stream", "tandem", "tin", "trees", "banana", "mountain", "a"),
)
PALINDROMES = ("level", "noon", "a", "dad")
LONGEST_LIST = 12
LARGEST_NUMBER = 60  # squared and counted up to, it is still a short list
EMPTY: dict[Kind, object] = {"numbers": [], "words": [], "text": "", "scores": {}, "number": 0}


def draw_argument(kind: Kind, random: Random) -> object:
    return _DRAWS[kind](random)


def outputs(task: Task, arguments: list[object]) -> list[object]:
    """What the task's own code gives for each argument."""
    names: dict[str, Any] = {}
    exec(task.code, names)
    return [names[task.name](argument) for argument in arguments]


def _numbers(random: Random) -> list[int]:
    return [random.randint(-20, 60) for _ in range(random.randint(1, LONGEST_LIST))]


def _words(random: Random) -> list[str]:
    return [random.choice(WORDS) for _ in range(random.randint(1, LONGEST_LIST))]


def _text(random: Random) -> str:
    words = _words(random)
    words.insert(random.randint(0, len(words)), str(random.randint(0, 99)))
    # Now and then one that reads the same backwards, so that a palindrome is not always False.
    return random.choice(PALINDROMES) if random.random() < 0.2 else " ".join(words)


def _scores(random: Random) -> dict[str, int]:
    return {word: random.randint(-10, 50) for word in _words(random)}


_DRAWS: dict[Kind, Callable[[Random], object]] = {
    "numbers": _numbers,
    "words": _words,
    "text": _text,
    "scores": _scores,
    "number": lambda random: random.randint(1, LARGEST_NUMBER),
}
