"""Blocks of rows for scoring and embedding: each row once, similar lengths together, the budget kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import example as example_of
from hypothesis import given
from hypothesis import strategies as st

from codetune.data.source import read_examples
from codetune.model.load import load_tokenizer
from codetune.project.sections import Dataset, Scoring
from codetune.records import Example, Message, Refusal, content_id
from codetune.selection import blocks as planning
from codetune.selection.blocks import (
    Block,
    estimated_tokens,
    pair_characters,
    plan_embedding_blocks,
    plan_scoring_blocks,
)
from codetune.selection.score import tokenize

LONGEST = 50  # tokens


def example(instruction: str, answer: str) -> Example:
    messages = (Message("user", instruction), Message("assistant", answer))
    return Example(content_id(messages), messages, "a:1")


def examples(lengths: Sequence[int]) -> list[Example]:
    return [example(f"{number}", "x" * length) for number, length in enumerate(lengths)]


def evol(shared_data: Path, count: int) -> list[Example]:
    path = str(shared_data / "instruct" / "evol-round1.json")
    rows = read_examples(Dataset(path=path, instruction="instruction", response="output"), path)
    return [row for row in islice(rows, count) if isinstance(row, Example)]


@example_of([0, 0, 0, 0, 0, 0, 0, 45, 57, 126, 125], 171)  # as long in characters, not in estimated tokens
@given(st.lists(st.integers(0, 200), max_size=60), st.integers(1, 300))
def test_every_row_is_in_one_block_whatever_the_budget(lengths: list[int], budget: int) -> None:
    rows = examples(lengths)
    blocks = list(plan_scoring_blocks(rows, budget, LONGEST))
    assert [block.index for block in blocks] == list(range(len(blocks)))
    assert sorted(row.id for block in blocks for row in block.examples) == sorted(row.id for row in rows)
    for block in blocks:
        estimates = [estimated_tokens(row, LONGEST) for row in block.examples]
        assert sum(estimates) <= budget or len(estimates) == 1
        characters = [pair_characters(row) for row in block.examples]
        assert characters == sorted(characters)


@pytest.mark.parametrize("name", ["deepseek-coder-6.7b-instruct", "codellama"])
def test_the_estimate_of_real_rows_is_on_the_side_of_too_many(shared_data: Path, name: str) -> None:
    rows, tokenizer = evol(shared_data, 300), load_tokenizer(shared_data / "tokenizers" / name)
    tokenized = [row for row in tokenize(rows, tokenizer, 10**6, Scoring(), {}, {}) if not isinstance(row, Refusal)]
    tokens = sum(len(row.tokens.conditional.tokens) + len(row.tokens.unconditional.tokens) for row in tokenized)
    assert tokens < sum(estimated_tokens(row, 2048) for row in rows) < 1.5 * tokens


def test_blocks_do_not_depend_on_the_order_of_rows_within_a_window() -> None:
    rows = examples([5, 5, 9, 1, 30, 5])
    assert list(plan_scoring_blocks(rows, 12, LONGEST)) == list(plan_scoring_blocks(rows[::-1], 12, LONGEST))


def test_a_window_is_all_that_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "WINDOW_ROWS", 3)
    rows = examples([9, 8, 7, 3, 2, 1])
    taken = []
    blocks = plan_scoring_blocks((taken.append(row) or row for row in rows), 10**6, LONGEST)
    assert next(blocks) == Block(0, (rows[2], rows[1], rows[0]))
    assert len(taken) == 3
    assert next(blocks) == Block(1, (rows[5], rows[4], rows[3]))


def test_every_row_of_a_real_file_is_planned_once(shared_data: Path) -> None:
    text = json.loads((shared_data / "instruct" / "evol-round1.json").read_text(encoding="utf-8"))
    blocks = list(plan_scoring_blocks(evol(shared_data, 10**6), 8192, 2048))
    assert sum(len(block.examples) for block in blocks) <= len(text)
    assert max(len(block.examples) for block in blocks) > 8


def test_embedding_blocks_hold_every_row_once_sorted_by_length() -> None:
    rows = [example("x" * length, "y") for length in (5, 1, 4, 2, 3)]
    blocks = list(plan_embedding_blocks(rows, 2))
    assert [block.index for block in blocks] == [0, 1, 2]
    assert [len(block.examples) for block in blocks] == [2, 2, 1]
    assert [len(row.instruction) for block in blocks for row in block.examples] == [1, 2, 3, 4, 5]
