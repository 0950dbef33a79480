"""S-IFD: by hand, against numpy's percentile, and the same however many tokens are held at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codetune.selection import selective_ifd as module
from codetune.selection.selective_ifd import Differences, selective_ifd, token_limit


def rows_of(values: Sequence[Sequence[float]]) -> list[Differences]:
    return [np.array(row, dtype=np.float32) for row in values]


def test_the_tokens_that_the_instruction_changes_most_decide() -> None:
    # |d| in order: .125 .25 .5 1 2; the limit is at the index floor(4 * 0.5) = 2: .5. Above it are -1 and 2.
    rows = rows_of([[0.5, -1.0, 0.25], [2.0], [0.125]])
    found = selective_ifd(lambda: rows, 3, 0.5)
    assert token_limit(lambda: rows, 0.5) == 0.5
    assert found[:2] == pytest.approx([np.exp(-1.0), np.exp(2.0)])
    assert np.isnan(found[2])


def test_with_every_token_it_is_ifd() -> None:
    rows = rows_of([[0.5, -1.0, 0.0], [2.0], []])
    found = selective_ifd(lambda: rows, 3, 1.0)
    assert found[:2] == pytest.approx([np.exp(-0.5 / 3), np.exp(2.0)])
    assert np.isnan(found[2])


@given(
    st.lists(st.lists(st.floats(-50, 50, width=32), max_size=9), max_size=20), st.floats(0.05, 0.95), st.integers(1, 40)
)
def test_the_limit_is_the_percentile_of_all_tokens(values: list[list[float]], share: float, at_once: int) -> None:
    rows = rows_of(values)
    tokens = np.abs(np.concatenate([np.empty(0, np.float32), *rows]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_TOKENS", at_once)
        limit = token_limit(lambda: rows, share)
    if len(tokens):
        assert limit == np.sort(tokens)[int((len(tokens) - 1) * (1 - share))]
    else:
        assert limit < 0


def test_a_row_beyond_the_range_of_numbers_is_the_hardest() -> None:
    rows = rows_of([[900.0], [1.0]])
    assert selective_ifd(lambda: rows, 2, 1.0).tolist() == [np.inf, pytest.approx(np.e)]
