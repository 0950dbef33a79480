"""Every strategy by its properties; the rankings by hand. What is more than a page has tests of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from codetune.project.sections import Selection
from codetune.selection.row_vectors import RowVectors
from codetune.selection.select import select
from codetune.selection.strategies import STRATEGIES, Candidates, SelectionInputs

BY_CLUSTER = ("ifd_cluster", "sifd")  # with a quota for each cluster
WITHOUT_ALL = [name for name in STRATEGIES if name != "all"]
GROWING = [name for name in WITHOUT_ALL if name != "parametric"]  # with the ratio


def columns(rows: int, seed: int = 0, *, equal: bool = False) -> SelectionInputs:
    """Rows in three clusters; a tenth was refused, and some are mismatched by their IFD."""
    random = np.random.default_rng(seed)
    cluster = random.integers(0, 3, rows).astype(np.int32)
    vectors = np.eye(3, 8)[cluster] + 0.3 * random.standard_normal((rows, 8))
    values = random.uniform(0.2, 1.1, (4, rows))
    if equal:
        cluster[:], vectors[:], values[:] = 0, vectors[0], 0.5
    else:
        values[:, random.random(rows) < 0.1] = np.nan
    return SelectionInputs(
        np.arange(10, 10 + rows, dtype=np.uint64),
        values[0],
        cluster,
        nll_conditional=values[1],
        answer_tokens=np.round(100 * values[2]),
        sifd=values[3],
        vectors=in_file_order(vectors, np.arange(rows)),
    )


def in_file_order(vectors: NDArray[np.float64], positions: NDArray[np.int64]) -> RowVectors:
    """Unit vectors whose row i stands at `positions[i]` of the file."""
    stored = np.empty(vectors.shape, dtype=np.float32)
    stored[positions] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return RowVectors(stored, positions)


def in_another_order(vectors: RowVectors) -> RowVectors:
    """The same vectors of the same rows, bit for bit, at other positions of the file."""
    positions = np.random.default_rng(1).permutation(len(vectors))
    stored = np.empty_like(vectors.stored)
    stored[positions] = vectors.take(slice(None))
    return RowVectors(stored, positions)


def taken(inputs: SelectionInputs, strategy: str, seed: int = 42, **settings: Any) -> list[int]:
    return sorted(select(inputs, Selection(strategy=strategy, **settings), seed).rows.ids.tolist())


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_table_is_by_name_with_one_line_of_description(name: str) -> None:
    strategy = STRATEGIES[name]
    assert strategy.name == name
    assert strategy.description
    assert "\n" not in strategy.description


@pytest.mark.parametrize(
    ("needs_scores", "needs_embeddings", "names"),
    [
        (True, True, {"ifd_cluster", "facility", "mig", "sifd"}),
        (False, True, {"parametric", "kcenter"}),
        (True, False, {"ifd", "perplexity", "length"}),
        (False, False, {"random", "all"}),
    ],
)
def test_a_strategy_needs_these_stages(needs_scores: bool, needs_embeddings: bool, names: set[str]) -> None:
    needs = (needs_scores, needs_embeddings)
    assert {name for name, rule in STRATEGIES.items() if (rule.needs_scores, rule.needs_embeddings) == needs} == names


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_taken_is_eligible_and_as_much_as_was_asked_for(strategy: str) -> None:
    inputs = columns(90)
    result = select(inputs, Selection(strategy=strategy, ratio=0.3), 42)
    eligible = sum(part.eligible for part in result.diagnostics)
    assert all(part.taken <= part.eligible for part in result.diagnostics)
    assert len(result.rows.ids) == len(set(result.rows.ids.tolist()))
    if strategy in BY_CLUSTER:
        assert [part.taken for part in result.diagnostics] == [int(part.eligible * 0.3) for part in result.diagnostics]
    else:
        assert len(result.rows.ids) == (eligible if strategy == "all" else int(eligible * 0.3))


@st.composite
def rows_in_groups(draw: st.DrawFn) -> tuple[SelectionInputs, NDArray[np.int64]]:
    """Rows that are equal in everything but their ids within a group, some of them set aside; and the group of each."""
    number, seed = draw(st.integers(1, 40)), draw(st.integers(0, 99))
    random = np.random.default_rng(seed)
    group = random.integers(0, draw(st.integers(1, number)), number)
    single = columns(number, seed)
    assert single.vectors is not None
    names = ("ifd", "cluster", "nll_conditional", "answer_tokens", "sifd")
    parts = {name: getattr(single, name)[group] for name in names}
    vectors = in_file_order(single.vectors.stored[group].astype(np.float64), random.permutation(number))
    return replace(single, **parts, vectors=vectors, filtered=random.random(number) < 0.1), group


@pytest.mark.parametrize("strategy", STRATEGIES)
@hypothesis.settings(max_examples=12, deadline=None)
@given(rows_in_groups(), st.floats(0.05, 1), st.sampled_from(["eligible", "all"]), st.data())
def test_every_strategy_keeps_its_promises(
    strategy: str, made: tuple[SelectionInputs, NDArray[np.int64]], ratio: float, ratio_of: str, data: st.DataObject
) -> None:
    inputs, group = made
    assert inputs.ifd is not None
    assert inputs.cluster is not None
    assert inputs.vectors is not None
    asked: dict[str, Any] = {"ratio": ratio, "ratio_of": ratio_of}
    chosen = taken(inputs, strategy, **asked)
    # What it takes is eligible, each row once, and never more than the quota.
    by_scores = STRATEGIES[strategy].needs_scores
    eligible = ~inputs.is_filtered & ~np.isnan(inputs.ifd) & (~np.array(by_scores) | (inputs.ifd < 1))
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(inputs.ids[eligible].tolist())
    parts = np.unique(inputs.cluster) if strategy in BY_CLUSTER else [None]
    members = [np.ones(len(group), dtype=bool) if part is None else inputs.cluster == part for part in parts]
    share, whole = (1.0, eligible) if strategy == "all" else (ratio, eligible | (ratio_of == "all"))
    quotas = [min(int((own & eligible).sum()), int(int((own & whole).sum()) * share)) for own in members]
    is_taken = np.isin(inputs.ids, np.array(chosen, dtype=np.uint64))
    assert [int((is_taken & own).sum()) for own in members] == quotas
    # The order of the rows in the file changes nothing.
    assert taken(replace(inputs, vectors=in_another_order(inputs.vectors)), strategy, **asked) == chosen
    # Of equal rows those with the lowest ids are taken.
    if strategy != "random":
        for rows in (np.flatnonzero(eligible & (group == name)) for name in np.unique(group)):
            assert is_taken[rows].tolist() == sorted(is_taken[rows].tolist(), reverse=True)
    # A count is taken exactly, and a larger selection contains the smaller one.
    if strategy in WITHOUT_ALL and eligible.any():
        counts = sorted(data.draw(st.tuples(*[st.integers(1, int(eligible.sum()))] * 2)))
        smaller, larger = (taken(inputs, strategy, count=count, ratio_of=ratio_of) for count in counts)
        assert [len(smaller), len(larger)] == counts
        assert strategy not in GROWING or set(smaller) <= set(larger)
        assert strategy not in GROWING or set(chosen) <= set(taken(inputs, strategy, ratio=1.0, ratio_of=ratio_of))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_seed_decides_and_the_order_of_the_data_set_does_not(strategy: str) -> None:
    inputs = columns(90)
    assert inputs.vectors is not None
    once = taken(inputs, strategy, ratio=0.3)
    assert taken(inputs, strategy, ratio=0.3) == once
    assert taken(replace(inputs, vectors=in_another_order(inputs.vectors)), strategy, ratio=0.3) == once


@pytest.mark.parametrize("strategy", GROWING)
@pytest.mark.parametrize(("size", "smaller", "larger"), [("ratio", 0.2, 0.5), ("ratio", 0.5, 0.9), ("count", 20, 31)])
def test_a_larger_selection_contains_the_smaller_one(strategy: str, size: str, smaller: float, larger: float) -> None:
    inputs = columns(90, 3)
    assert set(taken(inputs, strategy, **{size: smaller})) < set(taken(inputs, strategy, **{size: larger}))


@pytest.mark.parametrize("strategy", WITHOUT_ALL)
@pytest.mark.parametrize("count", [1, 17])
def test_a_count_is_taken_exactly(strategy: str, count: int) -> None:
    assert len(taken(columns(90, 4), strategy, count=count)) == count


@pytest.mark.parametrize("strategy", WITHOUT_ALL)
def test_a_ratio_of_all_rows_never_takes_more_than_are_eligible(strategy: str) -> None:
    inputs = columns(90)
    every = sum(part.eligible for part in select(inputs, Selection(strategy=strategy), 42).diagnostics)
    assert len(taken(inputs, strategy, ratio=1.0, ratio_of="all")) == every


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_row_is_enough(strategy: str) -> None:
    assert taken(columns(1, equal=True), strategy, ratio=1.0) == [10]


@pytest.mark.parametrize("strategy", WITHOUT_ALL)
def test_of_equal_rows_those_with_the_lowest_ids_are_taken(strategy: str) -> None:
    chosen = taken(columns(20, equal=True), strategy, count=5)
    assert len(chosen) == 5
    # A random draw has no ties: what it ranks is a digest of the id itself.
    assert strategy == "random" or chosen == [10, 11, 12, 13, 14]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_rows_give_an_empty_selection(strategy: str) -> None:
    assert taken(columns(0), strategy) == []


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("ifd", [11, 13]),  # .9, .8; the .95 of row 12 is in a mismatched pair of limit 0.95
        ("perplexity", [10, 13]),  # 3, and 2 as row 14 has: the lower id
        ("length", [11, 14]),  # 40, 30
    ],
)
def test_a_ranking_takes_the_highest_values(strategy: str, expected: list[int]) -> None:
    inputs = SelectionInputs(
        np.arange(10, 15, dtype=np.uint64),
        np.array([0.5, 0.9, 0.95, 0.8, 0.7]),
        None,
        nll_conditional=np.array([3.0, 1.0, 4.0, 2.0, 2.0]),
        answer_tokens=np.array([10.0, 40.0, 50.0, 20.0, 30.0]),
    )
    assert taken(inputs, strategy, ratio=0.5, max_ifd=0.95) == expected


def test_quality_is_the_share_of_rows_that_are_no_harder() -> None:
    inputs = SelectionInputs(np.arange(4, dtype=np.uint64), np.array([0.3, 0.1, 0.3, 0.9]), None)
    quality = Candidates(inputs, np.arange(4), Selection(), 42).quality
    assert quality.tolist() == [0.75, 0.25, 0.75, 1.0]
