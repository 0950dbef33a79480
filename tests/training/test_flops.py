"""What a step is in operations: counted from the shapes, checked against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, MixtralConfig

from codetune.training.flops import Arithmetic, peak_operations
from codetune.training.loss import plain_losses
from tests.model.builders import ARCHITECTURES, tiny_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_operations_are_those_that_torch_counts(architecture: str, method: str) -> None:
    model = tiny_model(architecture, 100).train()
    if method == "lora":
        model.requires_grad_(False)
        model.get_input_embeddings().weight.requires_grad_(True)  # so that the gradient goes all the way
        if model.config.tie_word_embeddings:
            pytest.skip("its output layer would be trained as well")
    tokens = 60
    arithmetic = Arithmetic.of(model, method)
    assert arithmetic is not None
    ids = torch.arange(tokens)[None]
    batch = {"inputs": {"input_ids": ids}, "positions": torch.arange(tokens), "targets": ids[0]}
    with FlopCounterMode(display=False) as counter:
        plain_losses(model, batch).sum().backward()
    # torch counts attention on the CPU as a square, of which causal attention needs half; ours leaves the other out.
    found = arithmetic.operations(tokens, tokens * tokens, tokens)
    attention = arithmetic.operations(tokens, tokens * tokens, tokens) - arithmetic.operations(tokens, 0, tokens)
    linear = sum(count for name, count in counter.get_flop_counts()["Global"].items() if "attention" not in str(name))
    assert found - attention == pytest.approx(linear, rel=0.05)
    assert attention == 3 * 2 * tokens * tokens * 64 * 2


def test_the_output_layer_counts_for_learned_tokens_alone() -> None:
    arithmetic = Arithmetic.of(tiny_model("llama", 1000), "full")
    assert arithmetic is not None
    assert arithmetic.head == 64 * 1000
    more = arithmetic.operations(50, 2500, 20) - arithmetic.operations(50, 2500, 10)
    assert more == 3 * 2 * 10 * arithmetic.head


def test_a_mixture_of_experts_is_not_counted() -> None:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=8,
    )  # fmt: skip
    assert Arithmetic.of(AutoModelForCausalLM.from_config(config), "full") is None


@pytest.mark.parametrize(
    ("card", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA RTX A4000", None),
        ("Some other card", None),
    ],
)
def test_a_card_is_known_by_its_name(card: str, peak: float | None) -> None:
    assert peak_operations("bfloat16", card) == peak
    assert peak_operations("float32", card) is None
