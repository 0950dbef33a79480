"""The formula."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codetune.selection.ifd import ifd


def test_a_question_that_helps_makes_the_answer_easier() -> None:
    # Alone 1.0 nats a token, given the question 0.5: exp(0.5) / exp(1.0) = exp(-0.5)
    assert ifd(0.5, 1.0) == pytest.approx(0.6065306597)
    assert ifd(1.0, 1.0) == 1.0


@given(st.floats(0, 300), st.floats(0, 300))
def test_it_is_the_ratio_of_the_perplexities(conditional: float, unconditional: float) -> None:
    assert ifd(conditional, unconditional) == pytest.approx(math.exp(conditional) / math.exp(unconditional), rel=1e-9)


@pytest.mark.parametrize(
    ("conditional", "unconditional"),
    [(math.nan, 1), (1, math.nan), (math.inf, 1), (1, math.inf), (math.inf, math.inf), (800, 0), (0, 800)],
)
def test_what_is_no_positive_number_is_no_score(conditional: float, unconditional: float) -> None:
    assert ifd(conditional, unconditional) is None
