from __future__ import annotations

import random
from collections.abc import Sequence
from tempfile import TemporaryFile

import pytest

from codetune.records import Example, Message, content_id
from codetune.selection.duplicates import find_duplicates, jaccard

WORDS = [f"word{n}" for n in range(100)]


def example(instruction: str, answer: str = "", row_id: str | None = None) -> Example:
    messages = (Message("user", instruction), Message("assistant", answer))
    return Example(row_id or content_id(messages), messages, "")


def text(changed: int, name: str = "other") -> str:
    """100 words, of which the first `changed` are others."""
    return " ".join([f"{name}{n}" for n in range(changed)] + WORDS[changed:])


def found_in(rows: Sequence[Example], near: bool = True) -> dict[str, str]:
    by_id = {row.id: row for row in rows}
    with TemporaryFile() as file:
        return dict(find_duplicates(rows, by_id.__getitem__, near, file))


def rows_of(*texts: str) -> list[Example]:
    """Rows with the ids 0...01, 0...02, ..."""
    return [example(one, row_id=f"{number:016x}") for number, one in enumerate(texts, start=1)]


def whys(found: dict[str, str]) -> dict[int, str]:
    return {int(row, 16): why.replace("0" * 15, "") for row, why in found.items()}


def test_the_row_with_the_smallest_id_is_kept() -> None:
    rows = rows_of(text(5), "something else entirely, and long enough to be told apart", text(4), text(3))
    assert whys(found_in(rows)) == {3: "near duplicate of 1", 4: "near duplicate of 1"}


# Of 98 shingles 90 are left where 8 words change: 90 / (98 + 8) = 0.849; where 12 change 86 / 110 = 0.782.
@pytest.mark.parametrize(("changed", "is_near"), [(8, True), (12, False)])
def test_four_fifths_of_all_shingles_in_common_are_near(changed: int, is_near: bool) -> None:
    assert bool(found_in(rows_of(text(0), text(changed)))) == is_near


@pytest.mark.parametrize("near", [True, False])
def test_rows_that_differ_in_white_space_alone_are_exact_duplicates(near: bool) -> None:
    rows = rows_of("Add one.\ndef f(x):\n    return x + 1", "Add one. def f(x):\n\treturn x+1")
    assert whys(found_in(rows, near)) == {2: "duplicate of 1"}


def test_a_near_duplicate_is_none_where_only_exact_ones_are_looked_for() -> None:
    assert not found_in(rows_of(text(0), text(1)), near=False)


def test_the_order_of_rows_changes_nothing() -> None:
    rows = rows_of(*(text(n % 30, f"set{n % 7}") for n in range(60)))
    expected = found_in(rows)
    assert 20 < len(expected) < 60
    for seed in range(3):
        assert found_in(random.Random(seed).sample(rows, len(rows))) == expected


def test_what_is_named_is_kept_itself() -> None:
    found = found_in(rows_of(*(text(n) for n in range(40))))  # each like the next, the first not like the last
    assert found
    assert not {why.split()[-1] for why in found.values()} & set(found)


def test_rows_without_a_word_or_shorter_than_a_shingle_are_compared_whole() -> None:
    assert whys(found_in(rows_of("", " ", "a b", "a c", "A B"))) == {2: "duplicate of 1", 5: "near duplicate of 3"}


def test_no_rows_have_no_duplicates() -> None:
    assert found_in([]) == {}


def test_nearly_all_pairs_above_the_limit_are_found() -> None:
    pairs = [rows_of(text(8, f"a{n}") + f" seed{n} " * 1, text(0) + f" seed{n} ") for n in range(30)]
    assert sum(bool(found_in(pair)) for pair in pairs) >= 28


def test_equal_sets_have_a_jaccard_index_of_one() -> None:
    assert jaccard(frozenset({"a"}), frozenset({"a"})) == 1.0
