"""The GPU, the CPU threads, the number format and the memory of this process. Says nothing about other processes;
`tensor_parallel.py` decides whether a model needs several GPUs."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from codetune.errors import first_line
from codetune.launch.environment import named_gpus
from codetune.project.sections import Precision

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT_BYTES = 1 << 30
PRODUCT_ROWS, PRODUCT_WIDTH, PRODUCTS = 128, 1024, 20
LEAST_GAIN = 1.3  # of a product; the rest of a model (norms, attention, softmax) gains less


def choose_device() -> str:
    """The GPU that this process was given (see `take_gpu`), as `cuda:N`, or `cpu` where there is none."""
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def take_gpu(local_rank: int) -> None:
    """Makes the GPU of that index (modulo the visible ones) the one of this process. Does nothing without a GPU."""
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())


def count_gpus() -> int:
    return torch.cuda.device_count()


def visible_gpus() -> Sequence[str]:
    """The GPUs of this process by the names that another one can be given them by."""
    named = named_gpus()
    return [str(index) for index in range(count_gpus())] if named is None else named[: count_gpus()]


def gpu_memory_bytes() -> int | None:
    """Total memory of the GPU of this process; None without a GPU."""
    return torch.cuda.get_device_properties(choose_device()).total_memory if torch.cuda.is_available() else None


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU of this machine."""

    name: str
    capability: tuple[int, int]
    total_bytes: int
    free_bytes: int


def describe_gpus() -> list[Gpu]:
    found = []
    for index in range(count_gpus()):
        free, total = torch.cuda.mem_get_info(index)
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        found.append(Gpu(name, capability, total, free))
    return found


def gpu_name() -> str | None:
    """The name of the GPU of this process; None without a GPU."""
    return torch.cuda.get_device_name(choose_device()) if torch.cuda.is_available() else None


def find_precision() -> tuple[Precision, str]:
    """The number format that this machine multiplies fastest, and why. float16 is none of them: its range is too small
    for some models."""
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", "the GPU has it"
        return "float32", "the GPU has no bfloat16"
    return faster_precision(_product_seconds())


def faster_precision(seconds: Mapping[Precision, float]) -> tuple[Precision, str]:
    """float32, or bfloat16 where its products take so much less time that a model gains as well; and why.

    >>> faster_precision({"float32": 0.006, "bfloat16": 0.0025})
    ('bfloat16', 'this processor multiplies it 2.4 times as fast as float32')
    >>> faster_precision({"float32": 0.006, "bfloat16": 0.03})
    ('float32', 'this processor multiplies bfloat16 0.2 times as fast')
    """
    times = seconds["float32"] / seconds["bfloat16"]
    if times >= LEAST_GAIN:
        return "bfloat16", f"this processor multiplies it {times:.1f} times as fast as float32"
    return "float32", f"this processor multiplies bfloat16 {times:.1f} times as fast"


def _product_seconds() -> dict[Precision, float]:
    """Seconds of a product like those of a model's layers, the shortest of some, by format. A processor without
    instructions for bfloat16 multiplies it in float32, or slower."""
    ones = torch.ones(PRODUCT_WIDTH, PRODUCT_WIDTH)
    factors: dict[Precision, torch.Tensor] = {"float32": ones, "bfloat16": ones.to(torch.bfloat16)}
    found: dict[Precision, list[float]] = {name: [] for name in factors}
    for _ in range(PRODUCTS):
        for name, factor in factors.items():  # in turns, so that other work on the machine slows both
            began = time.perf_counter()
            torch.matmul(factor[:PRODUCT_ROWS], factor)
            found[name].append(time.perf_counter() - began)
    return {name: min(times) for name, times in found.items()}


@cache
def compiler_fault(device: str) -> str:
    """Why torch.compile does not work for this device; "" where it does. Compiles a small function, in some seconds."""
    try:
        torch.compile(lambda numbers: (numbers + 1).sum())(torch.ones(8, device=device))
    except RuntimeError as why:  # as all errors of torch.compile are, those of its backend inside one of its own
        return first_line(getattr(why, "inner_exception", why))
    return ""


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
