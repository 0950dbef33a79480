"""A loaded network -> the network that is trained: itself, or itself frozen with LoRA adapters (through peft)."""

from __future__ import annotations

import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from codetune.errors import ProjectError
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
