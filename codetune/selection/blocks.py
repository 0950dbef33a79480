"""Examples -> blocks: groups of rows of similar length, the unit of work of scoring and embedding.

Blocks follow from the data set and the settings alone: neither the processes nor their order change a result. Lengths
are estimated from characters, so that planning needs no tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from codetune.data.packing import next_fit
from codetune.records import Example

WINDOW_ROWS = 4096  # rows held in memory and sorted together; a longer window needs less padding
CHARACTERS_PER_TOKEN = 3  # of code; a low figure, so that token counts are overestimated


@dataclass(frozen=True, slots=True)
class Block:
    index: int  # 0, 1, 2, ... in the order of the data set
    examples: tuple[Example, ...]


def plan_scoring_blocks(examples: Iterable[Example], tokens_per_batch: int, max_length: int) -> Iterator[Block]:
    """Blocks of at most `tokens_per_batch` estimated tokens; a longer row is a block of its own."""
    windows = _sorted_windows(examples, pair_characters)
    return _number_blocks(_split_by_tokens(window, tokens_per_batch, max_length) for window in windows)


def plan_embedding_blocks(examples: Iterable[Example], batch_size: int) -> Iterator[Block]:
    """Blocks of `batch_size` instructions; the last block of a window may be smaller."""
    return _number_blocks(
        [window[first : first + batch_size] for first in range(0, len(window), batch_size)]
        for window in _sorted_windows(examples, lambda example: len(example.instruction))
    )


def pair_characters(example: Example) -> int:
    """Characters of all messages, instruction and answer."""
    return sum(len(message.text) for message in example.messages)


def estimated_tokens(example: Example, max_length: int) -> int:
    """Estimated tokens of both scoring passes: the whole pair, and the answer alone.

    >>> from codetune.records import Message
    >>> row = Example("", (Message("user", "x" * 30), Message("assistant", "y" * 60)), "")
    >>> estimated_tokens(row, 2048), estimated_tokens(row, 25)
    (52, 46)
    """
    answer = len(example.answer) // CHARACTERS_PER_TOKEN + 1
    whole = pair_characters(example) // CHARACTERS_PER_TOKEN + 1
    return min(whole, max_length) + min(answer, max_length)


def _sorted_windows(examples: Iterable[Example], length: Callable[[Example], int]) -> Iterator[list[Example]]:
    """Windows of rows in data-set order, each sorted by length. Ties are broken by id, so that the order of rows within
    a window changes nothing."""
    rows = iter(examples)
    while window := list(islice(rows, WINDOW_ROWS)):
        yield sorted(window, key=lambda example: (length(example), example.id))


def _split_by_tokens(window: Sequence[Example], tokens_per_batch: int, max_length: int) -> Iterator[Sequence[Example]]:
    tokens = [estimated_tokens(example, max_length) for example in window]
    return (window[part.start : part.stop] for part in next_fit(tokens, tokens_per_batch))


def _number_blocks(windows: Iterable[Iterable[Sequence[Example]]]) -> Iterator[Block]:
    parts = (part for window in windows for part in window)
    return (Block(index, tuple(part)) for index, part in enumerate(parts))
