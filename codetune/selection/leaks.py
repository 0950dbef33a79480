"""Benchmark tasks and examples -> the rows that hold a task's prompt or solution: training on them makes the benchmark
worthless.

A row holds a prompt if it has 80 % of the n-grams of 8 words of the whole, of what is left without asserts and
interactive examples, or of what is left of its docstring; and a solution if it has 90 % of its n-grams of 12 tokens.
Words are compared without case and signs, tokens with both and without comments. A prompt has 3 n-grams at least, a
solution 20: shorter ones ("sort a list", `return x * y`) occur by chance, so that a short solution is found by its
prompt alone. In 24,000 Evol-Instruct and Code-Alpaca rows these limits find one task of HumanEval and MBPP, which is
there; rows with less are nearly all other tasks in similar words.

Does not find a task in other words, or a solution with other names."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from codetune.records import Example, Problem
from codetune.selection.duplicates import TOKEN

WORD = re.compile(r"\w+")
PROMPT_WORDS, LEAST_PROMPT_NGRAMS, LEAST_PROMPT_SHARE = 8, 3, 0.8
SOLUTION_TOKENS, LEAST_SOLUTION_NGRAMS, LEAST_SOLUTION_SHARE = 12, 20, 0.9
COMMENT = re.compile(r"#.*")
EXAMPLE_LINES = ("assert", ">>>")

NGram = tuple[str, ...]  # of words or tokens


class NGramIndex:
    """The n-grams of some texts, each text under a name; several may have one name."""

    def __init__(self, unit: re.Pattern[str], length: int, least_ngrams: int, least_share: float) -> None:
        self._unit, self._length = unit, length
        self._least_ngrams, self._least_share = least_ngrams, least_share
        self._texts: list[tuple[str, int]] = []  # name, number of n-grams
        self._holders: defaultdict[NGram, list[int]] = defaultdict(list)  # positions in `_texts`

    def add(self, name: str, parts: Iterable[str]) -> None:
        """Adds a text of parts, which no n-gram spans. A text that is too short to be recognised is left out."""
        ngrams = {ngram for part in parts for ngram in self._ngrams(part)}
        if len(ngrams) >= self._least_ngrams:
            for ngram in ngrams:
                self._holders[ngram].append(len(self._texts))
            self._texts.append((name, len(ngrams)))

    def held_by(self, text: str) -> str | None:
        """The name of the text of which `text` holds the largest share, if that is large enough; of several the first
        in alphabetical order."""
        found = Counter(position for ngram in self._ngrams(text) for position in self._holders.get(ngram, ()))
        shares = ((-count / self._texts[position][1], self._texts[position][0]) for position, count in found.items())
        share, name = min(shares, default=(0.0, ""))
        return name if -share >= self._least_share else None

    def _ngrams(self, text: str) -> set[NGram]:
        units = self._unit.findall(text)
        return {tuple(units[first : first + self._length]) for first in range(len(units) - self._length + 1)}


def find_leaks(examples: Iterable[Example], problems: Sequence[Problem]) -> Iterator[tuple[str, str]]:
    """(id, "leak of TASK") of each row that holds the prompt or the solution of a task."""
    prompts = NGramIndex(WORD, PROMPT_WORDS, LEAST_PROMPT_NGRAMS, LEAST_PROMPT_SHARE)
    solutions = NGramIndex(TOKEN, SOLUTION_TOKENS, LEAST_SOLUTION_NGRAMS, LEAST_SOLUTION_SHARE)
    for problem in problems:
        for statement in problem.statements or (problem.prompt,):
            prompts.add(problem.task_id, [statement.casefold()])
            for text in (statement, _docstring(statement)):
                prompts.add(problem.task_id, _description(text.casefold()))
        solutions.add(problem.task_id, [COMMENT.sub("", problem.canonical_solution)])
    for example in examples:
        text = "\n\n".join(message.text for message in example.messages)
        task = prompts.held_by(text.casefold()) or solutions.held_by(COMMENT.sub("", text))
        if task is not None:
            yield example.id, f"leak of {task}"


def _docstring(prompt: str) -> str:
    """What a prompt asks for in words: the docstring of its last function, or its own; "" where it has none.

    >>> _docstring("def square(n):\\n    'Square n.'")
    'Square n.'
    """
    try:
        tree = ast.parse(prompt)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return ast.get_docstring(functions[-1] if functions else tree) or ""


def _description(prompt: str) -> list[str]:
    """The parts of a prompt between the lines of its examples that are code.

    >>> _description('Square n.\\n>>> square(2)\\n4\\nassert square(3) == 9')
    ['Square n.', '4']
    """
    parts, part = list[str](), list[str]()
    for line in [*prompt.splitlines(), EXAMPLE_LINES[0]]:
        if not line.lstrip().startswith(EXAMPLE_LINES):
            part.append(line)
        elif part:
            parts.append("\n".join(part))
            part = []
    return parts
