"""The token that a random number chooses: by hand, by frequency, and against the nucleus filter of transformers."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import TopPLogitsWarper

from codetune.data.thinking import HARMONY
from codetune.model.decoding import GenerationRequest, StopCriteria, sample, stream_seed, uniform
from tests.model.builders import byte_tokenizer


def test_special_tokens_are_left_out_of_a_text_but_for_those_that_show_where_thoughts_end() -> None:
    text, request = "<|channel|>final<|message|>x = 1", GenerationRequest((5,), (), "")
    tokenizer = byte_tokenizer(bos=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|channel|>", "<|message|>"]})
    tokens = [0, *tokenizer(text, add_special_tokens=False).input_ids]
    assert StopCriteria(tokenizer, [], []).generated_text(request, tokens).text == "finalx = 1"
    tokenizer.add_special_tokens({"additional_special_tokens": [*HARMONY]})
    assert StopCriteria(tokenizer, [], []).generated_text(request, tokens).text == text


def chosen(shares: list[float], number: float, temperature: float = 1.0, top_p: float = 1.0) -> int:
    logits = torch.tensor([[math.log(share) for share in shares]])
    return int(sample(logits, temperature, top_p, [number]))


def test_a_random_number_falls_into_the_probability_of_its_token() -> None:
    # Shares 0.2, 0.5, 0.3 reach 0.2, 0.7, 1.0 in the order of the ids.
    assert [chosen([0.2, 0.5, 0.3], number) for number in (0.0, 0.19, 0.21, 0.69, 0.71, 0.999)] == [0, 0, 1, 1, 2, 2]


def test_the_nucleus_leaves_out_unlikely_tokens_and_renormalizes() -> None:
    # 0.5 and 0.3 make up 0.75 together; of 0.8 the number 0.3 / 0.8 = 0.375 is the boundary.
    assert [chosen([0.2, 0.3, 0.5], number, top_p=0.75) for number in (0.0, 0.374, 0.376, 0.999)] == [1, 1, 2, 2]
    # The likeliest token is always there, and tokens of equal share come together.
    assert {chosen([0.2, 0.3, 0.5], number / 10, top_p=0.01) for number in range(10)} == {2}
    assert {chosen([0.25, 0.25, 0.5], number / 10, top_p=0.6) for number in range(10)} == {0, 1, 2}


def test_temperature_sharpens() -> None:
    # Squared and shared again: 0.2 and 0.8 become 1/17 and 16/17.
    assert [chosen([0.2, 0.8], number, temperature=0.5) for number in (0.058, 0.06)] == [0, 1]


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.95])
def test_the_nucleus_is_that_of_transformers(top_p: float) -> None:
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(1))
    kept = TopPLogitsWarper(top_p)(torch.zeros(20, 1), logits).isfinite()
    drawn = torch.stack([sample(logits, 1.0, top_p, [number / 500] * 20) for number in range(500)])  # [500, 20]
    for row in range(20):
        assert set(drawn[:, row].tolist()) <= set(kept[row].nonzero()[:, 0].tolist())
    assert len(set(drawn[:, 0].tolist())) > 1


def test_tokens_are_as_frequent_as_their_probabilities() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().repeat(20_000, 1)
    tokens = sample(logits, 1.0, 1.0, [uniform("a stream", index) for index in range(20_000)])
    for token, share in enumerate((0.1, 0.2, 0.3, 0.4)):
        # Four standard deviations of a share of 20,000 draws.
        assert abs((tokens == token).float().mean() - share) < 4 * math.sqrt(share * (1 - share) / 20_000)


def test_rounding_of_the_logits_moves_no_more_than_the_boundaries() -> None:
    """Two tokens of nearly equal probability must not be exchanged."""
    numbers = [(2 * number + 1) / 2000 for number in range(1000)]
    logits = torch.tensor([[0.0, 1e-7, 0.0]]).repeat(1000, 1)
    assert torch.equal(sample(logits, 1.0, 0.99, numbers), sample(logits.flip(1), 1.0, 0.99, numbers))


def test_each_stream_has_its_own_random_numbers() -> None:
    drawn = {uniform(stream, index) for stream in ("42/a/0", "42/a/1", "43/a/0") for index in range(100)}
    assert len(drawn) == 300
    assert all(0 <= number < 1 for number in drawn)
    assert stream_seed("42/a/0") != stream_seed("42/a/1")
