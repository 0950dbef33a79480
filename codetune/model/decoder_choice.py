"""Loads a model into the decoder that `generate.backend`, the other settings and this machine allow: vLLM, continuous
batching, or batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from codetune.launch.devices import choose_device
from codetune.model import vllm_engine
from codetune.model.batch_generator import BatchGenerator, is_recurrent
from codetune.model.continuous_batching import ContinuousGenerator, flash_attention
from codetune.model.decoding import Decoder
from codetune.model.load import load_model
from codetune.project.sections import Generation, Model


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The devices and packages of this machine that decide the choice."""

    gpu: bool
    flash_attention: str | None  # the implementation that is installed
    vllm: bool  # installed and usable


def wants_vllm(settings: Generation, machine: Capabilities) -> bool:
    return settings.backend == "vllm" or (settings.backend == "auto" and machine.gpu and machine.vllm)


def wants_continuous(settings: Generation, dtype: torch.dtype, machine: Capabilities) -> bool:
    """Continuous batching needs a GPU, flash attention (hence half precision) and greedy decoding: only batches give
    each sample its own random numbers. A number as `batch_size` asks for batches."""
    half = dtype in (torch.bfloat16, torch.float16)
    greedy = settings.temperature == 0
    return machine.gpu and machine.flash_attention is not None and half and greedy and settings.batch_size == "auto"


def load_decoder(
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    model: Model,
    end_of_turn: Sequence[str],
    settings: Generation,
) -> Decoder:
    """The model of a directory in its decoder, on this process's device. Raises ProjectError if vLLM is asked for and
    not installed, ModelError if the model cannot be loaded."""
    if settings.backend == "vllm":
        vllm_engine.require_installed()
    device = choose_device()
    # With several GPUs each has a process with a model of its own; vLLM would take all of them.
    vllm_is_usable = vllm_engine.is_installed() and torch.cuda.device_count() == 1
    machine = Capabilities(device != "cpu", flash_attention(), vllm_is_usable)
    if wants_vllm(settings, machine):
        return vllm_engine.load_vllm(directory, tokenizer, model, end_of_turn, settings)
    network = load_model(directory, model, device)
    if (
        machine.flash_attention is None
        or is_recurrent(network)
        or not wants_continuous(settings, network.dtype, machine)
    ):
        return BatchGenerator(network, tokenizer, end_of_turn, settings)
    network.set_attn_implementation(machine.flash_attention)
    return ContinuousGenerator(network, tokenizer, end_of_turn, settings, limits={})
