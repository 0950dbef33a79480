"""Micro-batches from lengths: nothing lost, nothing twice, nothing padded where nothing need be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codetune.data.packing import micro_batches, tokens_seen

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=40)
MODES = ["max_length", "dynamic_pad", "dynamic_pack"]


@given(LENGTHS, st.integers(1, 9), st.sampled_from(MODES))
def test_every_sample_is_in_one_micro_batch(lengths: list[int], samples: int, mode: str) -> None:
    batches = micro_batches(lengths, mode, samples)
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // samples)
    assert all(batches)


@given(LENGTHS, st.integers(1, 9))
def test_packed_micro_batches_differ_by_a_sample_at_most(lengths: list[int], samples: int) -> None:
    totals = [sum(lengths[at] for at in batch) for batch in micro_batches(lengths, "dynamic_pack", samples)]
    assert max(totals) - min(totals) <= max(lengths)


@given(LENGTHS, st.sampled_from(MODES))
def test_packing_pads_nothing_and_padding_never_loses_a_token(lengths: list[int], mode: str) -> None:
    seen = tokens_seen(lengths, mode, 50)
    assert seen >= sum(lengths)
    assert mode != "dynamic_pack" or seen == sum(lengths)


def test_padded_batches_keep_the_drawn_order() -> None:
    assert micro_batches([9, 1, 5, 2, 7], "dynamic_pad", 2) == ((0, 1), (2, 3), (4,))


@pytest.mark.parametrize(("mode", "seen"), [("max_length", 24), ("dynamic_pad", 15), ("dynamic_pack", 9)])
def test_tokens_seen_by_hand(mode: str, seen: int) -> None:
    # rows of 5, 3 and 1 tokens: 3 x 8; 3 x 5; 5 + 3 + 1
    assert tokens_seen([5, 3, 1], mode, 8) == seen
