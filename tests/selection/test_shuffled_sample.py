"""The sample of shuffled pairs: which rows, and with whose instruction."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codetune.records import Example, Message
from codetune.selection.shuffled_sample import choose_partners, shuffled_sample


def example(number: int, answer: int, instruction: str = "") -> Example:
    messages = (Message("user", instruction or str(number)), Message("assistant", "a" * answer))
    return Example(f"{number:016x}", messages, f"a.jsonl:{number}")


def test_the_sample_is_spread_over_the_lengths_of_answers() -> None:
    # 900 answers of 10 characters, 90 of 100, 10 of 1000: all of the longest, and as many of both others.
    lengths = [10] * 900 + [100] * 90 + [1000] * 10
    rows = [example(number, answer) for number, answer in enumerate(lengths)]
    sample = shuffled_sample(rows, 70)
    assert Counter(lengths[int(row_id, 16)] for row_id in sample) == {10: 30, 100: 30, 1000: 10}


def test_a_small_data_set_is_sampled_whole() -> None:
    rows = [example(number, number + 1) for number in range(5)]
    assert sorted(shuffled_sample(rows, 256)) == [row.id for row in rows]


ids_and_lengths = st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 200))
examples = st.lists(ids_and_lengths, unique_by=lambda row: row[0], max_size=40)


@given(examples, st.integers(0, 40), st.integers(1, 12))
def test_added_rows_move_no_older_row_into_the_sample(rows: list[tuple[int, int]], older: int, size: int) -> None:
    whole = [example(number, answer) for number, answer in rows]
    before, after = set(shuffled_sample(whole[:older], size)), set(shuffled_sample(whole, size))
    assert len(after) == min(size, len(whole))
    assert not (after & {row.id for row in whole[:older]}) - before


@given(examples, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_neither_sample_nor_partners(
    rows: list[tuple[int, int]], order: random.Random
) -> None:
    whole = [example(number, answer) for number, answer in rows]
    shuffled = order.sample(whole, len(whole))
    assert shuffled_sample(whole, 7) == shuffled_sample(shuffled, 7)
    assert choose_partners(whole) == choose_partners(shuffled)


@pytest.mark.parametrize(("instructions", "partners"), [("abc", "bca"), ("aab", "bba"), ("aaa", ""), ("", "")])
def test_a_partner_is_the_next_row_with_another_instruction(instructions: str, partners: str) -> None:
    rows = [example(number, 1, text) for number, text in enumerate(instructions)]
    assert "".join(row.instruction for row in choose_partners(rows).values()) == partners
