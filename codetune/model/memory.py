"""A CPU's memory: kept between the passes of a network, and found out when there is no more of it."""

from __future__ import annotations

import ctypes

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Lets the C library keep what large tensors leave behind for those that follow. Else it goes back to the system at
    the end of each, and comes anew page by page: logits and their softmax over 32,256 entries took a third longer, and
    whole scoring a fifth. Does nothing where there is another C library than glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_TRIM_THRESHOLD, 2 * _KEPT_BYTES - 1)


def is_out_of_memory(why: RuntimeError) -> bool:
    # torch's CPU allocator raises a plain RuntimeError (c10/core/impl/alloc_cpu.cpp).
    return isinstance(why, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(why)
