"""The GPU, the CPU threads and the memory of this process. Says nothing about other processes; `tensor_parallel.py`
decides whether a model needs several GPUs."""

from __future__ import annotations

import ctypes

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT_BYTES = 1 << 30


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


def keep_freed_memory() -> None:
    """Lets the C library keep the memory of freed tensors for the next ones. Otherwise it returns it to the system and
    gets it back page by page: a softmax over 32,256 logits took a third longer, scoring a fifth. Does nothing for C
    libraries other than glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_TRIM_THRESHOLD, 2 * _KEPT_BYTES - 1)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the memory of a GPU or of the CPU was exhausted."""
    # torch's CPU allocator raises a plain RuntimeError (c10/core/impl/alloc_cpu.cpp).
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
