"""Losses on held-out rows -> reports and comparisons."""

from __future__ import annotations

import pytest
import torch

from codetune.benchmark.likelihood import NO_MEMORY, compare_likelihoods, measure, report_likelihood
from codetune.data.tokens import Span, TrainingTokens
from codetune.errors import CodetuneError
from codetune.records import Refusal


class FixedScorer:
    """The loss of a token is its id; a span that begins with 0 does not fit into memory."""

    def token_nll(self, spans: list[Span]) -> list[torch.Tensor | None]:
        return [None if span.tokens[0] == 0 else torch.tensor(span.tokens[span.start :]).float() for span in spans]


def tokens(ids: tuple[int, ...], *learned: int) -> TrainingTokens:
    return TrainingTokens(ids, tuple(index in learned for index in range(len(ids))), False, 0)


def measured(*rows: tuple[str, TrainingTokens]) -> list[object]:
    return list(measure(rows, FixedScorer()))  # type: ignore[arg-type]


def test_only_learned_tokens_count_and_the_first_token_is_predicted_from_nothing() -> None:
    two_answers = tokens((9, 1, 2, 4, 8, 16), 2, 3, 5)
    assert measured(("a", two_answers), ("b", tokens((5, 7, 3), 0, 2))) == [("a", 2 + 4 + 16, 3), ("b", 3, 1)]


def test_a_row_that_does_not_fit_into_memory_is_refused() -> None:
    assert measured(("a", tokens((0, 1), 1)), ("b", tokens((2, 1), 1))) == [Refusal("a", NO_MEMORY, ""), ("b", 1, 1)]


def test_a_loss_that_is_no_number_is_an_error() -> None:
    class Broken(FixedScorer):
        def token_nll(self, spans: list[Span]) -> list[torch.Tensor | None]:
            return [torch.tensor([float("nan")]) for _ in spans]

    with pytest.raises(CodetuneError, match="no finite loss for the held-out row a"):
        list(measure([("a", tokens((1, 2), 1))], Broken()))  # type: ignore[arg-type]


def test_the_figure_is_the_mean_over_all_tokens_not_over_rows() -> None:
    report = report_likelihood("base", {"a": (6.0, 2), "b": (4.0, 8)}, {"longer": 1}, seed=0)
    assert (report["nats_per_token"], report["tokens"], report["rows"]) == (1.0, 10, 2)  # the rows have 3 and 0.5
    # Resamples of two rows: both a, both b, or one of each.
    assert report["interval_95"] == (0.5, 3.0)


def test_two_models_are_compared_on_the_rows_that_both_have() -> None:
    base = report_likelihood("base", {str(row): (10.0 + row % 3, 10) for row in range(40)}, {}, seed=0)
    tuned = report_likelihood("tuned", {str(row): (9.0 + row % 3, 10) for row in range(30)}, {}, seed=0)
    (compared,) = compare_likelihoods([base, tuned], seed=0)
    assert (compared["models"], compared["rows"]) == (["base", "tuned"], 30)
    assert compared["difference"] == pytest.approx(-0.1)
    assert compared["interval_95"] == pytest.approx((-0.1, -0.1))  # every row improves alike
    assert compared["p_value"] == pytest.approx(2 / 10_001)
    assert compared["told_apart"]


def test_a_difference_that_so_few_rows_cannot_find_is_not_told_apart() -> None:
    base = report_likelihood("base", {str(row): (10.0, 10) for row in range(30)}, {}, seed=0)
    noisy = report_likelihood("tuned", {str(row): (9.9 + (-1) ** row, 10) for row in range(30)}, {}, seed=0)
    (compared,) = compare_likelihoods([base, noisy], seed=0)
    # Differences of +0.9 and -1.1 nats: standard error 1 / sqrt(30) nats a row, 0.0183 a token, times 2.8016 is 0.0512.
    assert compared["least_difference"] == pytest.approx(0.0512, rel=0.03)
    assert not compared["told_apart"]


def test_models_that_cut_rows_into_other_tokens_are_not_compared() -> None:
    one, other = ({"a": (2.0, count), "b": (2.0, 4)} for count in (2, 3))
    assert compare_likelihoods([report_likelihood("x", one, {}, 0), report_likelihood("y", other, {}, 0)], 0) == []
