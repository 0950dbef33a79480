"""Ids as columns: every id is found where it stands, and no other is."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from codetune.data.ids import IdIndex, pack_ids, unpack_id

NUMBERS = st.integers(0, 2**64 - 1) | st.integers(0, 20)


@given(st.lists(NUMBERS))
def test_an_id_is_the_same_text_again(numbers: list[int]) -> None:
    texts = [f"{number:016x}" for number in numbers]
    assert [unpack_id(int(number)) for number in pack_ids(texts)] == texts


@given(st.lists(NUMBERS), st.lists(NUMBERS))
def test_an_index_is_the_dictionary_that_it_stands_for(numbers: list[int], others: list[int]) -> None:
    index = IdIndex(np.array(numbers, dtype=np.uint64))
    first = {number: numbers.index(number) for number in numbers}
    assert len(index) == len(first)
    for number in (*numbers, *others):
        assert index.find(unpack_id(number)) == first.get(number)
    asked = np.array([*others, *numbers], dtype=np.uint64)
    assert index.holds(asked).tolist() == [number in first for number in (*others, *numbers)]
    positions = index.positions(np.array(numbers, dtype=np.uint64)).tolist()
    assert [numbers[position] for position in positions] == numbers
