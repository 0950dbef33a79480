"""Running out of memory, told from other failures."""

from __future__ import annotations

import torch


def is_out_of_memory(why: RuntimeError) -> bool:
    # torch's CPU allocator raises a plain RuntimeError (c10/core/impl/alloc_cpu.cpp).
    return isinstance(why, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(why)
