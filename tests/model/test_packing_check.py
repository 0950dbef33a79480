"""The checks of packed samples: attention that leaks, offsets and positions that matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    BartConfig,
    BloomConfig,
    Gemma2Config,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from codetune.errors import ModelError
from codetune.model.attention import SEGMENTED, VARLEN
from codetune.model.packing_check import require_isolation
from tests.model.builders import model_with

BACKENDS = [SEGMENTED, VARLEN, "sdpa", "eager"]
pytestmark = pytest.mark.usefixtures("varlen_on_a_cpu")


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_that_isolates_passes(backend: str) -> None:
    model = model_with("llama", backend).train()
    require_isolation(model)
    assert model.training


def test_attention_that_leaks_is_an_error_that_names_one_that_isolates() -> None:
    AttentionInterface.register("leaks", sdpa_attention_forward)  # no mask function is registered with it
    model = model_with("llama", "leaks")
    with pytest.raises(ModelError, match=r"see each other in LlamaForCausalLM.*'leaks'.*model.attention: auto"):
        require_isolation(model)


def test_attention_to_the_next_sample_is_an_error() -> None:
    def sees_all(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> Any:
        groups = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
        length = query.shape[2]
        # Only what is behind oneself.
        mask = torch.triu(torch.ones(length, length, dtype=torch.bool))
        return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2), None

    AttentionInterface.register("looks_ahead", sees_all)
    with pytest.raises(ModelError, match="see each other"):
        require_isolation(model_with("llama", "looks_ahead"))


def test_a_model_whose_attention_needs_more_is_refused() -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8,
        num_key_value_heads=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    model.set_attn_implementation(SEGMENTED)
    with pytest.raises(ModelError, match=r"needs softcap.*Set train.pad_mode: dynamic_pad, or model.attention: eager"):
        require_isolation(model)


SHAPE: dict[str, Any] = {"vocab_size": 50, "max_position_embeddings": 64}
NO_DROPOUT: dict[str, Any] = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}


def spread(config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    network: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weights in network.parameters():
            if weights.dim() == 2:
                weights.normal_(0, 0.08)
    return network


def test_positions_that_count_along_the_row_are_found() -> None:
    bart = {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
    model = spread(BartConfig(**SHAPE, **bart, **NO_DROPOUT, is_decoder=True, is_encoder_decoder=False))
    model.set_attn_implementation(SEGMENTED)
    with pytest.raises(ModelError, match=r"depend on their offset in the row.*Set train.pad_mode: dynamic_pad\.$"):
        require_isolation(model)


def test_positions_that_do_not_start_at_0_are_found() -> None:
    roberta = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = spread(RobertaConfig(**SHAPE, **roberta, is_decoder=True))
    model.set_attn_implementation(SEGMENTED)
    with pytest.raises(ModelError, match=r"counts positions otherwise than from 0.*Set train.pad_mode: dynamic_pad\.$"):
        require_isolation(model)


def test_no_attention_is_advised_if_none_isolates() -> None:
    model = spread(BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(ModelError, match=r"Set train.pad_mode: dynamic_pad\.$"):
        require_isolation(model)


def test_dropout_in_the_network_is_not_taken_for_a_leak() -> None:
    model = model_with("llama", SEGMENTED).train()
    for layer in model.model.layers:
        layer.mlp = torch.nn.Sequential(layer.mlp, torch.nn.Dropout(0.5))
    require_isolation(model)
    assert all(module.training for module in model.modules())
