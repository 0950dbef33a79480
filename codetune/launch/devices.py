"""The GPU and the CPU threads of this process. Says nothing about other processes; `tensor_parallel.py` decides whether
a model needs several GPUs."""

from __future__ import annotations

import torch


def choose_device() -> str:
    """The GPU that this process was given (see `take_gpu`), as `cuda:N`, or `cpu` where there is none."""
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def take_gpu(local_rank: int) -> None:
    """Makes the GPU of that index (modulo the visible ones) the one of this process. Does nothing without a GPU."""
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())


def count_gpus() -> int:
    return torch.cuda.device_count()


def gpu_memory_bytes() -> int | None:
    """Total memory of the GPU of this process; None without a GPU."""
    return torch.cuda.get_device_properties(choose_device()).total_memory if torch.cuda.is_available() else None


def use_threads(count: int) -> None:
    """Sets the CPU threads of torch operations."""
    torch.set_num_threads(count)
