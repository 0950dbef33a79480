"""A loaded network -> the network that is trained: itself, or itself frozen with LoRA adapters (through peft); and
trained adapters -> the weights below them, so that generation pays nothing for them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from codetune.errors import ModelError, ProjectError
from codetune.project import LoraSettings, Method


def adapt(model: PreTrainedModel, method: Method, lora: LoraSettings, seed: int) -> PreTrainedModel | PeftModel:
    """The adapters' first weights follow from the seed alone."""
    match method:
        case "full":
            return model
        case "lora":
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                return _with_adapters(model, lora)
        case "qlora":
            raise AssertionError("qlora is refused when the project is read")


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


def merge_adapters(model: PreTrainedModel, path: Path, device: str) -> PreTrainedModel:
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
        raise _misfit(path, f"{type(why).__name__}: {str(why).partition(chr(10))[0]}") from why
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
