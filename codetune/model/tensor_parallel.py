"""One network held by several processes, a part in each: whether it must be (its weights leave a GPU too little room),
whether it can be, and how it is loaded. Layers are divided by transformers' tensor-parallel plans (5.17 to 5.23), so
all processes run the same batches in step. Trainings share otherwise: `training/strategy.py`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from codetune.errors import ModelError
from codetune.launch.process_group import ProcessGroup
from codetune.model.load import count_parameters, load_model, load_model_shard
from codetune.model.model_files import ADAPTER_CONFIG, base_model_directory
from codetune.project.sections import Model

SHARE_FOR_WEIGHTS = 0.7  # of a GPU's memory; the cache needs the rest
KEYS = ("k_proj", "query_key_value")  # what makes the keys that are cached, as plans name it
INSTALL_VLLM = "Install the extra vllm and set generate.backend: vllm"


@dataclass(frozen=True, slots=True)
class VisibleGpus:
    """Those that a process sees."""

    count: int
    bytes_each: int  # of the smallest


@dataclass(frozen=True, slots=True)
class ProcessCounts:
    """How many processes a command has, in all and on this machine."""

    count: int
    on_machine: int


def visible_gpus() -> VisibleGpus | None:
    if not torch.cuda.is_available():
        return None
    numbers = range(torch.cuda.device_count())
    return VisibleGpus(len(numbers), min(torch.cuda.get_device_properties(number).total_memory for number in numbers))


def tensor_parallel_size(weight_bytes: int, gpu_bytes: int, gpus: int) -> int:
    """Over how many GPUs a model must be spread; their number divides the attention heads where it is a power of two.

    >>> [tensor_parallel_size(gigabytes * 10**9, gpu_bytes=80 * 10**9, gpus=8) for gigabytes in (13, 67, 140, 9000)]
    [1, 2, 4, 8]
    """
    needed = 1
    while needed * 2 <= gpus and weight_bytes > needed * gpu_bytes * SHARE_FOR_WEIGHTS:
        needed *= 2
    return needed


def weight_bytes(directory: Path, dtype: str) -> int:
    """Of the network once it is loaded, adapters merged."""
    below = base_model_directory(directory)
    if dtype == "auto":  # as they lie there
        return sum(file.stat().st_size for file in below.glob("model*.safetensors"))
    number: torch.dtype = getattr(torch, dtype)
    return count_parameters(below) * number.itemsize


def needs_tensor_parallel(directory: Path, dtype: str, crowd: ProcessCounts, gpus: VisibleGpus | None) -> bool:
    """Whether the processes are to hold one network together, not one each. Raises ModelError where they must and
    cannot; what a GPU just holds is tried in one where sharing is impossible."""
    if gpus is None or (weights := weight_bytes(directory, dtype)) <= gpus.bytes_each * SHARE_FOR_WEIGHTS:
        return False
    hindrance = _hindrance(directory, weights, crowd, gpus)
    if hindrance and weights > gpus.bytes_each:
        raise ModelError(
            f"The weights of {directory} take {_gigabytes(weights)} GB (model.dtype: {dtype}), and a GPU here has "
            f"{_gigabytes(gpus.bytes_each)} GB. Expected: GPUs that hold them together, but {hindrance}. Or use the "
            "CPU: set CUDA_VISIBLE_DEVICES to nothing"
        )
    return not hindrance


def load_tensor_parallel(directory: Path, model: Model, group: ProcessGroup, scratch: Path) -> PreTrainedModel:
    """This process's part of the network. Adapters are merged by the first one, in the CPU's memory, into a copy in
    `scratch` that is gone when all have read it."""
    adapted, merged = (directory / ADAPTER_CONFIG).is_file(), scratch / "merged"
    if adapted and group.is_first:
        save_merged(directory, model, merged)
    group.barrier()
    part = load_model_shard(merged if adapted else directory, model, group.count)
    group.barrier()  # with more patience than NCCL has for who reads slowly
    if adapted and group.is_first:
        shutil.rmtree(merged)
    return part


def save_merged(directory: Path, model: Model, copy: Path) -> None:
    """A whole model of adapters and what lies below them, made in the CPU's memory."""
    load_model(directory, model.model_copy(update={"attention": "auto"}), "cpu").save_pretrained(copy)


def kv_cache_ranks(config: Any, count: int) -> int:
    """Among how many of `count` processes the cached heads are dealt: plans that divide no keys leave all to each."""
    plan = getattr(config.get_text_config(), "base_model_tp_plan", None) or {}
    divided = any(name.endswith(KEYS) and style == "colwise" for name, style in plan.items())
    return count if divided else 1


def _hindrance(directory: Path, weights: int, crowd: ProcessCounts, gpus: VisibleGpus) -> str:
    """Why the processes cannot hold the network together, and what would help; "" where they can."""
    if crowd.count == 1:
        return "there is one process. Set launch.processes: auto on a machine with more GPUs"
    if gpus.count < crowd.on_machine:
        return f"{crowd.on_machine} processes see {gpus.count} of them. Set launch.processes: auto, and show each all"
    config = AutoConfig.from_pretrained(base_model_directory(directory), local_files_only=True).get_text_config()
    if not getattr(config, "base_model_tp_plan", None):
        return f"transformers cannot divide the layers of a {config.model_type}. {INSTALL_VLLM}"
    heads = [config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads]
    if any(number % crowd.count for number in heads):
        enough = range(crowd.count - 1, weights // gpus.bytes_each, -1)
        fitting = next((number for number in enough if not any(count % number for count in heads)), None)
        return f"{crowd.count} processes do not divide its {heads[0]} attention heads and {heads[1]} of keys. " + (
            f"Set launch.processes: {fitting}" if fitting else INSTALL_VLLM
        )
    if weights > crowd.count * gpus.bytes_each:
        return f"{crowd.count} are too few. Take more of them, or larger ones"
    return ""


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f}"
