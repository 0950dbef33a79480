"""Rows with the same instruction -> the one whose answer the model finds likeliest, and the others (GRAPE, Zhang et al.
2025, arXiv 2502.04194): the answer nearest to what the model would say itself is learned with the least change.

Instructions are the same if they differ in white space at most. Does not say whether an answer is right."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from codetune.records import Example
from codetune.selection.row_vectors import Floats, RowIndices


def instruction_digest(example: Example) -> int:
    """A number of 64 bits for all that precedes the answer; white space is no difference."""
    text = " ".join(example.instruction.split())
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())


def less_likely_answers(
    instructions: NDArray[np.uint64], nll_conditional: Floats, rows: RowIndices
) -> Iterator[tuple[int, int]]:
    """(row, the row that is kept) for each of `rows` that has the instruction of another one of them, whose answer has
    a lower NLL after it. `rows` are ascending by id; of equal NLL the first is kept."""
    order = rows[np.lexsort([nll_conditional[rows], instructions[rows]])]
    is_first = np.diff(instructions[order], prepend=instructions[order[:1]] + np.uint64(1)) != 0
    kept = order[is_first][np.cumsum(is_first) - 1]
    yield from zip(order[~is_first].tolist(), kept[~is_first].tolist(), strict=True)
