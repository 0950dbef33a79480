"""LoRA adapters through peft: added to a network before training, over plain or quantized weights, and merged into it
afterwards, fresh from training or read from their directory.

A weight matrix W becomes W + (alpha / r) B A with B and A of rank r, and B zero at first (Hu et al. 2021, arXiv
2106.09685, sec. 4.1). QLoRA is the same over a quantized W (Dettmers et al. 2023, arXiv 2305.14314). rsLoRA divides by
the square root of r instead (Kalajdzievski 2023, arXiv 2312.03732). DoRA gives each row of that sum, one output of the
layer, a trained length of its own (Liu et al. 2024, arXiv 2402.09353, sec. 4.1)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from codetune.errors import ModelError, ProjectError, first_line
from codetune.model.file_check import ADAPTER_CONFIG, read_json
from codetune.model.model_files import ADAPTER_WEIGHTS, resized
from codetune.model.plain_layers import input_embeddings, output_layer
from codetune.model.pretrained import read_adapters
from codetune.project.sections import LoraSettings, Method

# What peft raises for settings and tensors that do not fit, or that cannot be merged.
PEFT_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)


def add_adapters(
    network: PreTrainedModel, method: Method, lora: LoraSettings, seed: int
) -> PreTrainedModel | PeftModel:
    """The model to train: the network itself for `full`, the frozen network with new adapters for `lora` and `qlora`.

    The first weights of the adapters follow from `seed` alone; the random generators of the process stay as they were.
    Raises ProjectError if one of `target_modules` fits no module of the network."""
    if method == "full":
        return network
    expected = _adaptable_modules(network)
    _require_modules(network, lora.target_modules, expected)
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
    )
    try:
        with _seeded(seed), quiet_peft():
            model = get_peft_model(network, settings)
    except (ValueError, re.error) as error:
        found = f"{lora.target_modules} fits no module of {type(network).__name__} ({first_line(error)})"
        raise _unknown_modules(found, expected) from error
    found_modules = settings.target_modules
    if isinstance(found_modules, set):  # its order differs between processes, and would be saved
        settings.target_modules = sorted(found_modules)
    return model


def _require_modules(network: PreTrainedModel, targets: str | list[str], expected: str) -> None:
    if isinstance(targets, str):  # `all-linear`, or a pattern, which peft looks for
        return
    paths = [f".{name}" for name, _ in network.named_modules()]
    if absent := [target for target in targets if not any(path.endswith(f".{target}") for path in paths)]:
        what = "is not a module" if len(absent) == 1 else "are not modules"
        raise _unknown_modules(f"{', '.join(absent)} {what} of {type(network).__name__}", expected)


def _adaptable_modules(network: PreTrainedModel) -> str:
    """The names of the modules that can have adapters, listed; of a network that has none yet."""
    adaptable = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
    names = {path.rpartition(".")[2] for path, module in network.named_modules() if isinstance(module, adaptable)}
    return ", ".join(sorted(names))


def _unknown_modules(found: str, expected: str) -> ProjectError:
    return ProjectError(
        f"train.lora.target_modules: {found}. Expected: `all-linear`, or a list of {expected}. Fix the project file."
    )


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hides peft's warnings about what codetune takes care of, or cannot change."""
    with warnings.catch_warnings():
        # peft 0.21 reads the old name of a property that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        # Merging gives tied embeddings weights of their own; adapted embeddings are saved whole beside the adapters.
        warnings.filterwarnings("ignore", "Model (has|with) `tie_word_embeddings", UserWarning)
        warnings.filterwarnings("ignore", "Setting `save_embedding_layers`", UserWarning)
        # peft looks for the configuration of the base model, and adapters on adapters have none.
        warnings.filterwarnings("ignore", "Could not find a config file", UserWarning)
        yield


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds the generators of the CPU and of this process's GPU inside the block, and restores them after it. (With all
    GPUs as `devices`, torch would create a context on each.)"""
    gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        yield


def base_network(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The network of transformers without peft's wrapper. Its layers still contain the adapters."""
    network: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[assignment]
    return network


def merge_trained_adapters(model: PeftModel, dtype: torch.dtype) -> PreTrainedModel:
    """The network with its adapters added to its weights, in `dtype`. Consumes `model`.

    Adapters over quantized weights were trained with the dequantized values, so those are what they are added to, not
    the original weights. Sums are computed in float32 and rounded once."""
    network = base_network(model)
    adapted = {name: layer for name, layer in network.named_modules() if isinstance(layer, LoraLayer)}
    for name, layer in adapted.items():
        network.set_submodule(name, _merged_layer(layer, dtype))
    quantized = {name: layer for name, layer in network.named_modules() if _is_quantized(layer)}
    for name, layer in quantized.items():
        network.set_submodule(name, _linear(layer, _dequantized(layer), dtype))
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
        # Otherwise transformers saves the network as quantized, and refuses another dtype.
        for name in ("hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit"):
            network.__dict__.pop(name, None)
    head = output_layer(network)
    if head is None or head.weight is not input_embeddings(network).weight:  # an adapter on one of them has untied them
        network.config.tie_word_embeddings = False
    cast_weights(network, dtype)
    return network


def cast_weights(network: torch.nn.Module, dtype: torch.dtype) -> None:
    """Casts the parameters in place. Buffers, such as the frequencies of rotary embeddings, keep their precision."""
    for weights in network.parameters():
        weights.data = weights.data.to(dtype)


