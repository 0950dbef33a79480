"""Likelihoods against a float64 oracle, and their bits against themselves in other batches."""

from __future__ import annotations

import copy
import math
import random

import pytest
import torch
from transformers import Gemma2Config, PreTrainedModel
from transformers.models.gemma2 import Gemma2ForCausalLM

from codetune.data.tokens import Span
from codetune.errors import ModelError
from codetune.model.likelihood import CausalScorer, bucket
from tests.model.builders import ARCHITECTURES, tiny_model

VOCABULARY = 320


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


def oracle(model: PreTrainedModel, span: Span) -> float:
    """One row at a time, all logits, float64: slow and plain."""
    exact = copy.deepcopy(model).double()
    with torch.inference_mode():
        logits = exact(torch.tensor([span.tokens]), use_cache=False).logits[0]
    shares = torch.log_softmax(logits, dim=-1)
    return -math.fsum(float(shares[i - 1, span.tokens[i]]) for i in range(span.start, len(span.tokens))) / (
        len(span.tokens) - span.start
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_agrees_with_float64_arithmetic(architecture: str) -> None:
    model = tiny_model(architecture, VOCABULARY)
    spans = random_spans(24, 150, seed=1)
    for span, value in zip(spans, CausalScorer(model).nll(spans), strict=True):
        assert value == pytest.approx(oracle(model, span), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_spans_bits_do_not_depend_on_its_batch(architecture: str, dtype: torch.dtype) -> None:
    model = tiny_model(architecture, VOCABULARY).to(dtype)
    spans = random_spans(80, 300, seed=2)
    scorer = CausalScorer(model)
    alone = {span: scorer.nll([span])[0] for span in spans}
    for size, seed in ((3, 0), (17, 1), (80, 2)):
        random.Random(seed).shuffle(spans)
        for batch in (spans[first : first + size] for first in range(0, len(spans), size)):
            assert scorer.nll(batch) == [alone[span] for span in batch]


def test_only_the_predicted_tokens_count() -> None:
    model = tiny_model("llama", VOCABULARY)
    (tail,) = CausalScorer(model).nll([Span((5, 6, 7, 8), 3)])
    with torch.inference_mode():
        shares = torch.log_softmax(model(torch.tensor([[5, 6, 7, 8]])).logits[0, 2], dim=-1)
    assert tail == pytest.approx(-float(shares[8]), rel=1e-6)


def test_logits_come_in_chunks_without_changing_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", VOCABULARY)
    spans = random_spans(6, 200, seed=3)
    whole = CausalScorer(model).nll(spans)
    monkeypatch.setattr("codetune.model.likelihood.CHUNK_LOGITS", 7 * VOCABULARY)
    assert CausalScorer(model).nll(spans) == pytest.approx(whole, rel=1e-6)


def test_a_span_is_padded_by_its_own_length_alone() -> None:
    assert [bucket(length) for length in (1, 31, 32, 63, 64)] == [32, 32, 64, 64, 96]


def test_a_batch_that_does_not_fit_is_halved_and_a_span_that_never_fits_has_no_value() -> None:
    model = tiny_model("llama", VOCABULARY)
    spans = [*random_spans(5, 30, seed=4), *random_spans(3, 30, seed=5)]
    whole = CausalScorer(model).nll(spans)
    hopeless = spans[2].tokens

    def refuse(module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, torch.Tensor]) -> None:
        ids = kwargs["input_ids"]
        if len(ids) > 2 or any(row[: len(hopeless)] == list(hopeless) for row in ids.tolist()):
            raise torch.OutOfMemoryError("CUDA out of memory")

    scorer = CausalScorer(model)
    model.base_model.register_forward_pre_hook(refuse, with_kwargs=True)
    assert scorer.nll(spans) == [*whole[:2], None, *whole[3:]]


def test_other_failures_of_the_network_are_not_taken_for_a_full_memory() -> None:
    scorer = CausalScorer(tiny_model("llama", VOCABULARY))
    with pytest.raises(IndexError):
        scorer.nll([Span((1, VOCABULARY + 1), 1)])


def test_broken_weights_give_nan_and_no_number() -> None:
    model = tiny_model("llama", VOCABULARY)
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = float("nan")
    (value,) = CausalScorer(model).nll([Span((1, 2, 3), 1)])
    assert value is not None
    assert math.isnan(value)


def test_an_architecture_that_caps_its_logits_is_refused() -> None:
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=0.1,
        attn_logit_softcapping=None,
        attn_implementation="eager",
    )
    with pytest.raises(ModelError, match="gemma2 changes its logits"):
        CausalScorer(Gemma2ForCausalLM(config).eval())


def test_the_window_is_the_models() -> None:
    assert CausalScorer(tiny_model("llama", VOCABULARY)).window == 4096
