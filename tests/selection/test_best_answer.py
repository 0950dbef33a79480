"""Several answers to one instruction: which one is kept, by hand and by its properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codetune.records import Example, Message
from codetune.selection.best_answer import instruction_digest, less_likely_answers


def repeats(instructions: list[int], nll: list[float], rows: list[int]) -> dict[int, int]:
    columns = np.array(instructions, dtype=np.uint64), np.array(nll)
    return dict(less_likely_answers(*columns, np.array(rows, dtype=np.int64)))


def test_the_likeliest_answer_is_kept_and_of_equal_ones_the_first() -> None:
    # Instruction 7: rows 0, 2, 3 with 0.5, 0.2, 0.9. Instruction 8: rows 1 and 4, equal. Instruction 9: row 5 alone.
    assert repeats([7, 8, 7, 7, 8, 9], [0.5, 1.0, 0.2, 0.9, 1.0, 3.0], [*range(6)]) == {0: 2, 3: 2, 4: 1}


def test_rows_that_cannot_be_taken_displace_none() -> None:
    assert repeats([7, 7, 7], [0.1, 0.3, 0.2], [1, 2]) == {1: 2}
    assert repeats([7, 7, 7], [0.1, 0.3, 0.2], []) == {}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=30))
def test_one_row_of_every_instruction_is_left(values: list[tuple[int, int]]) -> None:
    instructions, nll = [2**64 - 1 - name for name, _ in values], [float(number) for _, number in values]
    kept_by = repeats(instructions, nll, [*range(len(values))])
    left = [row for row in range(len(values)) if row not in kept_by]
    assert sorted(instructions[row] for row in left) == sorted(set(instructions))
    for row, kept in kept_by.items():
        assert kept in left
        assert (instructions[kept], (nll[kept], kept)) <= (instructions[row], (nll[row], row))


@pytest.mark.parametrize(("said", "is_same"), [("Add\n one. ", True), ("add one.", False), ("Add one. Add.", False)])
def test_an_instruction_is_the_same_with_other_white_space(said: str, is_same: bool) -> None:
    digests = [
        instruction_digest(Example("", (Message("user", text), Message("assistant", text[:3])), ""))
        for text in ("Add one.", said)
    ]
    assert (digests[0] == digests[1]) == is_same
