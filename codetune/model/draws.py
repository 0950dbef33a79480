"""Random numbers that follow from a seed alone, and leave no trace in those that are drawn afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """On the CPU, and on the GPU of this process. (Asked for all GPUs, torch would begin work on each of them.)"""
    gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        yield
