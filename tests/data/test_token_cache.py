"""Tokenized rows in a file come back as they were."""

from __future__ import annotations

from pathlib import Path

from codetune.data.token_cache import write_token_cache
from codetune.data.tokens import TrainingTokens


def tokens(*ids: int, learned: int) -> TrainingTokens:
    return TrainingTokens(ids, tuple(place >= learned for place in range(len(ids))), truncated=False, lost_tokens=0)


ROWS = [("a" * 16, tokens(0, 5, 0, 7, learned=2)), ("b" * 16, tokens(9, 1, learned=1))]


def test_rows_come_back_with_what_is_learned(tmp_path: Path) -> None:
    token_cache = write_token_cache(ROWS, tmp_path / "tokens")
    assert len(token_cache) == 2
    for (row_id, expected), sample in zip(ROWS, (token_cache[0], token_cache[1]), strict=True):
        assert sample.id == row_id
        assert tuple(sample.tokens) == expected.ids
        assert tuple(sample.learned) == expected.learned
    assert (token_cache.longest, token_cache.largest_token) == (4, 9)


def test_the_digest_knows_order_tokens_and_what_is_learned(tmp_path: Path) -> None:
    others = [
        ROWS,
        ROWS[::-1],
        [ROWS[0], ("b" * 16, tokens(9, 2, learned=1))],
        [ROWS[0], ("b" * 16, tokens(9, 1, learned=0))],
        [ROWS[0], ("c" * 16, tokens(9, 1, learned=1))],
    ]
    assert len({write_token_cache(rows, tmp_path / "tokens").digest for rows in others}) == 5
    assert (
        write_token_cache(iter(ROWS), tmp_path / "again").digest == write_token_cache(ROWS, tmp_path / "tokens").digest
    )


def test_no_rows_are_an_empty_corpus(tmp_path: Path) -> None:
    assert len(write_token_cache([], tmp_path / "tokens")) == 0
