"""Completions of recurrent networks do not depend on batches, though their prompts cannot be padded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    FalconMambaConfig,
    GenerationConfig,
    JambaConfig,
    Lfm2Config,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    RecurrentGemmaConfig,
    RwkvConfig,
    Zamba2Config,
    ZambaConfig,
)

from codetune.model.batch_generator import is_recurrent
from tests.model.test_batch_generator import EOS, VOCABULARY, alone_without_cache, completed, prompts
from tests.model.test_batch_generator import tokenizer as tokenizer

SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 4}
HEADS: dict[str, Any] = {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
SCAN: dict[str, Any] = {"state_size": 8}
ARCHITECTURES: dict[str, PreTrainedConfig] = {
    "mamba": MambaConfig(**SIZES, **SCAN),
    "mamba2": Mamba2Config(**SIZES, **SCAN, num_heads=4, head_dim=16, n_groups=2, chunk_size=8),
    "falcon_mamba": FalconMambaConfig(**SIZES, **SCAN),
    "recurrent_gemma": RecurrentGemmaConfig(**SIZES, **HEADS, lru_width=32, attention_window_size=16),
    "jamba": JambaConfig(**SIZES, **HEADS, mamba_d_state=8, attn_layer_period=2, attn_layer_offset=1, num_experts=2),
    "zamba": ZambaConfig(
        **SIZES | {"num_hidden_layers": 6},
        **HEADS,
        n_mamba_heads=2,
        mamba_d_state=8,
        layers_block_type=["mamba", "mamba", "hybrid"] * 2,
    ),
    "zamba2": Zamba2Config(
        **SIZES,
        **HEADS,
        mamba_d_state=8,
        n_mamba_heads=4,
        mamba_headdim=16,
        mamba_ngroups=2,
        chunk_size=8,
        num_mem_blocks=1,
        layers_block_type=["mamba", "hybrid"] * 2,
    ),
    "bamba": BambaConfig(
        **SIZES,
        **HEADS,
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_d_state=8,
        mamba_chunk_size=8,
        attn_layer_indices=[1],
    ),
    "lfm2": Lfm2Config(**SIZES, **HEADS, full_attn_idxs=[1, 3]),  # convolutions, and not marked as stateful
    "rwkv": RwkvConfig(**SIZES, attention_hidden_size=32, context_length=128),
}


def network(config: PreTrainedConfig) -> Any:
    torch.manual_seed(7)
    config.tie_word_embeddings = False  # else many repeat the last token, whatever their state
    config.bos_token_id, config.eos_token_id, config.pad_token_id = None, EOS, None
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() == 2:
                weights.normal_(0, 0.3)  # far from uniform: no ties
    return model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_neither_batch_nor_order_changes_a_recurrent_completion(
    architecture: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = network(ARCHITECTURES[architecture])
    assert is_recurrent(model)
    asked = [*prompts(6), *([*prompts(6)[0][:-1], token] for token in (1, 2, 3))]  # four of one length
    together = completed(model, tokenizer, asked, 12, ("ab",))
    new = [alone_without_cache(model, prompt, 12, {EOS}) for prompt in asked]
    before = [tokenizer.decode(prompt) for prompt in asked]
    assert together == [
        tokenizer.decode(prompt + tokens, skip_special_tokens=True)[len(text) :]
        for prompt, tokens, text in zip(asked, new, before, strict=True)
    ]
    assert len(set(together)) > 6
    assert completed(model, tokenizer, asked, 12, ("ab",), batch_size=3) == together
    assert completed(model, tokenizer, asked[::-1], 12, ("ab",)) == together[::-1]


def test_each_recurrent_sample_has_its_own_random_numbers(tokenizer: PreTrainedTokenizerFast) -> None:
    model, asked = network(ARCHITECTURES["mamba"]), [[5, 6, 7], [7, 6, 5], [9]]
    together = completed(model, tokenizer, asked, 12, temperature=1.0)
    assert len(set(together)) == 3
    assert [completed(model, tokenizer, [prompt], 12, temperature=1.0)[0] for prompt in asked] == together


def test_rows_that_end_early_get_no_more_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    model, asked = network(ARCHITECTURES["mamba"]), [[5, 6, 7], [7, 6, 5]]
    whole = completed(model, tokenizer, asked, 24)
    stop = whole[0][2:4]
    assert completed(model, tokenizer, asked, 24, (stop,)) == [text.partition(stop)[0] for text in whole]


def test_the_models_own_generation_configuration_is_replaced_and_restored(tokenizer: PreTrainedTokenizerFast) -> None:
    model, asked = network(ARCHITECTURES["mamba"]), prompts(4)
    plain = completed(model, tokenizer, asked, 12)
    model.generation_config = own = GenerationConfig(repetition_penalty=9.0, do_sample=True, eos_token_id=EOS)
    assert completed(model, tokenizer, asked, 12) == plain
    assert model.generation_config is own


def test_a_network_with_attention_only_is_not_recurrent() -> None:
    assert not is_recurrent(network(LlamaConfig(**SIZES, **HEADS)))
