"""Optimizers and schedules: what each updates and by how much, and trainings with them that are continued."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from codetune.errors import ProjectError
from codetune.model.adapters import add_adapters, base_network
from codetune.project.sections import LoraSettings, Project, Training
from codetune.training.optimizers import (
    MuonWithAdamW,
    muon_with_adamw,
    optimizer_arguments,
    require_eight_bit_step,
    require_optimizer,
)
from codetune.training.trainer import require_supported
from tests.model.builders import tiny_model
from tests.training.tiny import base_model, metrics, project, run

MATRICES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_model(tmp_path_factory.mktemp("base"))


def muon_of(model: Any, **settings: Any) -> tuple[MuonWithAdamW, set[str], set[str]]:
    """The optimizer, and the names of the parameters that each of its parts updates."""
    names = {id(weights): name for name, weights in model.named_parameters()}
    optimizer = muon_with_adamw(model, base_network(model), Training(optimizer="muon", **settings), [])
    parts: tuple[set[str], set[str]] = (set(), set())
    for group in optimizer.param_groups:
        parts["ns_steps" not in group].update(names[id(weights)] for weights in group["params"])
    return optimizer, *parts


def test_muon_updates_the_hidden_matrices_and_adamw_the_rest() -> None:
    _, muon, adamw = muon_of(tiny_model("llama", 100))
    assert {name.split(".")[-2] for name in muon} == MATRICES
    assert {name.split(".")[-2] for name in adamw} == {
        "embed_tokens",
        "lm_head",
        "norm",
        "input_layernorm",
        "post_attention_layernorm",
    }


def test_muon_updates_adapters_but_not_those_of_the_output_layer_and_the_embeddings() -> None:
    lora = LoraSettings(target_modules=["q_proj", "lm_head", "embed_tokens"])
    _, muon, adamw = muon_of(add_adapters(tiny_model("llama", 100), "lora", lora, 1))
    assert all("q_proj.lora_" in name for name in muon)
    assert {name.split(".")[-1 if "embedding" in name else -2] for name in adamw} == {"default"}
    assert all("lm_head" in name or "embed_tokens" in name for name in adamw)


def test_muon_without_a_hidden_matrix_to_train_is_refused() -> None:
    lora = LoraSettings(target_modules=["lm_head", "embed_tokens"])
    with pytest.raises(ProjectError, match=r"none of them is trained\. .*train\.lora\.target_modules: all-linear"):
        muon_of(add_adapters(tiny_model("llama", 100), "lora", lora, 1))


def test_a_step_of_muon_has_nearly_orthogonal_rows_and_the_size_of_one_of_adamw() -> None:
    model = tiny_model("llama", 100)
    optimizer, muon, _ = muon_of(model, learning_rate=1e-2)
    before = {name: weights.detach().clone() for name, weights in model.named_parameters()}
    model(input_ids=torch.arange(3, 40)[None], labels=torch.arange(3, 40)[None]).loss.backward()
    optimizer.step()
    for name, weights in model.named_parameters():
        change = (weights.detach() - before[name]) / 1e-2
        if name in muon:
            singular = torch.linalg.svdvals(change) / (0.2 * math.sqrt(max(change.shape)))
            assert singular.median() == pytest.approx(1, abs=0.4), name
        else:  # the first step of AdamW is the sign of the gradient
            moved = change[change != 0]
            assert moved.abs().median() == pytest.approx(1, abs=0.01), name


@pytest.mark.parametrize(
    ("steps", "warmup", "expected"),
    [
        (20, 4, [0, 0.25, 0.5, 0.75, *[1] * 15, 1 - math.sqrt(1 / 2)]),
        (4, 2, [0, 0.5, 1, 1]),
        (3, 9, [0, 1 / 9, 2 / 9]),
    ],
    ids=str,
)
def test_wsd_is_stable_and_falls_in_the_last_tenth(
    base: Path, tmp_path: Path, steps: int, warmup: int, expected: list[float]
) -> None:
    settings = project(scheduler="wsd", warmup_steps=warmup, max_steps=steps, epochs=9, logging_steps=1)
    run(settings, base, tmp_path)
    assert [line["learning_rate"] / 1e-3 for line in metrics(tmp_path)] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("optimizer", ["muon", "adamw_8bit"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_continued_training_is_the_unbroken_one_bit_by_bit(
    base: Path, tmp_path: Path, optimizer: str, method: str
) -> None:
    settings = project(save_steps=2, keep_checkpoints=9, method=method, optimizer=optimizer, scheduler="wsd")
    run(settings, base, tmp_path / "whole")
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "whole/checkpoint-2", broken / "checkpoint-2")
    shutil.copy(tmp_path / "whole/metrics.jsonl", broken)
    run(settings, base, broken)
    assert metrics(broken) == metrics(tmp_path / "whole")
    (one,), (other,) = (list((tmp_path / name / "saved").glob("*.safetensors")) for name in ("whole", "broken"))
    found, expected = load_file(one), load_file(other)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "muon"])
def test_every_optimizer_learns(base: Path, tmp_path: Path, optimizer: str) -> None:
    run(project(optimizer=optimizer, epochs=6, learning_rate=3e-3), base, tmp_path)
    losses = [line["loss"] for line in metrics(tmp_path)]
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(
    ("optimizer", "strategy", "fitting"),
    [
        ("adamw_8bit", "fsdp", "ddp"),
        ("adamw_8bit", "zero1", "ddp"),
        ("adamw_8bit", "zero2", "ddp"),
        ("adamw_8bit", "zero3", "ddp"),
        ("muon", "zero1", "ddp or fsdp"),
        ("muon", "zero2", "ddp or fsdp"),
        ("muon", "zero3", "ddp or fsdp"),
    ],
)
def test_an_optimizer_of_whole_weights_is_refused_where_they_are_divided(
    optimizer: Any, strategy: Any, fitting: str
) -> None:
    settings = Training(optimizer=optimizer)
    told = rf"train.optimizer is {optimizer}.*launch.strategy {strategy} divides.*launch.strategy: {fitting}$"
    with pytest.raises(ProjectError, match=told):
        require_optimizer(settings, strategy)
    require_optimizer(settings, "ddp")


def test_muon_takes_shards_of_fsdp() -> None:
    require_optimizer(Training(optimizer="muon"), "fsdp")


def test_eight_bits_without_bitsandbytes_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codetune.training.optimizers.is_bitsandbytes_available", lambda: False)
    with pytest.raises(
        ProjectError, match=r"bitsandbytes is not installed.*pip install bitsandbytes.*adamw_torch_fused"
    ):
        require_optimizer(Training(optimizer="adamw_8bit"), "alone")
    require_optimizer(Training(), "alone")


def test_eight_bits_without_a_kernel_for_the_cpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsandbytes.optim.adamw import AdamW8bit

    def step(self: object) -> None:
        raise NotImplementedError("Could not run 'bitsandbytes::optimizer_update_8bit_blockwise' on the CPU")

    require_eight_bit_step()
    monkeypatch.setattr(AdamW8bit, "step", step)
    with pytest.raises(ProjectError, match=r"cannot do its step on this CPU \(Could not run .*adamw_torch_fused"):
        require_supported(Project(train=Training(optimizer="adamw_8bit")), "float32", "alone", "cpu")


def test_the_other_schedules_are_those_of_transformers() -> None:
    found = optimizer_arguments(Training(scheduler="linear", optimizer="adafactor"), 10)
    assert (found["lr_scheduler_type"], found["optim"]) == ("linear", "adafactor")
