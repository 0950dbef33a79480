"""What a selection costs and saves, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codetune.selection.cost import (
    SelectionCost,
    estimated_prompt_tokens,
    scoring_flops,
    selection_cost,
    training_flops,
    variants,
)

NONE = np.zeros(10, dtype=np.bool_)
TOKENS, ANSWER_TOKENS = 100, 60


def test_two_passes_and_a_pick_of_four_tenths_save_42_percent_of_three_epochs_and_7_of_one() -> None:
    # Rows of 40 prompt and 60 answer tokens. Scoring 2 (100 + 60) = 320 a row, training 600 a row and epoch.
    # Ten rows, four taken: one epoch (3200 + 2400) / 6000, three epochs (3200 + 7200) / 18000; 3200 / 3600 epochs.
    cost = selection_cost(np.full(10, 40.0), np.full(10, 60.0), np.arange(4), NONE, answer_passes=1)
    assert (cost.tokens, cost.tokens_taken) == (1000, 400)
    assert (cost.scoring, cost.training, cost.training_taken) == (3200, 6000, 2400)
    assert cost.saved_share(1) == pytest.approx(1 - 5600 / 6000)
    assert cost.saved_share(3) == pytest.approx(1 - 10400 / 18000)
    assert cost.break_even_epochs == pytest.approx(3200 / 3600)


def test_the_empty_prompt_and_shuffled_pairs_are_passes_too() -> None:
    # 2 (100 + 2 * 60) a row, and 2 * 100 for each of three shuffled pairs.
    cost = selection_cost(np.full(10, 40.0), np.full(10, 60.0), np.arange(4), np.arange(10) < 3, answer_passes=2)
    assert cost.scoring == 10 * 440 + 3 * 200


def test_a_row_without_a_score_costs_nothing_and_without_any_there_is_no_cost() -> None:
    answers = np.array([60.0, np.nan])
    cost = selection_cost(np.full(2, 40.0), answers, np.arange(1), NONE[:2], answer_passes=1)
    assert cost.tokens == 100
    assert cost.break_even_epochs is None  # all that could be trained on was taken
    assert selection_cost(np.full(2, 40.0), np.full(2, np.nan), np.arange(1), NONE[:2], answer_passes=1) is None


def test_flops_are_known_with_the_weights() -> None:
    cost = selection_cost(np.full(10, 40.0), np.full(10, 60.0), np.arange(4), NONE, answer_passes=1)
    assert cost.document(1000)["flops"]["scoring"] == 3_200_000
    assert cost.document(None)["flops"] is None


def test_prompts_have_as_many_characters_to_a_token_as_answers_in_the_median() -> None:
    # 4, 4 and, of a truncated answer, 40 characters to a token.
    tokens = estimated_prompt_tokens(np.array([80.0, 8.0, 20.0]), np.array([40.0, 80.0, 400.0]), np.array([10, 20, 10]))
    assert tokens.tolist() == [20, 2, 5]


def planned(scoring: float, epoch: float, share: float) -> SelectionCost:
    return SelectionCost(TOKENS, share * TOKENS, scoring, epoch, share * epoch)


@pytest.mark.parametrize(("epochs", "saved"), [(3, 0.42), (1, 0.07)])
def test_a_pick_of_two_fifths_saves_much_over_three_epochs_and_little_over_one(epochs: int, saved: float) -> None:
    cost = planned(scoring_flops(7, TOKENS, ANSWER_TOKENS, 1), training_flops(7, TOKENS), 0.4)
    assert round(cost.saved_share(epochs), 2) == saved


def test_the_empty_prompt_costs_one_more_pass_over_the_answers() -> None:
    without, with_it = (scoring_flops(7, TOKENS, ANSWER_TOKENS, passes) for passes in (1, 2))
    assert (without, with_it) == (2 * 7 * (40 + 2 * 60), 2 * 7 * (40 + 3 * 60))


def test_adapters_cost_no_gradient_of_the_frozen_weights() -> None:
    assert (training_flops(7, TOKENS), training_flops(7, TOKENS, is_full=False)) == (6 * 7 * 100, 4 * 7 * 100)


@given(st.floats(0.1, 10), st.floats(0.01, 0.99))
def test_at_the_break_even_nothing_is_saved(score: float, share: float) -> None:
    epochs = planned(score, 1.0, share).break_even_epochs
    assert epochs is not None
    assert planned(score, 1.0, share).saved_share(epochs) == pytest.approx(0, abs=1e-9)


def test_a_selection_of_everything_never_pays() -> None:
    assert planned(1.0, 1.0, 1.0).break_even_epochs is None


def test_a_smaller_scorer_saves_more_and_a_shorter_training_less() -> None:
    cost = planned(3, 6, 0.4)
    shares = {(found.scorer_share, found.epochs): found.saved_share for found in variants(cost, 3)}
    assert shares[1 / 5, 3] > shares[1, 3] > shares[1, 2] > shares[1, 1]
    assert shares[1, 3] == cost.saved_share(3)
