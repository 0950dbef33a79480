"""Adapters: added without an effect at first, and merged without a difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from codetune.errors import ModelError, ProjectError
from codetune.model.adapters import add_adapters, base_network, merge_trained_adapters, quiet_peft
from codetune.model.load import load_model, load_quantized_model
from codetune.model.plain_layers import input_embeddings, output_layer
from codetune.project.sections import LoraSettings, Method, Model, Quantization
from tests.model.builders import ARCHITECTURES, tiny_model

VARIANTS: list[dict[str, bool]] = [{}, {"rslora": True}, {"dora": True}, {"rslora": True, "dora": True}]
IDS = torch.arange(3, 20)[None]


def adapters(seed: int) -> dict[str, torch.Tensor]:
    model = add_adapters(tiny_model("llama", 100), "lora", LoraSettings(), seed)
    return {name: weights for name, weights in model.named_parameters() if weights.requires_grad}


def test_full_training_takes_the_network_as_it_is() -> None:
    model = tiny_model("llama", 100)
    assert add_adapters(model, "full", LoraSettings(), 1) is model


def test_lora_trains_adapters_of_all_linear_layers_only() -> None:
    trained = adapters(1)
    assert all("lora_" in name for name in trained)
    modules = {name.split(".")[-4] for name in trained}
    assert modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_saved_adapters_name_their_modules_in_the_same_order_in_every_process(tmp_path: Path) -> None:
    with quiet_peft():
        with_trained_adapters(tiny_model("llama", 100), "lora").save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))["target_modules"]
    assert saved == sorted(saved)
    assert len(saved) == 14


def test_adapters_change_nothing_before_they_are_trained() -> None:
    model = add_adapters(tiny_model("llama", 100), "lora", LoraSettings(), 1)
    assert isinstance(model, PeftModel)
    with torch.no_grad():
        assert torch.equal(model.eval()(IDS).logits, tiny_model("llama", 100)(IDS).logits)


def test_new_adapters_follow_from_the_seed_and_leave_the_random_generator_alone() -> None:
    first, second, other = adapters(1), adapters(1), adapters(2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    model = tiny_model("llama", 100)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    add_adapters(model, "lora", LoraSettings(), 1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (["q_proj", "wq"], "wq is not a module"),
        ("wq", "wq fits no module"),
        (["proj"], "proj is not a module"),
        ("(q_proj", r"\(q_proj fits no module"),
        (["q_proj", "norm"], r"\['q_proj', 'norm'\] fits no module"),
    ],
    ids=str,
)
def test_modules_that_the_model_lacks_are_named_with_those_that_it_has(targets: list[str] | str, found: str) -> None:
    names = "down_proj, embed_tokens, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    with pytest.raises(ProjectError, match=rf"target_modules: {found} of LlamaForCausalLM.*a list of {names}\. Fix"):
        add_adapters(tiny_model("llama", 100), "lora", LoraSettings(target_modules=targets), 1)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_saved_adapters_of_every_kind_are_those_that_were_trained(tmp_path: Path, variant: dict[str, bool]) -> None:
    tiny_model("llama", 100).save_pretrained(tmp_path / "base")
    network = load_model(tmp_path / "base", Model(dtype="float32"), "cpu")
    model = with_trained_adapters(network, "lora", **variant)
    with quiet_peft():
        model.save_pretrained(str(tmp_path / "adapters"))
    found = load_model(tmp_path / "adapters", Model(dtype="float32"), "cpu")
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "scale", "lengths"), [({}, 16 / 9, 0), ({"rslora": True}, 16 / 3, 0), ({"dora": True}, 16 / 9, 64)]
)
def test_rslora_divides_by_the_root_of_the_rank_and_dora_trains_the_length_of_each_row(
    variant: dict[str, bool], scale: float, lengths: int
) -> None:
    model = add_adapters(tiny_model("llama", 100), "lora", LoraSettings(r=9, **variant), 1)
    (layer,) = [module for name, module in model.named_modules() if name.endswith("0.self_attn.q_proj")]
    assert layer.scaling == {"default": scale}
    trained = {name: weights.numel() for name, weights in layer.named_parameters() if weights.requires_grad}
    assert trained.get("lora_magnitude_vector.default.weight", 0) == lengths


@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]], ids=str)
def test_saved_adapters_of_tied_weights_change_the_adapted_one_only(tmp_path: Path, targets: list[str]) -> None:
    tiny_model("llama", 100, tied=True).save_pretrained(tmp_path / "base")
    network = load_model(tmp_path / "base", Model(dtype="float32"), "cpu")
    model = with_trained_adapters(network, "lora", target_modules=targets)
    adapted = logits(model)
    with quiet_peft():
        model.save_pretrained(str(tmp_path / "adapters"))
    merged = load_model(tmp_path / "adapters", Model(dtype="float32"), "cpu")
    torch.testing.assert_close(logits(merged), adapted, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "whole")
    assert torch.equal(logits(load_model(tmp_path / "whole", Model(dtype="float32"), "cpu")), logits(merged))


def test_adapters_whose_training_resized_the_embeddings_say_so_and_how_to_go_on(tmp_path: Path) -> None:
    tiny_model("llama", 100).save_pretrained(tmp_path / "base")
    network = load_model(tmp_path / "base", Model(dtype="float32"), "cpu")
    network.resize_token_embeddings(102)
    model = with_trained_adapters(network, "lora")
    with quiet_peft():
        model.save_pretrained(str(tmp_path / "adapters"), save_embedding_layers=True)
    message = (
        r"adapters has embeddings of 102 rows, and its model has 100 .*resize_token_embeddings\(102\).*set base_model"
    )
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path / "adapters", Model(dtype="float32"), "cpu")


def test_adapters_with_trained_tokens_beyond_the_embeddings_say_so_and_how_to_go_on(tmp_path: Path) -> None:
    tiny_model("llama", 100).save_pretrained(tmp_path / "base")
    network = load_model(tmp_path / "base", Model(dtype="float32"), "cpu")
    network.resize_token_embeddings(102)
    indices = {"embed_tokens": [7, 101]}
    with quiet_peft():
        model = get_peft_model(network, LoraConfig(target_modules=["q_proj"], trainable_token_indices=indices))
        model.save_pretrained(str(tmp_path / "adapters"), save_embedding_layers=False)
    with pytest.raises(
        ModelError, match=r"adapters has the trained token 101, and its model has 100 .*gs\(102\).*set base"
    ):
        load_model(tmp_path / "adapters", Model(dtype="float32"), "cpu")


def test_layers_are_found_in_their_adapters() -> None:
    network = tiny_model("llama", 100)
    embeddings, head = input_embeddings(network), output_layer(network)
    add_adapters(network, "lora", LoraSettings(target_modules=["embed_tokens", "lm_head"]), 1)
    assert network.get_input_embeddings() is not embeddings
    assert (input_embeddings(network), output_layer(network)) == (embeddings, head)


def with_trained_adapters(network: PreTrainedModel, method: Method, **settings: Any) -> PeftModel:
    """Adapters that change the model, as after a training."""
    model = add_adapters(network, method, LoraSettings(r=4, dropout=0.0, **settings), 1)
    assert isinstance(model, PeftModel)
    drawn = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.requires_grad:
                weights.normal_(0, 0.2, generator=drawn)
    return model.train()  # in evaluation mode bitsandbytes would rearrange 4-bit weights


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits.float()


@pytest.fixture(params=ARCHITECTURES)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tiny_model(request.param, 100).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"], ["embed_tokens"]], ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_merged_adapters_are_the_model_with_its_adapters(
    saved: Path, targets: Any, variant: dict[str, bool], tmp_path: Path
) -> None:
    network = load_model(saved, Model(dtype="float32"), "cpu")
    before = logits(network)
    model = with_trained_adapters(network, "lora", target_modules=targets, **variant)
    adapted = logits(model)
    assert not torch.allclose(adapted, before, atol=1e-2)
    merged = merge_trained_adapters(model, torch.float32)
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    torch.testing.assert_close(logits(merged), adapted, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    again = load_model(tmp_path / "merged", Model(dtype="float32"), "cpu")
    assert torch.equal(logits(again), logits(merged))


@pytest.mark.parametrize(
    "quantization", [Quantization(), Quantization(type="fp4"), Quantization(double=False)], ids=str
)
@pytest.mark.parametrize("variant", [{}, {"dora": True}], ids=str)
def test_adapters_over_four_bits_merge_into_the_dequantized_weights(
    saved: Path, quantization: Quantization, variant: dict[str, bool]
) -> None:
    network = load_quantized_model(saved, Model(dtype="float32"), "cpu", quantization)
    quantized = logits(network.train())
    assert not torch.allclose(quantized, logits(load_model(saved, Model(dtype="float32"), "cpu")), atol=1e-2)
    model = with_trained_adapters(network, "qlora", **variant)
    adapted = logits(model)
    assert not torch.allclose(adapted, quantized, atol=1e-2)
    torch.testing.assert_close(logits(merge_trained_adapters(model, torch.float32)), adapted, rtol=1e-4, atol=1e-4)


def test_adapters_over_eight_bits_merge_up_to_the_rounding_of_activations(saved: Path) -> None:
    network = load_quantized_model(saved, Model(dtype="float32"), "cpu", Quantization(bits=8))
    model = with_trained_adapters(network, "qlora")
    adapted = logits(model)
    merged = logits(merge_trained_adapters(model, torch.float32))
    assert (merged - adapted).norm() < 0.05 * adapted.norm()


def test_linear_layers_are_quantized_and_the_rest_is_as_it_was(saved: Path) -> None:
    whole = load_model(saved, Model(dtype="bfloat16"), "cpu")
    small = load_quantized_model(saved, Model(dtype="bfloat16"), "cpu", Quantization())
    kinds = {name: weights.dtype for name, weights in small.named_parameters()}
    for name, weights in whole.named_parameters():
        quantized = name.endswith("proj.weight") or (".mlp.c_" in name and name.endswith("weight"))
        assert kinds[name] == (torch.uint8 if quantized else weights.dtype), name
    assert small.get_memory_footprint() < whole.get_memory_footprint()


def test_a_merged_model_is_saved_as_a_whole_one(saved: Path, tmp_path: Path) -> None:
    model = with_trained_adapters(load_quantized_model(saved, Model(dtype="bfloat16"), "cpu", Quantization()), "qlora")
    merged = merge_trained_adapters(model, torch.bfloat16)
    merged.save_pretrained(tmp_path / "merged")
    again = load_model(tmp_path / "merged", Model(dtype="auto"), "cpu")
    assert {weights.dtype for weights in again.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(again), logits(merged))


def test_the_base_network_of_adapters_is_found() -> None:
    network = tiny_model("llama", 100)
    assert base_network(network) is network
    assert base_network(add_adapters(network, "lora", LoraSettings(), 1)) is network
