"""The figures of the literature, and that the break-even is where nothing is saved."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codetune.report.cost import RowTokens, estimate_saving, scoring_flops, training_flops, variants

TOKENS = RowTokens(prompt=40, answer=60)


@pytest.mark.parametrize(("epochs", "saved"), [(3, 0.42), (1, 0.07)])
def test_a_pick_of_two_fifths_saves_much_over_three_epochs_and_little_over_one(epochs: int, saved: float) -> None:
    score = scoring_flops(7, TOKENS, empty_prompt=False)
    cost = estimate_saving(score, training_flops(7, TOKENS.all, is_full=True), 0.4, epochs)
    assert round(cost.saved_share, 2) == saved


def test_the_empty_prompt_costs_one_more_pass_over_the_answers() -> None:
    without, with_it = (scoring_flops(7, TOKENS, empty_prompt=asked) for asked in (False, True))
    assert (without, with_it) == (2 * 7 * (40 + 2 * 60), 2 * 7 * (40 + 3 * 60))


@given(st.floats(0.1, 10), st.floats(0.01, 0.99))
def test_at_the_break_even_nothing_is_saved(score: float, share: float) -> None:
    epochs = estimate_saving(score, 1.0, share, 3).break_even_epochs
    assert epochs is not None
    assert estimate_saving(score, 1.0, share, epochs).saved == pytest.approx(0, abs=1e-9)


def test_a_selection_of_everything_never_pays() -> None:
    assert estimate_saving(1.0, 1.0, 1.0, 3).break_even_epochs is None


def test_a_smaller_scorer_saves_more_and_a_shorter_training_less() -> None:
    shares = {
        (found.scorer_share, found.epochs): found.saved_share for found in variants(estimate_saving(3, 6, 0.4, 3))
    }
    assert shares[1 / 5, 3] > shares[1, 3] > shares[1, 2] > shares[1, 1]
    assert shares[1, 3] == estimate_saving(3, 6, 0.4, 3).saved_share
