"""Likelihoods against float64 arithmetic, and their bits against themselves in other batches."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MambaConfig, PreTrainedModel

from codetune.data.packing import next_fit
from codetune.data.tokens import Span
from codetune.errors import ModelError
from codetune.model.attention import SEGMENTED, VARLEN, AttentionSpec
from codetune.model.likelihood import (
    MAX_TOKENS_PER_PASS,
    CausalScorer,
    bucket,
    padded_passes,
    set_scoring_attention,
    tokens_that_fit,
)
from codetune.model.lm_head import lm_head
from tests.model.builders import ARCHITECTURES, CHANGED_LOGITS, documented_varlen_attn, tiny_model

VOCABULARY = 320
BUDGET = 4096
LAYOUTS = ("padded", "together", SEGMENTED, VARLEN)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def random_spans(count: int, longest: int, seed: int) -> list[Span]:
    dice = random.Random(seed)
    lengths = [dice.randint(2, longest) for _ in range(count)]
    return [
        Span(tuple(dice.randrange(VOCABULARY) for _ in range(length)), dice.randint(1, length - 1))
        for length in lengths
    ]


def reference_nll(model: PreTrainedModel, spans: Sequence[Span]) -> list[float]:
    """One span at a time, all logits, float64."""
    exact = copy.deepcopy(model).double()
    return [_reference_nll(exact, span) for span in spans]


@torch.inference_mode()
def _reference_nll(exact: PreTrainedModel, span: Span) -> float:
    logits = exact(torch.tensor([span.tokens]), use_cache=False).logits[0]
    log_probabilities = torch.log_softmax(logits, dim=-1)
    return -math.fsum(
        float(log_probabilities[index - 1, span.tokens[index]]) for index in range(span.start, len(span.tokens))
    ) / (len(span.tokens) - span.start)


def scorer_with(layout: str, model: PreTrainedModel, budget: int = BUDGET) -> CausalScorer:
    """A scorer that lays its spans as on a CPU, as on a GPU without kernels (padded, the head on all at once), or end
    to end through an attention for flat rows."""
    if layout not in ("padded", "together"):
        model.set_attn_implementation(layout)
    scorer = CausalScorer(model, budget)
    scorer._packed = layout not in ("padded", "together")
    scorer._span_by_span = layout == "padded"
    return scorer


@pytest.fixture(autouse=True)
def varlen_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codetune.model.attention.varlen_attn", documented_varlen_attn)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_agrees_with_float64_arithmetic(architecture: str, layout: str, tied: bool) -> None:
    model = tiny_model(architecture, VOCABULARY, tied=tied)
    spans = random_spans(12, 150, seed=1)
    exact = reference_nll(model, spans)
    for value, expected in zip(scorer_with(layout, model, 700).nll(spans), exact, strict=True):
        assert value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("architecture", CHANGED_LOGITS)
def test_logits_that_are_changed_after_the_output_layer_are_changed_here_too(architecture: str) -> None:
    model = tiny_model(architecture, VOCABULARY, hidden=32)
    with torch.no_grad():
        lm_head(model).weight.mul_(20)  # so that a cap at 30 is felt
    spans = random_spans(12, 150, seed=2)
    exact = reference_nll(model, spans)
    assert CausalScorer(model, 700).nll(spans) == pytest.approx(exact, rel=1e-6)


def test_a_span_that_fills_the_window_is_not_padded_beyond_it() -> None:
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=40, n_embd=32, n_layer=1, n_head=2)  # learned positions
    model = AutoModelForCausalLM.from_config(config).eval()
    scorer = CausalScorer(model, BUDGET)
    assert scorer.window == 40
    spans = [Span(tuple(range(1, length + 1)), length // 2) for length in (40, 33, 39)]
    assert scorer.nll(spans) == pytest.approx(reference_nll(model, spans), rel=1e-6)


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_rotary_embeddings_that_depend_on_the_length_of_a_pass_use_that_of_each_span(rope: str) -> None:
    scaling: dict[str, Any] = {"rope_type": rope, "rope_theta": 10000.0, "factor": 4.0}
    if rope == "longrope":
        scaling |= {"short_factor": [1.0] * 8, "long_factor": [3.0] * 8, "original_max_position_embeddings": 64}
    kinds = {"num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 32, "intermediate_size": 32}
    config = LlamaConfig(
        vocab_size=VOCABULARY, num_hidden_layers=1, max_position_embeddings=64, rope_parameters=scaling, **kinds
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_(0, 0.3)
    scorer = CausalScorer(model, BUDGET)
    spans = [Span(tuple(n % 300 for n in range(length)), 1) for length in (60, 64, 128, 70, 64)]
    exact = [reference_nll(model, [span])[0] for span in spans]
    assert scorer.nll(spans) == pytest.approx(exact, rel=1e-5)
    assert [scorer.nll([span])[0] for span in reversed(spans)] == pytest.approx(exact[::-1], rel=1e-5)


def test_a_network_without_attention_or_with_an_odd_configuration_is_scored() -> None:
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, state_size=4)
    model = AutoModelForCausalLM.from_config(config).eval()
    set_scoring_attention(model, "auto")
    spans = random_spans(4, 60, seed=3)
    assert CausalScorer(model, 700).nll(spans) == pytest.approx(reference_nll(model, spans), rel=1e-5)


@pytest.fixture(scope="module")
def ranked_spans() -> tuple[list[Span], list[float]]:
    """Spans and their likelihoods under the llama."""
    spans = random_spans(200, 150, seed=7)
    return spans, reference_nll(tiny_model("llama", VOCABULARY), spans)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_bfloat16_spans_keep_their_rank(layout: str, ranked_spans: tuple[list[Span], list[float]]) -> None:
    model = tiny_model("llama", VOCABULARY)
    spans, exact = ranked_spans
    rounded = scorer_with(layout, model.to(torch.bfloat16)).nll(spans)
    assert rounded != pytest.approx(exact, rel=1e-5)
    assert spearmanr(exact, rounded).statistic > 0.99


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(1, 700))
def test_every_span_is_in_one_pass_and_a_pass_keeps_to_the_budget(lengths: list[int], budget: int) -> None:
    def padded(lengths: list[int], budget: int) -> list[list[int]]:
        return padded_passes(lengths, budget, bucket)

    for plan, room in ((next_fit, lambda length: length), (padded, bucket)):
        passes = plan(lengths, budget)
        assert sorted(index for members in passes for index in members) == list(range(len(lengths)))
        for members in passes:
            assert sum(room(lengths[index]) for index in members) <= budget or len(members) == 1
    assert [index for members in next_fit(lengths, budget) for index in members] == list(range(len(lengths)))
    for members in padded(lengths, budget):
        assert len({bucket(lengths[index]) for index in members}) == 1


# A pass takes 1,000 bytes and 10 for every token: of 8,000,000 * 0.8 free bytes 639,900 tokens fit.
@pytest.mark.parametrize(
    ("free_bytes", "expected"),
    [(8_000_000, MAX_TOKENS_PER_PASS), (500_000, 39_900 // 1024 * 1024), (15_000, 2048)],
)
def test_the_tokens_that_fit_are_found_from_two_passes(free_bytes: int, expected: int) -> None:
    assert tokens_that_fit(lambda tokens: 1000 + 10 * tokens, free_bytes, 2048) == expected


def test_one_row_fits_where_four_do_not() -> None:
    def peak_bytes(tokens: int) -> int:
        if tokens > 2048:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tokens

    assert tokens_that_fit(peak_bytes, 10**9, 2048) == 2048


def test_on_a_cpu_the_attention_for_scoring_is_the_models_own() -> None:
    model = tiny_model("llama", VOCABULARY)
    before = model.config._attn_implementation
    set_scoring_attention(model, "auto")
    assert model.config._attn_implementation == before
    with pytest.raises(ModelError, match="the model is on cpu"):
        set_scoring_attention(model, "varlen")


@pytest.mark.parametrize("works", [True, False])
def test_a_kernel_is_kept_only_if_it_isolates_spans(works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, **more: Any) -> torch.Tensor:
        whole = torch.tensor([0, len(query)], dtype=torch.int32)
        return documented_varlen_attn(query, key, value, whole, whole, len(query), len(query), **more)

    if not works:
        monkeypatch.setattr("codetune.model.attention.varlen_attn", leaks)
    gpu = AttentionSpec("cuda", (9, 0), "bfloat16", 128, plain=True)
    monkeypatch.setattr(AttentionSpec, "of", lambda *_: gpu)
    model = tiny_model("llama", VOCABULARY)
    before = model.config._attn_implementation
    set_scoring_attention(model, "auto")
    assert model.config._attn_implementation == (VARLEN if works else before)
    if not works:
        with pytest.raises(ModelError, match="see each other"):
            set_scoring_attention(model, "varlen")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_spans_bits_do_not_depend_on_its_batch(architecture: str, dtype: torch.dtype) -> None:
    model = tiny_model(architecture, VOCABULARY).to(dtype)
    spans = random_spans(80, 300, seed=2)
    scorer = CausalScorer(model, BUDGET)
    alone = {span: scorer.nll([span])[0] for span in spans}
    for size, seed in ((3, 0), (17, 1), (80, 2)):
        random.Random(seed).shuffle(spans)
        for batch in (spans[first : first + size] for first in range(0, len(spans), size)):
            assert scorer.nll(batch) == [alone[span] for span in batch]


def test_only_the_predicted_tokens_count() -> None:
    model = tiny_model("llama", VOCABULARY)
    (tail,) = CausalScorer(model, BUDGET).nll([Span((5, 6, 7, 8), 3)])
    with torch.inference_mode():
        shares = torch.log_softmax(model(torch.tensor([[5, 6, 7, 8]])).logits[0, 2], dim=-1)
    assert tail == pytest.approx(-float(shares[8]), rel=1e-6)


def test_logits_come_in_chunks_without_changing_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", VOCABULARY)
    spans = random_spans(6, 200, seed=3)
    whole = CausalScorer(model, BUDGET).nll(spans)
    monkeypatch.setattr("codetune.model.likelihood.CHUNK_LOGITS", 7 * VOCABULARY)
    assert CausalScorer(model, BUDGET).nll(spans) == pytest.approx(whole, rel=1e-6)


def test_a_span_is_padded_by_its_own_length_alone() -> None:
    assert [bucket(length) for length in (1, 15, 16, 31, 32)] == [16, 16, 32, 32, 48]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pass_that_does_not_fit_is_halved_and_a_span_that_never_fits_has_no_value(layout: str) -> None:
    model = tiny_model("llama", VOCABULARY)
    spans = [*random_spans(5, 30, seed=4), *random_spans(3, 30, seed=5)]
    scorer = scorer_with(layout, model)
    whole = scorer.nll(spans)
    hopeless = spans[2].tokens

    def refuse(module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, torch.Tensor]) -> None:
        ids = kwargs["input_ids"]
        text = " ".join(map(str, ids.flatten().tolist()))
        if len(ids) > 2 or len(kwargs.get("segments", ())) > 2 or " ".join(map(str, hopeless)) in text:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.base_model.register_forward_pre_hook(refuse, with_kwargs=True)
    found = scorer.nll(spans)
    assert found[2] is None
    assert [*found[:2], *found[3:]] == pytest.approx([*whole[:2], *whole[3:]], rel=1e-6)
    if layout == "padded":
        assert found == [*whole[:2], None, *whole[3:]]


def test_other_errors_of_the_network_are_not_taken_for_a_full_memory() -> None:
    scorer = CausalScorer(tiny_model("llama", VOCABULARY), BUDGET)
    with pytest.raises(IndexError):
        scorer.nll([Span((1, VOCABULARY + 1), 1)])


def test_nan_weights_give_a_nan_likelihood() -> None:
    model = tiny_model("llama", VOCABULARY)
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = float("nan")
    (value,) = CausalScorer(model, BUDGET).nll([Span((1, 2, 3), 1)])
    assert value is not None
    assert math.isnan(value)


def test_the_window_is_the_models() -> None:
    assert CausalScorer(tiny_model("llama", VOCABULARY), BUDGET).window == 4096
