"""The figures of a selection: by hand, against scipy, and absent where the strategy reads nothing of the kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from codetune.project.sections import Selection, Strategy
from codetune.selection.diagnostics import (
    STATES,
    diagnose,
    histograms,
    map_document,
    rank_correlation,
    total_variation,
)
from codetune.selection.row_vectors import RowVectors
from codetune.selection.select import SelectionResult, select
from codetune.selection.strategies import SelectionInputs

ROWS = 40


def inputs_of(rows: int = ROWS) -> SelectionInputs:
    random = np.random.default_rng(3)
    vectors = random.standard_normal((rows, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    tokens = np.arange(rows, dtype=np.float64) + 10
    return SelectionInputs(
        np.arange(rows, dtype=np.uint64),
        0.5 + tokens / 200,  # as the length of the answer
        (np.arange(rows) % 4).astype(np.int32),
        pmi=random.standard_normal(rows),
        nll_conditional=random.random(rows),
        answer_tokens=tokens,
        vectors=RowVectors(vectors, np.arange(rows)),
    )


def selected(inputs: SelectionInputs, **settings: object) -> SelectionResult:
    return select(inputs, Selection(**{"max_ifd": 100.0, "mismatch": "ifd", **settings}), 42)


def test_the_rank_correlation_by_hand_with_equal_values() -> None:
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4 less 2.5: products 2.25 + 0 + 0 + 2.25 over sqrt(4.5 * 5).
    found = rank_correlation(np.array([1.0, 5.0, 5.0, 9.0]), np.array([0.1, 0.2, 0.3, 0.4]))
    assert found == pytest.approx(4.5 / (4.5 * 5) ** 0.5)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=50))
def test_the_rank_correlation_is_that_of_scipy(pairs: Sequence[tuple[int, int]]) -> None:
    one, other = np.array(pairs, dtype=np.float64).T
    found = rank_correlation(one, other)
    if found is None:
        assert len(set(one)) == 1 or len(set(other)) == 1
    else:
        assert found == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)


@pytest.mark.parametrize("rows", [0, 1])
def test_there_is_no_rank_correlation_of_fewer_than_two_rows(rows: int) -> None:
    assert rank_correlation(np.ones(rows), np.ones(rows)) is None


def test_the_distance_of_two_distributions_by_hand() -> None:
    # Shares 0.5 0.3 0.2 and 0.2 0.3 0.5: three tenths have to move.
    assert total_variation(np.array([50.0, 30, 20]), np.array([2.0, 3, 5])) == pytest.approx(0.3)
    assert total_variation(np.array([1.0, 0]), np.array([0.0, 7])) == 1


def test_equal_shares_of_every_cluster_move_nothing() -> None:
    inputs = inputs_of()
    found = diagnose(inputs, selected(inputs, ratio=0.5), 42)
    assert found.cluster_distance == 0
    assert found.ifd_length_correlation == pytest.approx(1)
    assert found.random_overlap_by_chance == 0.5


@pytest.mark.parametrize("strategy", ["random", "all"])
def test_a_random_draw_is_its_own_and_what_no_column_says_is_absent(strategy: Strategy) -> None:
    inputs = SelectionInputs(np.arange(ROWS, dtype=np.uint64), None, None)
    result = selected(inputs, strategy=strategy, ratio=0.5)
    found = diagnose(inputs, result, 42)
    assert found.random_overlap == 1
    known = {name for name, value in asdict(found).items() if value is not None}
    assert known == {"random_overlap", "random_overlap_by_chance"}
    assert histograms(inputs, result, Selection(strategy=strategy), None) == {"ifd": None, "pmi": None}
    assert map_document(inputs, result) is None


def test_without_embeddings_there_is_a_correlation_and_no_diversity() -> None:
    inputs = replace(inputs_of(), cluster=None, vectors=None)
    found = diagnose(inputs, selected(inputs, strategy="ifd", ratio=0.5), 42)
    assert found.ifd_length_correlation is not None
    assert (found.cluster_distance, found.novelsum, found.novelsum_of_random_draw) == (None, None, None)


def test_histograms_count_every_row_once_and_show_the_cuts() -> None:
    inputs = replace(inputs_of(), pmi_limit=np.full(ROWS, -0.5))
    inputs.ifd[:2] = (np.nan, 50.0)  # no score, and far out
    result = selected(inputs, ratio=0.5, max_ifd=1.0)
    settings = Selection(max_ifd=1.0, mismatch="calibrated")
    found = histograms(inputs, result, settings, np.array([-0.1, 0.1]))
    ifd, pmi = found["ifd"], found["pmi"]
    assert sum(ifd["counts"]["rows"]) + ifd["below"]["rows"] + ifd["above"]["rows"] == ROWS - 1
    assert ifd["above"]["rows"] == 1
    assert sum(ifd["counts"]["taken"]) == len(result.taken)
    assert (ifd["cuts"], pmi["cuts"]) == ({"max_ifd": 1.0}, {"limit_quantiles": [-0.5] * 5})
    assert sum(pmi["counts"]["shuffled"]) == 2
    json.dumps(found, allow_nan=False)


def test_the_map_says_of_every_row_what_became_of_it() -> None:
    inputs = replace(inputs_of(), filtered=np.arange(ROWS) == 3)
    inputs.ifd[:2] = (np.nan, 2.0)
    result = selected(inputs, ratio=0.5, max_ifd=1.0)
    found = map_document(inputs, result)
    states = [STATES[state] for state in found["state"]]
    assert states[:2] == ["no score", "mismatched pair"]
    assert states[3] == "set aside"
    assert {number for number, state in enumerate(states) if state == "taken"} == set(result.taken.tolist())
    assert [found["rows"], found["of_rows"], len(found["x"]), len(found["id"])] == [ROWS] * 4
    json.dumps(found, allow_nan=False)
