"""Tensor parallelism for generation: one network split over several GPUs, a shard in each process. Decides whether a
model needs it (its weights fill a GPU) and whether it is possible, and loads the shards. Layers are split by the
tensor-parallel plans of transformers (5.17 to 5.23), so all processes run the same batches in step. Training splits a
network otherwise: `training/parallelism.py`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from codetune.errors import ModelError
from codetune.launch.process_group import ProcessGroup
from codetune.model.file_check import ADAPTER_CONFIG
from codetune.model.load import count_parameters, load_configuration, load_model, load_model_shard
from codetune.model.model_files import base_model_directory
from codetune.project.sections import Model
from codetune.text import gigabytes

WEIGHTS_FRACTION = 0.7  # of a GPU's memory; the cache needs the rest
KEY_PROJECTIONS = ("k_proj", "query_key_value")  # the layers that make the cached keys, by their names in the plans
INSTALL_VLLM = "Install the extra vllm and set generate.backend: vllm"


@dataclass(frozen=True, slots=True)
class VisibleGpus:
    """The GPUs that a process sees."""

    count: int
    bytes_each: int  # memory of the smallest


@dataclass(frozen=True, slots=True)
class ProcessCounts:
    """The processes of a command, on all machines and on this one."""

    total: int
    on_machine: int


def visible_gpus() -> VisibleGpus | None:
    """None without a GPU."""
    if not torch.cuda.is_available():
        return None
    indices = range(torch.cuda.device_count())
    return VisibleGpus(len(indices), min(torch.cuda.get_device_properties(index).total_memory for index in indices))


def tensor_parallel_size(weight_bytes: int, gpu_bytes: int, gpus: int) -> int:
    """Over how many GPUs a model must be split: a power of two, so that it divides the attention heads.

    >>> [tensor_parallel_size(gigabytes * 10**9, gpu_bytes=80 * 10**9, gpus=8) for gigabytes in (13, 67, 140, 9000)]
    [1, 2, 4, 8]
    """
    needed = 1
    while needed * 2 <= gpus and weight_bytes > needed * gpu_bytes * WEIGHTS_FRACTION:
        needed *= 2
    return needed


def weight_bytes(directory: Path, dtype: str) -> int:
    """The size of the loaded weights, adapters merged."""
    base = base_model_directory(directory)
    if dtype == "auto":  # as they are stored
        return sum(file.stat().st_size for file in base.glob("model*.safetensors"))
    number: torch.dtype = getattr(torch, dtype)
    return count_parameters(base) * number.itemsize


def needs_tensor_parallel(directory: Path, dtype: str, processes: ProcessCounts, gpus: VisibleGpus | None) -> bool:
    """Whether the processes have to split one network instead of loading one each. Raises ModelError if they have to
    and cannot. A model that one GPU just holds is not split where splitting is impossible."""
    if gpus is None or (weights := weight_bytes(directory, dtype)) <= gpus.bytes_each * WEIGHTS_FRACTION:
        return False
    reason = _reason_against(directory, weights, processes, gpus)
    if reason and weights > gpus.bytes_each:
        raise ModelError(
            f"The weights of {directory} take {gigabytes(weights)} (model.dtype: {dtype}), and a GPU here has "
            f"{gigabytes(gpus.bytes_each)}. Expected: GPUs that hold them together, but {reason}. Or use the "
            "CPU: set CUDA_VISIBLE_DEVICES to nothing"
        )
    return not reason


def load_tensor_parallel(directory: Path, model: Model, group: ProcessGroup, scratch: Path) -> PreTrainedModel:
    """This process's shard of the network. Rank 0 first merges adapters, in the CPU's memory, into a copy in `scratch`
    that is deleted when all ranks have read it."""
    adapted, merged = (directory / ADAPTER_CONFIG).is_file(), scratch / "merged"
    if adapted and group.is_first:
        save_merged(directory, model, merged)
    group.barrier()
    shard = load_model_shard(merged if adapted else directory, model, group.count)
    group.barrier()  # with a longer timeout than NCCL's, for ranks that read slowly
    if adapted and group.is_first:
        shutil.rmtree(merged)
    return shard


def save_merged(directory: Path, model: Model, copy: Path) -> None:
    """Writes the base model with the adapters in `directory` merged into it, made in the CPU's memory, to `copy`."""
    load_model(directory, model.model_copy(update={"attention": "auto"}), "cpu").save_pretrained(copy)


def kv_cache_ranks(config: PreTrainedConfig, count: int) -> int:
    """Over how many of `count` ranks the cached heads are split: 1 if the plan does not split the key projections."""
    plan = getattr(config.get_text_config(), "base_model_tp_plan", None) or {}
    is_split = any(name.endswith(KEY_PROJECTIONS) and style == "colwise" for name, style in plan.items())
    return count if is_split else 1


def _reason_against(directory: Path, weights: int, processes: ProcessCounts, gpus: VisibleGpus) -> str:
    """Why the processes cannot split the network, and what would help; "" if they can."""
    count = processes.total
    if count == 1:
        return "there is one process. Set launch.processes: auto on a machine with more GPUs"
    if gpus.count < processes.on_machine:
        return (
            f"{processes.on_machine} processes see {gpus.count} of them. Set launch.processes: auto, and show each all"
        )
    config = load_configuration(directory).get_text_config()
    if not getattr(config, "base_model_tp_plan", None):
        return f"transformers cannot divide the layers of a {config.model_type}. {INSTALL_VLLM}"
    heads = [config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads]
    if any(number % count for number in heads):
        enough = range(count - 1, weights // gpus.bytes_each, -1)
        fitting = next((fewer for fewer in enough if not any(number % fewer for number in heads)), None)
        return f"{count} processes do not divide its {heads[0]} attention heads and {heads[1]} of keys. " + (
            f"Set launch.processes: {fitting}" if fitting else INSTALL_VLLM
        )
    if weights > count * gpus.bytes_each:
        return f"{count} are too few. Take more of them, or larger ones"
    return ""
