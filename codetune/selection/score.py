"""Rows -> how much the instruction helps the model to write the answer: IFD, and the two likelihoods that make it.

The unit of work is the block: rows of similar length, cut from the data set by the settings alone, so that who scores
which block, and when, changes nothing. A row has a score or a reason why not. The formula is `ifd.py`, the network
`model/likelihood.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from codetune.data.packing import next_fit
from codetune.data.tokens import ScoringTokens, Span, scoring_tokens
from codetune.project.sections import Scoring
from codetune.records import Example, Refusal, Score
from codetune.selection.ifd import ifd

WINDOW_ROWS = 4096  # rows held at once; longer windows pad less
CHARACTERS_PER_TOKEN = 3  # of code, on the side of too many tokens


class Scorer(Protocol):
    @property
    def window(self) -> int:
        """Tokens that the model can take at once."""
        ...

    def nll(self, spans: Sequence[Span]) -> list[float | None]:
        """Mean nats of each span's predicted tokens; None where memory does not suffice for the span alone."""
        ...


@dataclass(frozen=True, slots=True)
class Block:
    index: int
    examples: tuple[Example, ...]


def plan_blocks(examples: Iterable[Example], tokens_per_batch: int, max_length: int) -> Iterator[Block]:
    """Blocks of at most `tokens_per_batch` estimated tokens, or of one longer row; each row in exactly one."""
    return number_blocks(
        _cut_by_budget(window, tokens_per_batch, max_length) for window in sorted_windows(examples, characters_of_pair)
    )


def score_block(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, scorer: Scorer, settings: Scoring
) -> list[Score | Refusal]:
    """One result for each example, in their order."""
    return score_tokens(examples, tokenise(examples, tokenizer, scorer.window, settings), scorer)


def tokenise(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, window: int, settings: Scoring
) -> list[ScoringTokens | Refusal]:
    """What the network has to read of each example. Needs no network, so it can be done ahead of it."""
    prompts = [fill_prompt(settings.prompt, example.instruction) for example in examples]
    return scoring_tokens(tokenizer, prompts, examples, min(settings.max_length, window))


def score_tokens(
    examples: Sequence[Example], tokenised: Sequence[ScoringTokens | Refusal], scorer: Scorer
) -> list[Score | Refusal]:
    """Both likelihoods of every row in the same call, and from them its score."""
    scorable = [tokens for tokens in tokenised if isinstance(tokens, ScoringTokens)]
    likelihoods = scorer.nll([span for tokens in scorable for span in (tokens.conditional, tokens.unconditional)])
    pairs = zip(likelihoods[0::2], likelihoods[1::2], strict=True)
    return [
        tokens if isinstance(tokens, Refusal) else _score(example, tokens, *next(pairs))
        for example, tokens in zip(examples, tokenised, strict=True)
    ]


def fill_prompt(template: str, instruction: str) -> str:
    """`template` with the instruction in its place; other braces are text.

    >>> fill_prompt("Q: {instruction} {}", "x = {y}")
    'Q: x = {y} {}'
    """
    return template.replace("{instruction}", instruction)


def sorted_windows(examples: Iterable[Example], length: Callable[[Example], int]) -> Iterator[list[Example]]:
    """Windows in the order of the data set, each sorted by length; ties by id, so that row order changes nothing."""
    rows = iter(examples)
    while window := list(islice(rows, WINDOW_ROWS)):
        yield sorted(window, key=lambda example: (length(example), example.id))


def number_blocks(windows: Iterable[Iterable[Sequence[Example]]]) -> Iterator[Block]:
    rows = (block for window in windows for block in window)
    return (Block(index, tuple(block)) for index, block in enumerate(rows))


def characters_of_pair(example: Example) -> int:
    return sum(len(message.content) for message in example.messages)


def estimated_tokens(example: Example, max_length: int) -> int:
    """Of both passes, from characters: planning is to need no tokenizer.

    >>> from codetune.records import Message
    >>> row = Example("", (Message("user", "x" * 30), Message("assistant", "y" * 60)), "")
    >>> estimated_tokens(row, 2048), estimated_tokens(row, 25)
    (52, 46)
    """
    answer = len(example.answer) // CHARACTERS_PER_TOKEN + 1
    whole = characters_of_pair(example) // CHARACTERS_PER_TOKEN + 1
    return min(whole, max_length) + min(answer, max_length)


def _cut_by_budget(window: Sequence[Example], tokens_per_batch: int, max_length: int) -> Iterator[Sequence[Example]]:
    tokens = [estimated_tokens(example, max_length) for example in window]
    return (window[block.start : block.stop] for block in next_fit(tokens, tokens_per_batch))


def _score(
    example: Example, tokens: ScoringTokens, conditional: float | None, unconditional: float | None
) -> Score | Refusal:
    if conditional is None or unconditional is None:
        return Refusal(example.id, "out of memory, alone in its batch", example.at)
    if not (math.isfinite(conditional) and math.isfinite(unconditional)):
        return Refusal(example.id, "likelihood is not a finite number", example.at)
    difficulty = ifd(conditional, unconditional)
    if difficulty is None:
        return Refusal(example.id, "difficulty is not a finite number above 0", example.at)
    return Score(example.id, difficulty, conditional, unconditional, tokens.scored, tokens.truncated)
