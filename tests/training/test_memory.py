"""The estimate against what torch keeps for the backward pass, and its parts by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from codetune.project.sections import Method, Optimizer, Training
from codetune.training.memory import (
    LargestMicroBatch,
    ModelShape,
    TrainingSetup,
    device_memory,
    nearest_fit,
    optimizer_bytes,
    shape_of,
)
from codetune.training.parallelism import ParallelStrategy

LLAMA_7B = ModelShape(
    weights=6_738_415_616,
    linear_weights=6_476_005_376,
    matrix_edges=32 * (4 * 8192 + 3 * 15104) + 2 * 36096,
    adapter_edges=32 * (4 * 8192 + 3 * 15104),
    layers=32,
    width=4096,
    query_width=4096,
    key_width=4096,
    mlp_width=11008,
    vocabulary=32000,
)
BATCH = LargestMicroBatch(8192, 5000)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_activations_are_those_that_torch_keeps(checkpointing: bool, dtype: str, tmp_path: Path) -> None:
    """Of four layers more; weights that autocast casts are counted with the weights."""
    kept, estimated = [], []
    for layers in (2, 6):
        config = LlamaConfig(**SMALL, num_hidden_layers=layers)
        config.save_pretrained(tmp_path)
        shape, batch = shape_of(tmp_path), LargestMicroBatch(512, 0)
        setup = a_setup(Training(gradient_checkpointing=checkpointing), precision=dtype)  # type: ignore[arg-type]
        estimated.append(device_memory(shape, setup, batch).activations)
        copies = 2 * shape.linear_weights if dtype == "bfloat16" and not checkpointing else 0
        kept.append(_kept_bytes(config, 512, dtype, checkpointing) - copies)
    assert estimated[1] - estimated[0] == pytest.approx(kept[1] - kept[0], rel=0.03)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("adamw_torch_fused", 8 * LLAMA_7B.weights),
        ("adamw_8bit", 2.03125 * (LLAMA_7B.weights - 32000 * 4096) + 8 * 32000 * 4096),
        ("muon", 4 * LLAMA_7B.linear_weights + 8 * (LLAMA_7B.weights - LLAMA_7B.linear_weights)),
        ("adafactor", 4 * LLAMA_7B.matrix_edges),
    ],
)
def test_the_state_of_each_optimizer_is_counted(optimizer: Optimizer, expected: float) -> None:
    settings = Training(optimizer=optimizer)
    assert optimizer_bytes(LLAMA_7B, settings) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("optimizer", "strategy"), [("adamw_torch_fused", "fsdp"), ("muon", "fsdp"), ("adamw_8bit", "ddp")]
)
def test_the_nearest_fit_does_not_divide_what_the_optimizer_needs_whole(optimizer: Optimizer, strategy: str) -> None:
    setup = replace(a_setup(Training(optimizer=optimizer)), strategy="ddp", processes=8)
    found = nearest_fit(LLAMA_7B, setup, BATCH, 2048, 40 * 10**9)
    assert found is not None
    assert found[0].strategy == strategy


def test_the_parts_of_a_full_training_by_hand() -> None:
    """16 bytes a weight, the 16-bit copies of autocast, and 2^25 logits in 12 bytes each."""
    found = device_memory(LLAMA_7B, a_setup(Training()), BATCH)
    weights = LLAMA_7B.weights
    assert (found.weights, found.gradients, found.optimizer) == (6 * weights, 4 * weights, 8 * weights)
    assert found.logits == (2**25 // 32000) * 32000 * 12
    layer = 2 * 8 * 4096 + 10 * 4096 + 4 * (4096 + 4096) + 8 * 11008
    assert found.activations == 8192 * (4 * 4096 * 32 + layer)
    assert found.total == sum([found.weights, found.gradients, found.optimizer, found.activations, found.logits])


@pytest.mark.parametrize(
    ("strategy", "divided"),
    [
        ("ddp", ()),
        ("zero1", ("optimizer",)),
        ("zero2", ("optimizer", "gradients")),
        ("zero3", ("optimizer", "gradients", "weights")),
        ("fsdp", ("optimizer", "gradients", "weights")),
    ],
)
def test_a_strategy_divides_its_parts_among_the_processes(strategy: ParallelStrategy, divided: tuple[str, ...]) -> None:
    few, many = (device_memory(LLAMA_7B, a_setup(Training(), strategy, count), BATCH) for count in (2, 8))
    assert {name for name in PARTS if getattr(many, name) < getattr(few, name)} == set(divided)


@pytest.mark.parametrize(("method", "gigabytes"), [("full", 121), ("lora", 14), ("qlora", 4)])
def test_adapters_need_little_beside_the_weights(method: Method, gigabytes: int) -> None:
    found = device_memory(LLAMA_7B, a_setup(Training(method=method)), BATCH)
    assert (found.weights + found.gradients + found.optimizer) / 1e9 == pytest.approx(gigabytes, abs=0.7)


def test_the_nearest_fit_changes_speed_before_it_changes_the_result() -> None:
    def nearest(gigabytes: int, processes: int = 1) -> TrainingSetup | None:
        strategy: ParallelStrategy = "alone" if processes == 1 else "ddp"
        settings = Training(per_device_batch_size=16, gradient_checkpointing=False)
        setup = a_setup(settings, strategy, processes)
        found = nearest_fit(LLAMA_7B, setup, BATCH, 2048, gigabytes * 10**9)
        assert found is None or found[1].fits(gigabytes * 10**9)
        return found[0] if found else None

    assert nearest(400) == a_setup(Training(per_device_batch_size=16, gradient_checkpointing=False))
    lighter = nearest(146)
    assert lighter is not None
    assert (lighter.settings.method, lighter.settings.gradient_checkpointing) == ("full", True)
    shared = nearest(40, processes=8)
    assert shared is not None
    assert (shared.strategy, shared.settings.method) == ("fsdp", "full")
    adapters = nearest(24)
    assert adapters is not None
    assert adapters.settings.method == "lora"
    assert adapters.settings.per_device_batch_size * adapters.settings.gradient_accumulation_steps == 64
    assert nearest(3) is None


PARTS = ("weights", "gradients", "optimizer", "activations", "logits")
SMALL = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
}


def a_setup(
    settings: Training, strategy: ParallelStrategy = "alone", processes: int = 1, precision: str = "bfloat16"
) -> TrainingSetup:
    return TrainingSetup(settings, precision, strategy, processes, "none")  # type: ignore[arg-type]


def _kept_bytes(config: LlamaConfig, tokens: int, dtype: str, checkpointing: bool) -> int:
    """The bytes of the tensors that the forward pass of the body keeps, without weights."""
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    if checkpointing:
        network.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    own = {weights.untyped_storage().data_ptr() for weights in network.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autocast("cpu", getattr(torch, dtype), enabled=dtype != "float32"),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        network.model(torch.arange(tokens)[None] % 300, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in own)
