"""The model that a training begins with: in which precision, in which parts, and from where; and a whole one like it at
the end, where no process has the whole."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoConfig, PreTrainedModel, TrainingArguments

from codetune.data.token_cache import TokenCache
from codetune.errors import ModelError, ProjectError
from codetune.launch.devices import choose_device
from codetune.model.adapters import add_adapters
from codetune.model.load import load_model, load_quantized_model, uninitialized_model
from codetune.model.model_files import ADAPTER_CONFIG, base_model_directory
from codetune.project.sections import Project, Training
from codetune.training.arguments import Precision
from codetune.training.parallelism import SHARDED, Strategy, loading_whole


@dataclass(frozen=True, slots=True)
class Start:
    """The model that the training begins with, and how it is shared."""

    path: Path
    precision: Precision
    strategy: Strategy

    @property
    def is_cut(self) -> bool:
        """While it is loaded; not where weights are made then: adapters merged into those below them."""
        return self.strategy in SHARDED and not (self.path / ADAPTER_CONFIG).is_file()

    @property
    def handed_out(self) -> bool:
        return self.strategy == "fsdp" and self.is_cut

    def loading(self, arguments: TrainingArguments) -> AbstractContextManager[None]:
        return loading_whole(arguments) if self.strategy in SHARDED and not self.is_cut else nullcontext()


def load_start(project: Project, start: Start, is_first: bool) -> PreTrainedModel:
    """The network to train. Weights that are trained are float32: updates are smaller than the steps of bfloat16.
    Frozen ones, below adapters, are in `model.dtype`; but FSDP wants all of them alike (it shares them, and computes in
    16 bits all the same). What FSDP shares stays in the CPU's memory until then, so that no GPU has to hold it whole;
    and where weights are handed out the first process alone reads them."""
    dtype = "float32" if project.train.method == "full" or start.strategy == "fsdp" else start.precision
    settings = project.model.model_copy(update={"dtype": dtype, "attention": "auto"})
    if project.train.method == "qlora":
        return load_quantized_model(start.path, settings, choose_device(), project.train.quantization)
    if start.handed_out and not is_first:
        return uninitialized_model(start.path, settings)
    return load_model(start.path, settings, "cpu" if start.strategy == "fsdp" else choose_device())


def precision_of(project: Project, model_path: Path) -> Precision:
    if project.model.dtype != "auto":
        return project.model.dtype
    configured = AutoConfig.from_pretrained(base_model_directory(model_path), local_files_only=True).dtype
    match str(configured).removeprefix("torch."):
        case "bfloat16":
            return "bfloat16"
        case "float16":
            return "float16"
        case _:
            return "float32"


def require_fit(network: PreTrainedModel, token_cache: TokenCache) -> None:
    embeddings: torch.nn.Embedding = network.get_input_embeddings()  # type: ignore[assignment]
    vocabulary = embeddings.num_embeddings
    if token_cache.largest_token >= vocabulary:
        raise ModelError(
            f"The tokenizer gives token {token_cache.largest_token}, the model's embeddings end at {vocabulary - 1}. "
            "Expected: a tokenizer that belongs to the model. Set model.path to a directory where they do."
        )
    window = getattr(network.config, "max_position_embeddings", None)
    if window is not None and token_cache.longest > window:
        raise ProjectError(
            f"The longest sample has {token_cache.longest} tokens, the model's window {window}. Expected: samples that fit. "
            f"Set train.max_length: {window}"
        )


def require_own_positions(network: PreTrainedModel, settings: Training, token_cache: TokenCache) -> None:
    """LongRoPE (Phi-3 with 128k tokens) counts the positions of all samples of a micro-batch otherwise as soon as one
    of them is longer than the window of its first training (transformers, modeling_rope_utils)."""
    rope = getattr(network.config.get_text_config(), "rope_parameters", None) or {}
    window = rope.get("original_max_position_embeddings") if rope.get("rope_type") == "longrope" else None
    is_padded = settings.pad_mode == "max_length"
    longest = settings.max_length if is_padded else token_cache.longest
    if window is not None and longest > window and (is_padded or settings.per_device_batch_size > 1):
        raise ProjectError(
            f"{type(network).__name__} counts the positions of all samples of a micro-batch otherwise where one has "
            f"more than {window} tokens, and here one has {longest}. Expected: samples that do not change each other. "
            f"Set train.max_length: {window}, or train.pad_mode: dynamic_pack with train.per_device_batch_size: 1"
        )


def whole_model(project: Project, start: Start, weights: Mapping[str, torch.Tensor]) -> PreTrainedModel | PeftModel:
    """A model like the one that was trained, in one piece in the CPU's memory, with the weights that were gathered."""
    settings = project.model.model_copy(update={"dtype": start.precision, "attention": "auto"})
    network = load_model(start.path, settings, "cpu")
    model = add_adapters(network, project.train.method, project.train.lora, project.seed)
    found = model.load_state_dict(weights, strict=False)
    assert not found.unexpected_keys, found.unexpected_keys
    return model