def _merged_layer(layer: LoraLayer, dtype: torch.dtype) -> torch.nn.Module:
    base: torch.nn.Module = layer.get_base_layer()
    if isinstance(base, torch.nn.Linear):
        (adapter,) = layer.active_adapters
        weights = _dequantized(base) + layer.get_delta_weight(adapter).float()  # type: ignore[attr-defined]
        if adapter in layer.lora_magnitude_vector:  # DoRA
            lengths = layer.lora_magnitude_vector[adapter].weight.float()
            weights *= (lengths / weights.norm(dim=1))[:, None]
        return _linear(base, weights, dtype)
    # Embeddings and other layers that are never quantized. First a copy of the weight: the output layer may share it.
    base.weight = torch.nn.Parameter(base.weight.detach().clone(), requires_grad=False)  # type: ignore[operator]
    layer.merge()
    return base


def _dequantized(layer: torch.nn.Linear) -> torch.Tensor:
    """The weights in float32; for quantized ones the values that their codes stand for."""
    state = getattr(layer.weight, "quant_state", None)
    # bitsandbytes reorders and rounds the weights when a CPU uses them in evaluation mode: codetune never does.
    assert not getattr(state, "packing_format_for_cpu", False)
    weights: torch.Tensor = dequantize_module_weight(layer)
    return weights.float()


def _linear(like: torch.nn.Linear, weights: torch.Tensor, dtype: torch.dtype) -> torch.nn.Linear:
    """A plain linear layer of the shape and with the bias of `like`."""
    plain = torch.nn.Linear(like.in_features, like.out_features, bias=like.bias is not None, device="meta")
    plain.weight = torch.nn.Parameter(weights.detach().to(dtype), requires_grad=False)
    if like.bias is not None:
        plain.bias = torch.nn.Parameter(like.bias.detach().to(dtype), requires_grad=False)
    return plain


def _is_quantized(layer: torch.nn.Module) -> bool:
    # By name, so that bitsandbytes is imported only where something is quantized.
    return type(getattr(layer, "weight", None)).__name__ in ("Params4bit", "Int8Params")


def merge_saved_adapters(network: PreTrainedModel, path: Path, device: str) -> PreTrainedModel:
    """`network` with the adapters in the directory `path` merged into its weights, in evaluation mode. Its name becomes
    `path`, so that adapters trained on top of it name the right base model. Raises ModelError for adapters that are not
    LoRA, incomplete, or of another model."""
    kind = read_json(path / ADAPTER_CONFIG).get("peft_type")
    if kind != "LORA":
        raise ModelError(
            f"The adapters in {path} are of the kind {kind}. Expected: LORA, which can be merged. Merge them with the "
            "program that trained them, and name the merged model."
        )
    try:
        _require_same_vocabulary(network, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft warns of missing adapters; they are an error below
            adapted = read_adapters(network, path, device)
        with safe_open(path / ADAPTER_WEIGHTS, framework="pt") as file:  # peft leaves absent tensors as they were made
            missing = sorted({*get_peft_model_state_dict(adapted, save_embedding_layers=False)} - set(file.keys()))
        if missing:
            raise _misfit(path, f"{len(missing)} of their tensors are not there: {', '.join(missing[:3])}")
        _untie_adapted(network)
        with quiet_peft():
            merged: Any = adapted.merge_and_unload()
    except PEFT_ERRORS as error:
        raise _misfit(path, f"{type(error).__name__}: {first_line(error)}") from error
    merged.name_or_path = merged.config.name_or_path = str(path)
    whole: PreTrainedModel = merged.eval()
    return whole


def _require_same_vocabulary(network: PreTrainedModel, path: Path) -> None:
    """Raises ModelError for adapters whose training has resized the embeddings of their base model."""
    rows = input_embeddings(network).num_embeddings
    ends = (input_embeddings(network), output_layer(network))
    names = {name.rpartition(".")[2] for name, module in network.named_modules() if module in ends}
    with safe_open(path / ADAPTER_WEIGHTS, framework="pt") as file:
        saved = [name for name in file.keys() if names & {*name.split(".")} and "lora_" not in name]  # noqa: SIM118
        sizes = {file.get_slice(name).get_shape()[0] for name in saved if name.endswith("weight")}
    if others := sizes - {rows}:
        raise resized(path, f"embeddings of {max(others):,} rows", rows, max(others))
    trained: Any = read_json(path / ADAPTER_CONFIG).get("trainable_token_indices") or []  # a list, or one a layer
    lists: list[list[int]] = [*trained.values()] if isinstance(trained, dict) else [trained]
    if (last := max(chain.from_iterable(lists), default=0)) >= rows:
        raise resized(path, f"the trained token {last:,}", rows, last + 1)


def _untie_adapted(network: PreTrainedModel) -> None:
    """Gives the head a weight of its own where it shares that of the embeddings and one of them has an adapter: merged
    into a shared weight, it would change both."""
    embeddings, head = network.get_input_embeddings(), network.get_output_embeddings()  # type: ignore[no-untyped-call]
    plain = output_layer(network)
    is_adapted = isinstance(embeddings, LoraLayer) or isinstance(head, LoraLayer)
    if is_adapted and plain is not None and plain.weight is input_embeddings(network).weight:
        plain.weight = torch.nn.Parameter(plain.weight.detach().clone(), requires_grad=False)
        network.config.tie_word_embeddings = False


def _misfit(path: Path, found: str) -> ModelError:
    return ModelError(
        f"The adapters in {path} do not fit their base model ({found}). Expected: the whole adapters of the model that "
        f"{ADAPTER_CONFIG} names. Copy them there again, or fix base_model_name_or_path."
    )
