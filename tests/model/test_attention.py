"""Flat rows: each sample sees itself alone, and an attention that leaks is found out before training."""

from __future__ import annotations

import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM, Gemma2Config, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from codetune.errors import ModelError
from codetune.model.attention import SEGMENTED, attention_for, flat_row, require_isolation
from tests.model.builders import ARCHITECTURES, tiny_model

SAMPLES = [torch.arange(3, 14), torch.arange(20, 25), torch.tensor([7]), torch.arange(40, 60)]
BACKENDS = [SEGMENTED, "sdpa", "eager"]


def model_with(architecture: str, attention: str) -> PreTrainedModel:
    model = tiny_model(architecture, 100)
    model.set_attn_implementation(attention)
    return model


def logits(model: PreTrainedModel, samples: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        flat = model(**flat_row(samples), use_cache=False).logits[0]
    return list(flat.split([len(sample) for sample in samples]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("attention", BACKENDS)
def test_a_sample_in_a_flat_row_is_as_it_is_alone(architecture: str, attention: str) -> None:
    model = model_with(architecture, attention)
    for sample, packed in zip(SAMPLES, logits(model, SAMPLES), strict=True):
        with torch.no_grad():
            alone = tiny_model(architecture, 100)(sample[None], use_cache=False).logits[0]
        torch.testing.assert_close(packed, alone, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("attention", BACKENDS)
def test_changing_a_sample_changes_no_other(architecture: str, attention: str) -> None:
    model = model_with(architecture, attention)
    before = logits(model, SAMPLES)
    after = logits(model, [SAMPLES[0], SAMPLES[1] + 1, *SAMPLES[2:]])
    changed = [not torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    assert changed == [False, True, False, False]


def test_a_sliding_window_is_kept_within_a_sample() -> None:
    model = tiny_model("starcoder2", 100)
    model.config.sliding_window = 4
    model.set_attn_implementation("eager")
    with torch.no_grad():
        alone = model(SAMPLES[3][None], use_cache=False).logits[0]
        unlimited = tiny_model("starcoder2", 100)(SAMPLES[3][None], use_cache=False).logits[0]
    for layer in model.model.layers:
        layer.self_attn.sliding_window = 4
    model.set_attn_implementation(SEGMENTED)
    torch.testing.assert_close(logits(model, SAMPLES)[3], alone, rtol=1e-5, atol=2e-5)
    assert not torch.allclose(alone, unlimited, atol=1e-3)


@pytest.mark.parametrize("attention", BACKENDS)
def test_attention_that_isolates_is_let_pass(attention: str) -> None:
    model = model_with("llama", attention).train()
    require_isolation(model)
    assert model.training


def test_attention_that_leaks_is_an_error_that_names_one_that_does_not() -> None:
    AttentionInterface.register("leaks", sdpa_attention_forward)  # no mask function is registered with it
    model = model_with("llama", "leaks")
    with pytest.raises(ModelError, match=r"see each other in LlamaForCausalLM.*'leaks'.*model.attention: auto"):
        require_isolation(model)


def test_a_model_whose_attention_needs_more_is_refused() -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8,
        num_key_value_heads=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    model.set_attn_implementation(SEGMENTED)
    with pytest.raises(ModelError, match=r"needs softcap.*Set model.attention: eager"):
        require_isolation(model)


def test_rows_without_segments_are_refused() -> None:
    model = model_with("llama", SEGMENTED)
    with pytest.raises(ModelError, match="does not hand them on"):
        model(SAMPLES[0][None], use_cache=False)


def test_auto_is_segments_for_flat_rows_and_sdpa_for_padded_ones() -> None:
    chosen = {mode: attention_for("auto", mode) for mode in ("dynamic_pack", "dynamic_pad", "max_length")}
    assert chosen == {"dynamic_pack": SEGMENTED, "dynamic_pad": "sdpa", "max_length": "sdpa"}
    assert attention_for("eager", "dynamic_pack") == "eager"
