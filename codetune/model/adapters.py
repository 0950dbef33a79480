"""A loaded network -> the network that is trained: itself, or itself frozen with LoRA adapters (through peft), over
whole weights or quantised ones; and back again: the adapters, fresh from training or read from their directory, merged
into one whole network."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from codetune.errors import ModelError, ProjectError, first_line
from codetune.project.sections import LoraSettings, Method


def add_adapters(model: PreTrainedModel, method: Method, lora: LoraSettings, seed: int) -> PreTrainedModel | PeftModel:
    """The adapters' first weights follow from the seed alone. For `qlora` the network comes quantised."""
    match method:
        case "full":
            return model
        case "lora" | "qlora":
            with _drawn_from(seed):
                return _with_adapters(model, lora)


@contextmanager
def _drawn_from(seed: int) -> Iterator[None]:
    """What is drawn on the CPU, and on the GPU of this process; it leaves no trace in what is drawn afterwards. (Asked
    for all GPUs, torch would begin work on each of them.)"""
    gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        yield


def base_network(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The network itself, with the adapters in its layers where it has some."""
    network: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[assignment]
    return network


def merge_trained_adapters(model: PeftModel, dtype: torch.dtype) -> PreTrainedModel:
    """The network with its adapters added to the weights, as it was trained: quantised weights as the numbers that they
    stand for, not those that they were made from. The sums are made in float32 and rounded once. `model` is used up."""
    network = base_network(model)
    adapted = {name: layer for name, layer in network.named_modules() if isinstance(layer, LoraLayer)}
    for name, layer in adapted.items():
        network.set_submodule(name, _merged_layer(layer, dtype))
    quantised = {name: layer for name, layer in network.named_modules() if _is_quantised(layer)}
    for name, layer in quantised.items():
        network.set_submodule(name, _linear(layer, _numbers(layer), dtype))
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
        # Else transformers would save it as quantised, and refuse another number format.
        for name in ("hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit"):
            network.__dict__.pop(name, None)
    ends: list[torch.nn.Module] = [network.get_input_embeddings(), network.get_output_embeddings()]  # type: ignore[no-untyped-call]
    if ends[0].weight is not ends[1].weight:  # an adapter on one of them has parted them
        network.config.tie_word_embeddings = False
    cast_weights(network, dtype)
    return network


def cast_weights(network: torch.nn.Module, dtype: torch.dtype) -> None:
    """Weights only: what else a network holds, such as the angles of its positions, keeps its precision."""
    for weights in network.parameters():
        weights.data = weights.data.to(dtype)


def _with_adapters(model: PreTrainedModel, lora: LoraSettings) -> PeftModel:
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
    )
    try:
        with warnings.catch_warnings():
            # peft 0.21 reads the old name of a property that transformers 5.23 has renamed.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            return get_peft_model(model, settings)
    except ValueError as why:
        raise ProjectError(
            f"train.lora.target_modules: {lora.target_modules} fits no module of {type(model).__name__} ({why}). "
            "Expected: `all-linear`, or names such as [q_proj, v_proj]. Mend the project file."
        ) from why


def merge_saved_adapters(model: PreTrainedModel, path: Path, device: str) -> PreTrainedModel:
    """`model` with the adapters of a directory in its weights. It then goes by that directory's name, so adapters
    trained on top of it know what they belong to. Raises ModelError for adapters that do not fit."""
    kind = json.loads((path / "adapter_config.json").read_text(encoding="utf-8")).get("peft_type")
    if kind != "LORA":
        raise ModelError(
            f"The adapters in {path} are of the kind {kind}. Expected: LORA, which can be merged. Merge them with the "
            "program that trained them, and name the merged model."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft warns of missing adapters; they are an error below
            adapted = PeftModel.from_pretrained(model, str(path), torch_device=device)
        missing = _unfilled(adapted, path)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as why:
        raise _misfit(path, f"{type(why).__name__}: {first_line(why)}") from why
    if missing:
        raise _misfit(path, f"{len(missing)} of their tensors are not there: {', '.join(missing[:3])}")
    merged: Any = adapted.merge_and_unload()
    merged.name_or_path = merged.config.name_or_path = str(path)
    whole: PreTrainedModel = merged.eval()
    return whole


def _unfilled(adapted: PeftModel, path: Path) -> list[str]:
    """Adapters of the configuration that the file does not hold: peft would leave them at their start."""
    with safe_open(path / "adapter_model.safetensors", framework="pt") as file:
        return sorted(set(get_peft_model_state_dict(adapted, save_embedding_layers=False)) - set(file.keys()))


def _misfit(path: Path, found: str) -> ModelError:
    return ModelError(
        f"The adapters in {path} do not fit the model below them ({found}). Expected: the whole adapters of the model "
        "that adapter_config.json names. Copy them there again, or mend base_model_name_or_path."
    )


def _merged_layer(layer: LoraLayer, dtype: torch.dtype) -> torch.nn.Module:
    base: torch.nn.Module = layer.get_base_layer()
    if isinstance(base, torch.nn.Linear):
        (adapter,) = layer.active_adapters
        weights = _numbers(base) + layer.get_delta_weight(adapter).float()  # type: ignore[attr-defined]
        return _linear(base, weights, dtype)
    # Embeddings and other kinds, which are never quantised. A weight of their own first: the output layer may share it.
    base.weight = torch.nn.Parameter(base.weight.detach().clone(), requires_grad=False)  # type: ignore[operator]
    layer.merge()
    return base


def _numbers(layer: torch.nn.Linear) -> torch.Tensor:
    """The weights in float32, of quantised ones the numbers that they stand for."""
    state = getattr(layer.weight, "quant_state", None)
    # bitsandbytes lays the weights out anew, and rounds, when a CPU uses them in evaluation mode: codetune never does.
    assert not getattr(state, "packing_format_for_cpu", False)
    weights: torch.Tensor = dequantize_module_weight(layer)
    return weights.float()


def _linear(like: torch.nn.Linear, weights: torch.Tensor, dtype: torch.dtype) -> torch.nn.Linear:
    plain = torch.nn.Linear(like.in_features, like.out_features, bias=like.bias is not None, device="meta")
    plain.weight = torch.nn.Parameter(weights.detach().to(dtype), requires_grad=False)
    if like.bias is not None:
        plain.bias = torch.nn.Parameter(like.bias.detach().to(dtype), requires_grad=False)
    return plain


def _is_quantised(layer: torch.nn.Module) -> bool:
    # By name, so that bitsandbytes is not loaded where nothing is quantised.
    return type(getattr(layer, "weight", None)).__name__ in ("Params4bit", "Int8Params")
