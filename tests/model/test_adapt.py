"""What is trained: everything, or adapters that change nothing at first."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from codetune.errors import ProjectError
from codetune.model.adapt import adapt
from codetune.project import LoraSettings
from tests.model.builders import tiny_model

IDS = torch.arange(3, 20)[None]


def adapters(seed: int) -> dict[str, torch.Tensor]:
    model = adapt(tiny_model("llama", 100), "lora", LoraSettings(), seed)
    return {name: weights for name, weights in model.named_parameters() if weights.requires_grad}


def test_full_training_takes_the_network_as_it_is() -> None:
    model = tiny_model("llama", 100)
    assert adapt(model, "full", LoraSettings(), 1) is model


def test_lora_trains_adapters_of_all_linear_layers_only() -> None:
    trained = adapters(1)
    assert all("lora_" in name for name in trained)
    modules = {name.split(".")[-4] for name in trained}
    assert modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_adapters_change_nothing_before_they_are_trained() -> None:
    model = adapt(tiny_model("llama", 100), "lora", LoraSettings(), 1)
    assert isinstance(model, PeftModel)
    with torch.no_grad():
        assert torch.equal(model.eval()(IDS).logits, tiny_model("llama", 100)(IDS).logits)


def test_adapters_follow_from_the_seed_and_leave_the_callers_randomness_alone() -> None:
    first, second, other = adapters(1), adapters(1), adapters(2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    model = tiny_model("llama", 100)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    adapt(model, "lora", LoraSettings(), 1)
    assert torch.equal(torch.rand(3), expected)


def test_modules_that_the_model_lacks_are_named() -> None:
    with pytest.raises(ProjectError, match=r"train.lora.target_modules: \['wq'\] fits no module of LlamaForCausalLM"):
        adapt(tiny_model("llama", 100), "lora", LoraSettings(target_modules=["wq"]), 1)
