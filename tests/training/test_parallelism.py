"""The choice of a strategy and its reason, its arguments for the Trainer, and the check that it is in force."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations.deepspeed import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

from codetune.errors import CodetuneError, ProjectError
from codetune.project.sections import Launch
from codetune.training.parallelism import (
    ModelSize,
    StrategyChoice,
    checkpoint_compatibility,
    choose_strategy,
    load_whole_models,
    require_strategy,
    strategy_arguments,
)

GPU = 80_000_000_000
LARGE, SMALL = ModelSize(6_700_000_000, 0, GPU), ModelSize(1_300_000_000, 0, GPU)
WITHOUT_GPU = ModelSize(1_000_000, 0, None)


def test_auto_shares_what_is_too_large_for_a_gpu_and_says_so() -> None:
    auto = Launch()
    # 6.7e9 * 16 bytes = 107.2 GB; 1.3e9 * 16 = 20.8 GB, below 60 % of 80 GB
    assert choose_strategy(auto, "full", 8, LARGE) == StrategyChoice(
        "fsdp", "weights, gradients and optimizer are 107.2 GB, a GPU has 80.0 GB: 8 processes share them"
    )
    assert choose_strategy(auto, "full", 8, SMALL).strategy == "ddp"
    # frozen weights take 2 bytes: 13.4 GB
    adapters = ModelSize(60_000_000, 6_700_000_000, GPU)
    assert choose_strategy(auto, "lora", 8, adapters).strategy == "ddp"
    assert choose_strategy(auto, "lora", 8, ModelSize(60_000_000, 40_000_000_000, GPU)).strategy == "fsdp"
    assert choose_strategy(auto, "qlora", 8, ModelSize(60_000_000, 40_000_000_000, GPU)).strategy == "ddp"
    assert choose_strategy(auto, "full", 2, WITHOUT_GPU) == StrategyChoice("ddp", "there is no GPU")
    assert choose_strategy(auto, "full", 1, LARGE) == StrategyChoice("alone", "there is one process")


def test_what_the_project_names_is_taken() -> None:
    assert choose_strategy(Launch(strategy="fsdp"), "full", 2, SMALL) == StrategyChoice("fsdp", "the project says so")
    assert choose_strategy(Launch(strategy="ddp"), "full", 2, LARGE).strategy == "ddp"
    assert choose_strategy(Launch(strategy="ddp"), "full", 1, LARGE).strategy == "alone"


def test_fsdp_without_a_gpu_is_an_error() -> None:
    with pytest.raises(ProjectError, match=r"fsdp, and there is no GPU.*launch.strategy: ddp, or zero2"):
        choose_strategy(Launch(strategy="fsdp"), "full", 2, WITHOUT_GPU)


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_checkpoints_without_zero_belong_to_no_number_of_processes(processes: int) -> None:
    assert checkpoint_compatibility("ddp", processes) == checkpoint_compatibility("alone", 1)
    assert checkpoint_compatibility("fsdp", processes) == checkpoint_compatibility("fsdp", 2)


@pytest.mark.parametrize(
    ("one", "other"), [(("fsdp", 2), ("ddp", 2)), (("zero2", 2), ("zero2", 4)), (("zero2", 2), ("zero3", 2))], ids=str
)
def test_checkpoints_of_another_sharding_or_another_number_of_processes_with_zero_do_not_fit(
    one: tuple[Any, int], other: tuple[Any, int]
) -> None:
    assert checkpoint_compatibility(*one) != checkpoint_compatibility(*other)


@pytest.mark.parametrize(
    ("strategy", "offload", "stage", "offloaded"),
    [
        ("zero1", "none", 1, set()),
        ("zero2", "optimizer", 2, {"offload_optimizer"}),
        ("zero3", "all", 3, {"offload_optimizer", "offload_param"}),
    ],
)
def test_zero_has_its_stage_and_its_offload(strategy: Any, offload: Any, stage: int, offloaded: set[str]) -> None:
    sharing = strategy_arguments(strategy, offload, "bfloat16", broadcast_weights=False)["deepspeed"]
    assert sharing["zero_optimization"]["stage"] == stage
    assert {key for key in sharing["zero_optimization"] if key.startswith("offload")} == offloaded
    assert sharing["bf16"] == {"enabled": True}
    assert sharing["fp16"] == {"enabled": False}


def test_fsdp_is_version_2() -> None:
    arguments = strategy_arguments("fsdp", "all", "bfloat16", broadcast_weights=True)
    assert arguments["fsdp_config"]["version"] == 2
    assert arguments["fsdp_config"]["cpu_offload"]
    assert not strategy_arguments("fsdp", "none", "bfloat16", broadcast_weights=True)["fsdp_config"]["cpu_offload"]


@pytest.mark.parametrize("strategy", ["ddp", "alone"])
def test_strategies_that_share_nothing_need_no_arguments(strategy: Any) -> None:
    assert strategy_arguments(strategy, "none", "float32", broadcast_weights=False) == {}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2"])
def test_another_strategy_in_force_than_the_one_asked_for_is_an_error(strategy: Any) -> None:
    """As accelerate leaves a model that it could not share: as it was."""
    trainer: Any = SimpleNamespace(accelerator=SimpleNamespace(distributed_type="MULTI_CPU"))
    model = torch.nn.Linear(2, 2)
    require_strategy("alone", trainer, model)
    with pytest.raises(CodetuneError, match=f"launch.strategy {strategy} was asked for, and alone is in force"):
        require_strategy(strategy, trainer, model)


def test_a_stage_after_the_training_loads_whole_models() -> None:
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    assert is_deepspeed_zero3_enabled()
    load_whole_models()
    assert not is_deepspeed_zero3_enabled(), config
