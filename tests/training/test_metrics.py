"""Lines of metrics: means since the last one, each step once. FLOPs of a step: counted from the shapes, checked against
torch's own counter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, MixtralConfig

from codetune.training.loss import plain_losses
from codetune.training.metrics import (
    FlopCounter,
    MetricAccumulator,
    StepMetrics,
    append_metrics,
    peak_flops_per_second,
    truncate_metrics,
)
from tests.model.builders import ARCHITECTURES, tiny_model

STEP = StepMetrics(
    loss=1.0, learning_rate=0.1, grad_norm=4.0, tokens=60, tokens_seen=80, samples=3, seconds=2.0, flops=30.0,
    peak_flops=40.0,
)  # fmt: skip
OTHER = StepMetrics(
    loss=2.0, learning_rate=0.3, grad_norm=2.0, tokens=40, tokens_seen=120, samples=5, seconds=3.0, flops=20.0,
    peak_flops=60.0,
)  # fmt: skip


def test_a_line_holds_means_since_the_last_one() -> None:
    accumulator = MetricAccumulator().plus(OTHER, None).after_line().plus(STEP, 700).plus(OTHER, 500)
    # tokens 100 of 200 seen, in 5 seconds
    assert accumulator.line(3, 0.5) == {
        "step": 3,
        "epoch": 0.5,
        "loss": 1.5,
        "learning_rate": 0.2,
        "grad_norm": 3.0,
        "tokens_per_second": 20.0,
        "samples_per_second": 1.6,
        "padding_rate": 0.5,
        "peak_memory_bytes": 700,
        "mfu": 0.5,  # 50 of 100
        "seconds": 5.0,
    }
    assert accumulator.since_start.steps == 3
    assert accumulator.last_loss == 2.0


def test_without_a_known_peak_there_is_no_share_of_it() -> None:
    unknown = replace(STEP, peak_flops=0.0)
    assert MetricAccumulator().plus(unknown, None).line(1, 0.1)["mfu"] is None


def test_sums_survive_a_checkpoint() -> None:
    accumulator = MetricAccumulator().plus(STEP, None).after_line().plus(OTHER, None)
    restored = MetricAccumulator.restored(json.loads(json.dumps(accumulator.state())))
    assert restored == accumulator


@pytest.mark.parametrize(("last_step", "kept"), [(0, []), (2, [1, 2]), (9, [1, 2, 3])])
def test_lines_behind_a_checkpoint_are_cut(tmp_path: Path, last_step: int, kept: list[int]) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_metrics(path, {"step": step})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # cut off by a crash
    truncate_metrics(path, last_step)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == kept


def test_sums_of_a_checkpoint_of_an_earlier_version_are_read() -> None:
    accumulator = MetricAccumulator().plus(STEP, None)
    state = json.loads(json.dumps(accumulator.state()))
    for sums in (state["since_line"], state["since_start"]):
        sums["operations"], sums["possible_operations"] = sums.pop("flops"), sums.pop("peak_flops")
    assert MetricAccumulator.restored(state) == accumulator


def test_nothing_to_cut_is_nothing_done(tmp_path: Path) -> None:
    truncate_metrics(tmp_path / "metrics.jsonl", 3)
    assert not list(tmp_path.iterdir())


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
    flop_counter = FlopCounter.of(model, method)
    assert flop_counter is not None
    ids = torch.arange(tokens)[None]
    batch = {"inputs": {"input_ids": ids}, "positions": torch.arange(tokens), "targets": ids[0]}
    with FlopCounterMode(display=False) as counter:
        plain_losses(model, batch).sum().backward()
    # torch counts attention on the CPU as a square, of which causal attention needs half; ours leaves the other out.
    found = flop_counter.flops(tokens, tokens * tokens, tokens)
    attention = flop_counter.flops(tokens, tokens * tokens, tokens) - flop_counter.flops(tokens, 0, tokens)
    linear = sum(count for name, count in counter.get_flop_counts()["Global"].items() if "attention" not in str(name))
    assert found - attention == pytest.approx(linear, rel=0.05)
    assert attention == 3 * 2 * tokens * tokens * 64 * 2


def test_the_output_layer_counts_for_learned_tokens_alone() -> None:
    flop_counter = FlopCounter.of(tiny_model("llama", 1000), "full")
    assert flop_counter is not None
    assert flop_counter.head == 64 * 1000
    more = flop_counter.flops(50, 2500, 20) - flop_counter.flops(50, 2500, 10)
    assert more == 3 * 2 * 10 * flop_counter.head


def test_a_mixture_of_experts_is_not_counted() -> None:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=8,
    )  # fmt: skip
    assert FlopCounter.of(AutoModelForCausalLM.from_config(config), "full") is None


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
    assert peak_flops_per_second("bfloat16", card) == peak
    assert peak_flops_per_second("float32", card) is None
